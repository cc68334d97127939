/* A process to be read, which measures its own mmap while it is being read.

   As a program: snapshot_target COUNT BYTES [huge|sparse] makes COUNT private mappings of so many bytes, each apart from
   its neighbours by its permissions, and touches them whole (huge: in huge pages; sparse: 1 GiB at either end and one
   page each 64 MiB between, nothing reserved). As a shared library (-shared -fPIC) the same thread runs in
   any other process: begin(), restart(), report(). Commands on stdin, a line each: "restart" forgets what was measured,
   "report" prints count, p50, p99 and the longest mmap since then in nanoseconds, the time apart in which the thread
   could have run and had no CPU: other work on the machine is not the reader's doing. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define KEPT (1 << 20)
#define PAUSE_NS 50000

static uint32_t taken_ns[KEPT];
static atomic_long taken;
static atomic_long epoch, rounds; /* a measurement that began before a restart does not count */

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* How long this thread was ready to run and had no CPU: field 2 of schedstat (Documentation/scheduler/sched-stats.rst). */
static int64_t queued_ns(int schedstat) {
    char text[96] = {0};
    long long ran = 0, queued = 0;
    if (pread(schedstat, text, sizeof text - 1, 0) > 0) sscanf(text, "%lld %lld", &ran, &queued);
    return queued;
}

static void *measure(void *unused) {
    struct timespec pause = {0, PAUSE_NS};
    int schedstat = open("/proc/thread-self/schedstat", O_RDONLY);
    for (;;) {
        nanosleep(&pause, NULL);
        long its_epoch = atomic_load(&epoch);
        int64_t queued = queued_ns(schedstat), began = now_ns();
        void *page = mmap(NULL, 16384, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        int64_t took = now_ns() - began;
        took -= queued_ns(schedstat) - queued;
        if (took < 0) took = 0;
        atomic_fetch_add(&rounds, 1);
        if (page == MAP_FAILED) continue;
        munmap(page, 16384);
        long place = atomic_load(&taken);
        if (place < KEPT && its_epoch == atomic_load(&epoch)) {
            taken_ns[place] = took > UINT32_MAX ? UINT32_MAX : (uint32_t)took;
            atomic_compare_exchange_strong(&taken, &place, place + 1);
        }
    }
    return unused;
}

static int ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

void begin(void) {
    pthread_t thread;
    pthread_create(&thread, NULL, measure, NULL);
}

void restart(void) {
    atomic_fetch_add(&epoch, 1);
    atomic_store(&taken, 0);
}

/* Until the mmap that is under way, perhaps still held up, has been measured. */
static void settle(void) {
    struct timespec pause = {0, PAUSE_NS};
    for (long seen = atomic_load(&rounds); atomic_load(&rounds) < seen + 2;) nanosleep(&pause, NULL);
}

void report(void) {
    static uint32_t sorted[KEPT];
    settle();
    long n = atomic_load(&taken);
    if (n == 0) {
        puts("measured 0 0 0 0");
    } else {
        memcpy(sorted, taken_ns, n * sizeof *sorted);
        qsort(sorted, n, sizeof *sorted, ascending);
        printf("measured %ld %u %u %u\n", n, sorted[n / 2], sorted[n * 99 / 100], sorted[n - 1]);
    }
    fflush(stdout);
}

static void touch(char *start, size_t bytes, int sparse) {
    size_t whole = sparse ? 1UL << 30 : bytes;
    memset(start, 1, whole);
    if (!sparse) return;
    memset(start + bytes - whole, 1, whole);
    for (size_t at = whole; at < bytes - whole; at += 64UL << 20) start[at] = 1;
}

int main(int argc, char **argv) {
    if (argc != 3 && argc != 4) return 2;
    long count = atol(argv[1]);
    size_t bytes = strtoull(argv[2], NULL, 0);
    int huge = argc == 4 && !strcmp(argv[3], "huge"), sparse = argc == 4 && !strcmp(argv[3], "sparse");
    for (long i = 0; i < count; i++) {
        int perms = PROT_READ | PROT_WRITE | (i % 2 ? PROT_EXEC : 0);
        char *start = mmap(NULL, bytes, perms, MAP_PRIVATE | MAP_ANONYMOUS | (sparse ? MAP_NORESERVE : 0), -1, 0);
        if (start == MAP_FAILED) {
            perror("mmap");
            return 1;
        }
        if (count == 1) madvise(start, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
        touch(start, bytes, sparse);
    }
    begin();
    puts("ready");
    fflush(stdout);
    char line[32];
    while (fgets(line, sizeof line, stdin))
        if (!strncmp(line, "restart", 7)) {
            restart();
            puts("restarted");
            fflush(stdout);
        } else
            report();
    return 0;
}
