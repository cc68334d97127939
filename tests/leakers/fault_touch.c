/*
 * Exact figures for the trace of page faults. Prints "ready", then executes one line of stdin at a time and answers "done":
 *
 *   own N        N new pages, written by touch_own
 *   again N      N new pages, written by touch_first, freed by MADV_DONTNEED, and written by touch_last
 *   churn N      a new page, written by touch_churn and unmapped, N times
 *   innocent N   N times: a temporary of 64 KiB is malloc'ed, written and freed by temporary; then leak mallocs and writes
 *                as much, in the same place, and keeps it
 *   kernel N     read(2) into N new pages, by read_into
 *   huge N       N times 2 MiB with MADV_HUGEPAGE, the first byte of each written by touch_huge
 *   zero N       N new pages, only read, by read_only
 *   cow N        N new pages, read by read_only and then written by touch_read
 *   shared N     N new pages of MAP_SHARED | MAP_ANONYMOUS, written by touch_shared
 *   file PAGES   this program mapped again, privately, and read by read_file; answers "pages N" first
 *   populate N   N pages by MAP_POPULATE; again N by MADV_POPULATE_WRITE, and N by mlock: three functions
 *   stack N      N pages of the stack, the lowest written first, by touch_stack
 *   threads N    four threads, N new pages each, at the same time, written by touch_own
 */
#define _GNU_SOURCE
#include <alloca.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 4096UL
#define HUGE (2UL << 20)
#define BLOCK 65536UL
#define DEEP __attribute__((noinline, noclone))
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

static char *volatile block; /* or the compiler leaves the allocation out */
static volatile int after; /* written after each call, so that none is a tail call */

static char *fresh(size_t bytes, int flags) {
    char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | flags, -1, 0);
    if (at == MAP_FAILED)
        abort();
    return at;
}

static char *small(size_t pages) {
    char *at = fresh(pages * PAGE, MAP_PRIVATE);
    if (madvise(at, pages * PAGE, MADV_NOHUGEPAGE))
        abort();
    return at;
}

DEEP void touch_own(volatile char *at, size_t pages) {
    for (size_t i = 0; i < pages; i++)
        at[i * PAGE] = 1; /* LINE own */
}

DEEP void touch_first(volatile char *at, size_t pages) {
    for (size_t i = 0; i < pages; i++)
        at[i * PAGE] = 1;
}

DEEP void touch_last(volatile char *at, size_t pages) {
    for (size_t i = 0; i < pages; i++)
        at[i * PAGE] = 1;
}

DEEP void touch_churn(void) {
    volatile char *at = small(1);
    *at = 1;
    munmap((void *)at, PAGE);
}

DEEP void temporary(void) {
    block = malloc(BLOCK);
    memset(block, 1, BLOCK);
    free(block);
    after = 1;
}

DEEP void leak(void) {
    block = malloc(BLOCK);
    memset(block, 2, BLOCK);
    after = 1;
}

DEEP void read_into(char *at, size_t bytes) {
    int zeros = open("/dev/zero", O_RDONLY);
    if (read(zeros, at, bytes) != (ssize_t)bytes)
        abort();
    close(zeros);
}

DEEP void touch_huge(size_t count) {
    volatile char *at = fresh((count + 1) * HUGE, MAP_PRIVATE);
    at = (volatile char *)(((unsigned long)at + HUGE - 1) & ~(HUGE - 1));
    if (madvise((void *)at, count * HUGE, MADV_HUGEPAGE))
        abort();
    for (size_t i = 0; i < count; i++)
        at[i * HUGE] = 1;
}

DEEP int read_only(volatile char *at, size_t pages) {
    int sum = 0;
    for (size_t i = 0; i < pages; i++)
        sum += at[i * PAGE];
    return sum;
}

DEEP void touch_read(volatile char *at, size_t pages) {
    for (size_t i = 0; i < pages; i++)
        at[i * PAGE] = 1;
}

