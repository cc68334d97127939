/*
 * Random memory operations, for the tracer's ledger. Prints "ready". On a line "SEED THREADS OPERATIONS" each thread does
 * so many operations, then it answers "done" and keeps what is mapped.
 *
 * Each thread works on ranges of its own: mappings that it made, of 1 to 16 pages, some of them neighbours; it unmaps
 * them whole, in part, several at once (with the holes between), replaces parts by MAP_FIXED, moves, grows and shrinks
 * them by mremap, changes their protection, attaches and detaches shared memory, and makes calls that fail. The kernel
 * gives addresses that one thread frees to others. There is no malloc and no stdio in between.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <unistd.h>

#define PAGE 4096UL
#define SLOTS 256
#define ARENA_PAGES 512

static int threads, operations;
static uint64_t first_seed;
static pthread_barrier_t go, done;

struct slot {
    char *at;
    size_t pages;
};

struct worker {
    uint64_t state;
    struct slot slots[SLOTS];
    char *arena; /* of this thread alone: reserved, then cut up by MAP_FIXED and munmap */
    char *attached;
};

static uint64_t draw(struct worker *me, uint64_t below) {
    me->state ^= me->state << 13;
    me->state ^= me->state >> 7;
    me->state ^= me->state << 17;
    return (me->state * 2685821657736338717ULL >> 11) % below;
}

