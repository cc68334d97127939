/* Three threads that map, unmap, move, cut and release memory as fast as possible, and a fourth that forks. Prints
   "ready". With an argument it ends after so many mappings. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define KEPT 64

static atomic_long made, most;

static void *churn(void *seed_of)
{
    unsigned seed = (unsigned)(size_t)seed_of;
    struct {
        char *at;
        size_t size;
    } kept[KEPT] = {{0}};
    for (;;) {
        int place = rand_r(&seed) % KEPT;
        if (kept[place].at)
            munmap(kept[place].at, kept[place].size);
        size_t size = (1 + rand_r(&seed) % 512) * PAGE;
        char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED)
            continue;
        memset(at, 1, size);
        if (size > 8 * PAGE) {
            munmap(at + 3 * PAGE, PAGE); /* the rest of it goes with the next munmap */
            mprotect(at + 5 * PAGE, PAGE, PROT_READ);
            madvise(at, 2 * PAGE, MADV_DONTNEED);
        }
        char *moved = size > 8 * PAGE ? at : mremap(at, size, 2 * size, MREMAP_MAYMOVE);
        kept[place].at = moved == MAP_FAILED ? at : moved;
        kept[place].size = moved == at || moved == MAP_FAILED ? size : 2 * size;
        if (atomic_fetch_add(&made, 1) == atomic_load(&most) - 1)
            _exit(0);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    atomic_store(&most, argc > 1 ? atol(argv[1]) : 0);
    printf("ready\n");
    fflush(stdout);
    for (size_t i = 1; i <= 3; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, churn, (void *)i);
    }
    for (;;) {
        pid_t child = fork();
        if (child == 0)
            _exit(0);
        waitpid(child, NULL, 0);
    }
}