DEEP void touch_shared(size_t pages) {
    volatile char *at = fresh(pages * PAGE, MAP_SHARED);
    for (size_t i = 0; i < pages; i++)
        at[i * PAGE] = 1;
}

DEEP size_t read_file(void) {
    int file = open("/proc/self/exe", O_RDONLY);
    struct stat about;
    if (file < 0 || fstat(file, &about))
        abort();
    size_t pages = (about.st_size + PAGE - 1) / PAGE;
    volatile char *at = mmap(NULL, pages * PAGE, PROT_READ, MAP_PRIVATE, file, 0);
    if (at == MAP_FAILED)
        abort();
    for (size_t i = 0; i < pages; i++)
        after = at[i * PAGE];
    close(file);
    return pages;
}

DEEP void by_mmap(size_t pages) {
    after = *fresh(pages * PAGE, MAP_PRIVATE | MAP_POPULATE);
}

DEEP void by_madvise(size_t pages) {
    char *at = small(pages);
    if (madvise(at, pages * PAGE, MADV_POPULATE_WRITE))
        abort();
    after = 1;
}

DEEP void by_mlock(size_t pages) {
    char *at = small(pages);
    if (mlock(at, pages * PAGE))
        abort();
    after = 1;
}

DEEP void touch_stack(size_t pages) {
    volatile char *at = alloca(pages * PAGE);
    for (size_t i = 0; i < pages; i++)
        at[i * PAGE] = 1;
}

static size_t thread_pages;
static pthread_barrier_t start, done;

static void *thread_main(void *unused) {
    (void)unused;
    char *at = small(thread_pages);
    pthread_barrier_wait(&start);
    touch_own(at, thread_pages);
    pthread_barrier_wait(&done);
    for (;;)
        pause();
    return NULL;
}

static void threads(size_t pages) {
    thread_pages = pages;
    pthread_barrier_init(&start, NULL, 5);
    pthread_barrier_init(&done, NULL, 5);
    for (int i = 0; i < 4; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, thread_main, NULL);
    }
    pthread_barrier_wait(&start);
    pthread_barrier_wait(&done);
}

int main(void) {
    char line[256], word[32];
    setvbuf(stdout, NULL, _IONBF, 0);
    printf("ready\n");
    for (;;) {
        size_t length = 0;
        while (length < sizeof(line) - 1) {
            if (read(0, &line[length], 1) != 1)
                return 0;
            if (line[length] == '\n')
                break;
            length++;
        }
        line[length] = 0;
        size_t n = 0;
        sscanf(line, "%31s %zu", word, &n);
        if (!strcmp(word, "own"))
            touch_own(small(n), n);
        else if (!strcmp(word, "again")) {
            char *at = small(n);
            touch_first(at, n);
            if (madvise(at, n * PAGE, MADV_DONTNEED))
                abort();
            touch_last(at, n);
        } else if (!strcmp(word, "churn"))
            for (size_t i = 0; i < n; i++)
                touch_churn();
        else if (!strcmp(word, "innocent"))
            for (size_t i = 0; i < n; i++) {
                temporary();
                leak();
            }
        else if (!strcmp(word, "kernel"))
            read_into(small(n), n * PAGE);
        else if (!strcmp(word, "huge"))
            touch_huge(n);
        else if (!strcmp(word, "zero"))
            after = read_only(small(n), n);
        else if (!strcmp(word, "cow")) {
            char *at = small(n);
            after = read_only(at, n);
            touch_read(at, n);
        } else if (!strcmp(word, "shared"))
            touch_shared(n);
        else if (!strcmp(word, "file"))
            printf("pages %zu\n", read_file());
        else if (!strcmp(word, "populate")) {
            by_mmap(n);
            by_madvise(n);
            by_mlock(n);
        } else if (!strcmp(word, "stack"))
            touch_stack(n);
        else if (!strcmp(word, "threads"))
            threads(n);
        else
            return 2;
        printf("done\n");
    }
}