static char *map(char *where, size_t pages, int flags) {
    return mmap(where, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
}

static char *attach(struct worker *me) {
    int id = shmget(IPC_PRIVATE, (1 + draw(me, 8)) * PAGE, IPC_CREAT | 0600);
    char *at = shmat(id, NULL, 0);
    shmctl(id, IPC_RMID, NULL);
    return at == (char *)-1 ? NULL : at;
}

static void in_arena(struct worker *me) {
    size_t first = draw(me, ARENA_PAGES), pages = 1 + draw(me, 24);
    if (first + pages > ARENA_PAGES)
        pages = ARENA_PAGES - first;
    char *at = me->arena + first * PAGE;
    switch (draw(me, 4)) {
    case 0:
        if (threads == 1) /* else another thread could be given the hole, and lose it to our MAP_FIXED */
            munmap(at, pages * PAGE);
        break;
    case 1:
        map(at, pages, MAP_FIXED_NOREPLACE); /* mostly fails */
        break;
    default:
        map(at, pages, MAP_FIXED);
    }
}

static void fail(struct worker *me, struct slot *slot) {
    switch (draw(me, 4)) {
    case 0:
        munmap(slot->at + 1, PAGE);
        break;
    case 1:
        munmap((char *)(-1UL << 40), 16 * PAGE); /* not an address of ours: past the end of user space */
        break;
    case 2:
        mremap(slot->at, slot->pages * PAGE, (slot->pages + 1) * PAGE, MREMAP_MAYMOVE | 64); /* no such flag */
        break;
    default:
        mmap(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    }
}

static void resize(struct worker *me, struct slot *slot) {
    size_t pages = 1 + draw(me, 16);
    char *at = mremap(slot->at, slot->pages * PAGE, pages * PAGE, draw(me, 4) ? MREMAP_MAYMOVE : 0);
    if (at != MAP_FAILED) {
        slot->at = at;
        slot->pages = pages;
    }
}

/* A part of a mapping goes to another place, or over a mapping of ours. */
static void move(struct worker *me, struct slot *slot) {
    struct slot *other = &me->slots[draw(me, SLOTS)];
    /* since Linux 6.17 what has holes can be moved too, and what stood where they come to be stays: not followed */
    unsigned char resident[16];
    if (other == slot || other->pages < slot->pages || mincore(slot->at, slot->pages * PAGE, resident) != 0)
        return;
    if (mremap(slot->at, slot->pages * PAGE, slot->pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, other->at) != MAP_FAILED) {
        slot->pages = 0;
    }
}

static void cut(struct worker *me, struct slot *slot) {
    size_t first = draw(me, slot->pages), pages = 1 + draw(me, slot->pages - first);
    munmap(slot->at + first * PAGE, pages * PAGE);
    if (first == 0) {
        slot->at += pages * PAGE;
        slot->pages -= pages;
    } else {
        /* the end, if any, stays mapped and is unmapped, hole and all, with the whole; often at once */
        if (first + pages == slot->pages && draw(me, 2))
            slot->pages = first;
        if (draw(me, 2)) {
            munmap(slot->at, slot->pages * PAGE);
            slot->pages = 0;
        }
    }
}

static void *work(void *argument) {
    struct worker *me = argument;
    pthread_barrier_wait(&go);
    me->arena = map(NULL, ARENA_PAGES, 0);
    me->attached = attach(me);
    usleep(300000); /* how large it is can only be read while it is there */
    for (int i = 0; i < operations; i++) {
        struct slot *slot = &me->slots[draw(me, SLOTS)];
        if (slot->pages == 0) {
            size_t pages = 1 + draw(me, 16);
            char *at = map(NULL, pages, draw(me, 8) ? 0 : MAP_POPULATE);
            if (at != MAP_FAILED) {
                slot->at = at;
                slot->pages = pages;
            }
            continue;
        }
        switch (draw(me, 16)) {
        case 0:
            in_arena(me);
            break;
        case 1:
            fail(me, slot);
            break;
        case 2:
        case 3:
            resize(me, slot);
            break;
        case 4:
            move(me, slot);
            break;
        case 5: /* its middle, by a new mapping of the same address */
            if (slot->pages > 2)
                map(slot->at + PAGE, slot->pages - 2, MAP_FIXED);
            break;
        case 6:
            mprotect(slot->at, PAGE, draw(me, 2) ? PROT_READ : PROT_READ | PROT_WRITE);
            madvise(slot->at, slot->pages * PAGE, MADV_DONTNEED);
            break;
        case 7:
            if (me->attached && draw(me, 16) == 0) {
                shmdt(me->attached);
                me->attached = NULL;
            }
            break;
        case 8:
        case 9:
            if (slot->pages > 1) {
                if (threads == 1)
                    cut(me, slot);
                else { /* from one end, so that no hole is left */
                    size_t pages = 1 + draw(me, slot->pages);
                    int head = draw(me, 2);
                    munmap(head ? slot->at : slot->at + (slot->pages - pages) * PAGE, pages * PAGE);
                    slot->at += head ? pages * PAGE : 0;
                    slot->pages -= pages;
                }
            }
            break;
        default:
            munmap(slot->at, slot->pages * PAGE);
            slot->pages = 0;
        }
    }
    if (!me->attached)
        attach(me);
    pthread_barrier_wait(&done);
    for (;;)
        pause();
    return NULL;
}

static struct worker workers[16];

int main(void) {
    char line[256] = {0};
    setvbuf(stdout, NULL, _IONBF, 0);
    printf("ready\n");
    for (size_t length = 0; length < sizeof(line) - 1 && read(0, &line[length], 1) == 1 && line[length] != '\n'; length++)
        ;
    unsigned long long seed = 0;
    sscanf(line, "%llu %d %d", &seed, &threads, &operations);
    first_seed = seed;
    pthread_barrier_init(&go, NULL, (unsigned)threads + 1);
    pthread_barrier_init(&done, NULL, (unsigned)threads + 1);
    for (int i = 0; i < threads; i++) {
        pthread_t thread;
        workers[i].state = (first_seed + (uint64_t)i + 1) * 0x9E3779B97F4A7C15ULL | 1;
        if (pthread_create(&thread, NULL, work, &workers[i]))
            return 1;
    }
    pthread_barrier_wait(&go);
    pthread_barrier_wait(&done);
    printf("done\n");
    for (;;)
        pause();
}
