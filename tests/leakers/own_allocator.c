/* Allocates memory by malloc, of whatever allocator, and maps other memory; then prints "ready".
 *
 *   own_allocator [THREADS]
 *
 * Each thread (4) allocates 6,000 blocks of 16 to 40,000 bytes and frees every third. The main thread allocates some of
 * megabytes. The other mappings begin where allocators often begin theirs, and hold numbers. Prints, for the test:
 *
 *   block ADDRESS SIZE      malloc'ed, touched and kept: every 50th small one, all large ones
 *   map ADDRESS SIZE        mapped and touched, not by malloc
 *   figure kept BYTES       in all blocks that were kept
 *   figure made BYTES       in all that were made
 *   figure resident BYTES   the allocator's own figure, if it has one: touched and not released
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SMALL = 6000, LARGE = 6 };
static pthread_barrier_t filled, over;
static _Atomic size_t made, kept;

static uint64_t next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

static void *fill(void *seed)
{
    uint64_t state = 88172645463325252ULL + (uintptr_t)seed;
    char *blocks[SMALL];
    size_t sizes[SMALL];
    for (int i = 0; i < SMALL; i++) {
        sizes[i] = 16 + next(&state) % (i % 8 ? 1000 : 40000);
        blocks[i] = memset(malloc(sizes[i]), 1, sizes[i]);
        made += sizes[i];
        kept += i % 3 ? sizes[i] : 0;
    }
    for (int i = 0; i < SMALL; i += 3)
        free(blocks[i]);
    for (int i = 1; i < SMALL; i += 50)
        if (i % 3)
            printf("block %p %zu\n", blocks[i], sizes[i]);
    pthread_barrier_wait(&filled);
    pthread_barrier_wait(&over);
    return NULL;
}

/* `bytes` at a multiple of `align`, inaccessible memory on either side. */
static void own_map(size_t align, size_t bytes)
{
    static uint64_t state = 42;
    size_t room = 2 * align + bytes;
    char *all = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char *at = (char *)(((uintptr_t)all + align) & -align);
    if (all == MAP_FAILED || mprotect(at, bytes, PROT_READ | PROT_WRITE)) {
        perror("mmap");
        exit(1);
    }
    for (size_t offset = 0; offset < bytes; offset += 8)
        *(uint64_t *)(at + offset) = next(&state) >> (offset / 8 % 4 * 16); /* small numbers and large ones */
    printf("map %p %zu\n", at, bytes);
}

static void tell(void)
{
    int (*mallctl)(const char *, void *, size_t *, void *, size_t) = dlsym(RTLD_DEFAULT, "mallctl");
    int (*property)(const char *, size_t *) = dlsym(RTLD_DEFAULT, "MallocExtension_GetNumericProperty");
    size_t value = 0, size = sizeof value;
    uint64_t epoch = 1;
    if (mallctl) {
        mallctl("epoch", NULL, NULL, &epoch, sizeof epoch);
        if (mallctl("stats.resident", &value, &size, NULL, 0) == 0)
            printf("figure resident %zu\n", value);
    }
    if (property && property("generic.heap_size", &value)) {
        size_t unmapped = 0;
        property("tcmalloc.pageheap_unmapped_bytes", &unmapped);
        printf("figure resident %zu\n", value - unmapped);
    }
}

int main(int argc, char **argv)
{
    static char output[1 << 20]; /* stdout's own buffer is not malloc'ed */
    setvbuf(stdout, output, _IOFBF, sizeof output);
    long threads = argc > 1 ? atol(argv[1]) : 4;
    pthread_barrier_init(&filled, NULL, threads + 1);
    pthread_barrier_init(&over, NULL, threads + 1);
    for (long i = 0; i < threads; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, fill, (void *)(i * 1000003)))
            return 1;
    }
    for (size_t i = 1; i <= LARGE; i++) {
        size_t bytes = i * i << 20; /* 1 to 36 MiB */
        made += bytes;
        kept += bytes;
        printf("block %p %zu\n", memset(malloc(bytes), 1, bytes), bytes);
    }
    pthread_barrier_wait(&filled);
    own_map(1 << 20, 3 << 20);
    own_map(2 << 20, 6 << 20);
    own_map(4 << 20, 4 << 20);
    own_map(32 << 20, 5 << 20);
    own_map(64 << 20, 2 << 20);
    printf("figure kept %zu\nfigure made %zu\n", kept, made);
    tell();
    puts("ready");
    fflush(stdout);
    getchar();
    return 0;
}
