// Exact figures for the bpftrace scripts. On the line "go" it maps KEPT blocks of BLOCK bytes and touches every page of
// them, maps and unmaps CHURNED more, then prints "done" and waits. It is built with frame pointers for whole stacks.
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#define PAGE 4096
static long kept, block, churned;

static char *map(void) {
    char *p = mmap(0, block, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) exit(2);
    madvise(p, block, MADV_NOHUGEPAGE);
    return p;
}

__attribute__((noinline)) static void touch(char *p) {
    for (long i = 0; i < block; i += PAGE) ((volatile char *)p)[i] = 1;
}

__attribute__((noinline)) static void keep_blocks(void) {
    for (long i = 0; i < kept; i++) touch(map());
}

__attribute__((noinline)) static void churn_blocks(void) {
    for (long i = 0; i < churned; i++) munmap(map(), block);
}

int main(int argc, char **argv) {
    char line[16];
    if (argc != 4) return 1;
    kept = atol(argv[1]), block = atol(argv[2]), churned = atol(argv[3]);
    setvbuf(stdout, 0, _IONBF, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin)) {
        keep_blocks();
        churn_blocks();
        puts("done");
    }
    return 0;
}
