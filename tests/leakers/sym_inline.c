/*
 * Inlined functions: each kept mapping comes from map_one, inlined into map_twice, inlined into
 * keep, which `keep_many` calls. Prints "ready", keeps N mappings (argv[1]) of one page when a line comes, prints "done", and
 * waits.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define INLINE static inline __attribute__((always_inline))
#define DEEP __attribute__((noinline, noclone))

static volatile long kept; /* written after each call, so that none is a tail call */

INLINE char *map_one(size_t bytes) {
    char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); /* in map_one */
    if (at == MAP_FAILED)
        abort();
    *at = 1;
    return at;
}

INLINE void map_counted(size_t bytes) {
    kept += map_one(bytes) != NULL; /* in map_counted */
}

DEEP void keep(size_t bytes) {
    map_counted(bytes); /* in keep */
    kept++;
}

DEEP void keep_many(int count) {
    for (int i = 0; i < count; i++)
        keep(4096); /* in keep_many */
    kept++;
}

int main(int argc, char **argv) {
    char byte;
    setvbuf(stdout, NULL, _IONBF, 0);
    printf("ready\n");
    if (read(0, &byte, 1) != 1)
        return 1;
    keep_many(argc > 1 ? atoi(argv[1]) : 1); /* in main */
    printf("done\n");
    if (read(0, &byte, 1) != 1)
        return 1;
    for (;;)
        pause();
}
