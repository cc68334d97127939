/* Maps and unmaps 16 KiB as fast as it can, by a call chain; prints how often so far, four times a second. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define SIZE 16384

static volatile int after;

__attribute__((noinline)) static char *leaf(void) {
    char *at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    after = at != MAP_FAILED;
    return at;
}

__attribute__((noinline)) static char *middle(void) {
    char *at = leaf();
    after = at != MAP_FAILED;
    return at;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

int main(void) {
    unsigned long count = 0;
    double next = 0;
    for (;;) {
        for (int i = 0; i < 256; i++, count++)
            munmap(middle(), SIZE);
        double at = now();
        if (at >= next) {
            printf("served %lu failed 0 at %.6f\n", count, at);
            fflush(stdout);
            next = at + 0.25;
        }
    }
}
