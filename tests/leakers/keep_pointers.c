/*
 * Maps blocks and keeps their addresses in one of several ways, or not: `keep_pointers HOW [PER_SECOND]`. Prints "ready",
 * then maps and touches 16 KiB at a time until it is killed. HOW:
 *
 *   lost      nowhere
 *   array     in a table in the heap
 *   interior  in a table, 5000 bytes further
 *   packed    in a table of packed structures, at 4 bytes past an aligned address
 *   tagged    in a table, with a tag in the high 16 bits and one in the low 3
 *   pages     in a table, as page numbers
 *   file      in a table in a shared mapping of a file
 *   chain     each in the one before it
 *   guarded   in a table whose pages are protected (PROT_NONE) but while it is written
 *   epoll     with epoll alone, as the data of an event
 *   xor       in a table, each combined with the one before (XOR): no search can find these
 *   placed    nowhere: at places in a reservation that are computed from its start
 *   half      every other one in a table
 *   fifo      in a ring of 4000, the oldest is unmapped when it is full
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 16384UL
#define MOST (1UL << 18)
#define RING 4000

struct __attribute__((packed)) entry {
    uint32_t id;
    void *block;
    uint32_t more;
};

static char how[16];
static uint64_t *table;
static struct entry *entries;
static char *newest, *reserved;
static uint64_t last;
static int epoll;

static int is(const char *name) { return strcmp(how, name) == 0; }

static __attribute__((noinline)) char *map_block(unsigned long n) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | (reserved ? MAP_FIXED : 0);
    char *at = mmap(reserved ? reserved + n * BLOCK : NULL, BLOCK, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (at == MAP_FAILED)
        abort();
    memset(at, 1, BLOCK);
    return at;
}

static __attribute__((noinline)) void keep(unsigned long n, char *at) {
    uint64_t address = (uint64_t)at;
    if (is("array") || (is("half") && n % 2))
        table[n] = address;
    else if (is("interior"))
        table[n] = address + 5000;
    else if (is("packed"))
        entries[n] = (struct entry){.id = 7, .block = at};
    else if (is("tagged"))
        table[n] = address | 0xbeefULL << 48 | 5;
    else if (is("pages"))
        table[n] = address >> 12;
    else if (is("file"))
        table[n] = address;
    else if (is("chain")) {
        *(char **)at = newest;
        newest = at;
    } else if (is("guarded")) {
        mprotect(table, MOST * 8, PROT_READ | PROT_WRITE);
        table[n] = address;
        mprotect(table, MOST * 8, PROT_NONE);
    } else if (is("epoll")) {
        struct epoll_event event = {.events = EPOLLIN, .data = {.ptr = at}};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, eventfd(0, 0), &event))
            abort();
    } else if (is("xor")) {
        table[n] = address ^ last;
        last = address;
    } else if (is("fifo")) {
        if (table[n % RING])
            munmap((void *)table[n % RING], BLOCK);
        table[n % RING] = address;
    }
}

int main(int count, char **words) {
    strncpy(how, count > 1 ? words[1] : "lost", sizeof how - 1);
    long a_second = count > 2 ? atol(words[2]) : 200;
    if (is("file")) {
        FILE *file = tmpfile();
        if (!file || ftruncate(fileno(file), MOST * 8))
            abort();
        table = mmap(NULL, MOST * 8, PROT_READ | PROT_WRITE, MAP_SHARED, fileno(file), 0);
    } else if (is("guarded"))
        table = mmap(NULL, MOST * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    else
        table = calloc(MOST, 8);
    if (is("placed"))
        reserved = mmap(NULL, MOST * BLOCK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    entries = calloc(MOST, sizeof *entries);
    epoll = epoll_create1(0);
    struct rlimit files = {1 << 19, 1 << 19};
    setrlimit(RLIMIT_NOFILE, &files);
    puts("ready");
    fflush(stdout);
    struct timespec pause = {0, 1000000000L / a_second};
    for (unsigned long n = 0; n < MOST; n++) {
        keep(n, map_block(n));
        nanosleep(&pause, NULL);
    }
    pause.tv_sec = 1000;
    nanosleep(&pause, NULL);
}
