/*
 * More memory operations than a tracer can handle. Prints "ready"; on a line "PROCESSES THREADS [touch]" (children of
 * it: 0 for none, then the threads are its own) does them on each thread until the next line, and answers "bytes N": what
 * its threads have mapped then, in all processes. It keeps that mapped and waits. With "touch" it writes to each page that
 * it maps.
 *
 * A thread maps ranges, cuts holes into them, and unmaps what is left of them piece by piece; each removal of a part is
 * an event. Now and then a range is kept for good (through keep()), up to KEPT of them.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define SLOTS 64
#define PAGES 9
#define KEPT 400

struct shared {
    _Atomic long bytes; /* mapped by the threads of all processes */
    _Atomic int stop;
    _Atomic int stopped; /* threads */
};

static struct shared *shared;
static int touches;

struct worker {
    uint64_t state;
    long bytes;
    int kept;
    char *slots[SLOTS];
    unsigned char cut[SLOTS]; /* the middle is gone */
};

static uint64_t draw(struct worker *me, uint64_t below) {
    me->state ^= me->state << 13;
    me->state ^= me->state >> 7;
    me->state ^= me->state << 17;
    return (me->state * 2685821657736338717ULL >> 11) % below;
}

static char *map(struct worker *me, size_t pages) {
    char *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        return NULL;
    me->bytes += (long)(pages * PAGE);
    for (size_t page = 0; touches && page < pages; page++)
        at[page * PAGE] = 1;
    return at;
}

static void unmap(struct worker *me, char *at, size_t pages) {
    if (munmap(at, pages * PAGE) == 0)
        me->bytes -= (long)(pages * PAGE);
}

static __attribute__((noinline)) void keep(struct worker *me) {
    if (map(me, 5))
        me->kept += 1;
}

static __attribute__((noinline)) void churn(struct worker *me) {
    int i = (int)draw(me, SLOTS);
    char *at = me->slots[i];
    if (!at) {
        me->slots[i] = map(me, PAGES);
        me->cut[i] = 0;
    } else if (!me->cut[i]) {
        unmap(me, at + 3 * PAGE, 3);
        me->cut[i] = 1;
    } else {
        unmap(me, at, 3);
        unmap(me, at + 6 * PAGE, 3);
        me->slots[i] = NULL;
    }
}

static void *work(void *argument) {
    struct worker *me = argument;
    for (int i = 0; !atomic_load(&shared->stop); i++) {
        if (i % 500 == 0 && me->kept < KEPT)
            keep(me);
        churn(me);
    }
    atomic_fetch_add(&shared->bytes, me->bytes);
    atomic_fetch_add(&shared->stopped, 1);
    for (;;)
        pause();
    return NULL;
}

static void start(int threads) {
    for (int i = 0; i < threads; i++) {
        struct worker *me = calloc(1, sizeof(*me));
        pthread_t thread;
        me->state = ((uint64_t)getpid() * 64 + (uint64_t)i + 1) * 0x9E3779B97F4A7C15ULL | 1;
        if (pthread_create(&thread, NULL, work, me))
            exit(1);
    }
}

static void read_line(char *line, size_t size) {
    for (size_t length = 0; length < size - 1 && read(0, &line[length], 1) == 1 && line[length] != '\n'; length++)
        ;
}

int main(void) {
    char line[64] = {0}, touch[8] = {0};
    int processes = 0, threads = 1;
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    setvbuf(stdout, NULL, _IONBF, 0);
    printf("ready\n");
    read_line(line, sizeof(line));
    sscanf(line, "%d %d %7s", &processes, &threads, touch);
    touches = touch[0] != 0;
    if (!processes)
        start(threads);
    for (int i = 0; i < processes; i++) {
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            start(threads);
            for (;;)
                pause();
        }
    }
    printf("going\n");
    read_line(line, sizeof(line));
    atomic_store(&shared->stop, 1);
    while (atomic_load(&shared->stopped) < threads * (processes ? processes : 1))
        usleep(1000);
    printf("bytes %ld\n", atomic_load(&shared->bytes));
    for (;;)
        pause();
}
