/* Does one thing as fast as it can, by a call chain, and prints how often so far, four times a second:
 *     churn      maps and unmaps 16 KiB
 *     faults     touches pages that are not there
 *     getppid    the cheapest system call
 *     idle       maps and unmaps 16 KiB ten times a second
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SIZE 16384
#define PAGE 4096
#define PAGES 1024

static volatile int after; /* something to do after a call, so that none becomes a jump */
static char *region;

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

__attribute__((noinline)) static void touch_leaf(int page) {
    region[(size_t)page * PAGE] = 1;
    after = page;
}

__attribute__((noinline)) static void touch_middle(int page) {
    touch_leaf(page);
    after = page;
}

static unsigned long churn(void) {
    for (int i = 0; i < 256; i++)
        munmap(middle(), SIZE);
    return 256;
}

static unsigned long idle(void) {
    munmap(middle(), SIZE);
    usleep(100000);
    return 1;
}

static unsigned long faults(void) {
    for (int page = 0; page < PAGES; page++)
        touch_middle(page);
    madvise(region, (size_t)PAGES * PAGE, MADV_DONTNEED);
    return PAGES;
}

static unsigned long getppids(void) {
    for (int i = 0; i < 4096; i++)
        after = (int)syscall(SYS_getppid);
    return 4096;
}

static double seconds(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        unsigned long (*run)(void);
    } modes[] = {{"churn", churn}, {"faults", faults}, {"getppid", getppids}, {"idle", idle}};
    unsigned long (*run)(void) = NULL;
    for (size_t i = 0; argc == 2 && i < sizeof modes / sizeof *modes; i++)
        if (!strcmp(argv[1], modes[i].name))
            run = modes[i].run;
    if (!run)
        return fprintf(stderr, "usage: %s churn|faults|getppid|idle\n", argv[0]), 2;
    region = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (region == MAP_FAILED || madvise(region, (size_t)PAGES * PAGE, MADV_NOHUGEPAGE))
        return perror("mmap"), 1;
    unsigned long count = 0;
    for (double next = 0;;) {
        count += run();
        double now = seconds(CLOCK_MONOTONIC);
        if (now >= next) {
            printf("served %lu failed 0 at %.6f cpu %.6f\n", count, now, seconds(CLOCK_PROCESS_CPUTIME_ID));
            fflush(stdout);
            next = now + 0.25;
        }
    }
}
