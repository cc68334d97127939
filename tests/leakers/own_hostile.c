/* Memory that looks like what recognisers look for, and leads them astray; then "ready": own_hostile SEED.
 *
 * Headers of glibc's arenas in a circle, blocks of malloc that reach beyond everything, descriptors of threads that are
 * none; a trie of jemalloc's and a table of Go's that know one true address, and beside it as many false ones as there is
 * room for: pointers to themselves, to what is not mapped, to the end of the address space. The rest are words that point
 * anywhere in it.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#define MIB (1UL << 20)
#define ROOM (256 * MIB) /* at a multiple of 64 MiB */

static uint64_t state, statics[4 * MIB / 8];
static char *room;

static uint64_t next(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static uint64_t anything(void)
{
    switch (next() % 8) {
    case 0:
        return (uint64_t)statics + next() % sizeof statics / 8 * 8;
    case 1:
        return (1UL << 47) - 16 * (next() % 4096 + 1);
    case 2:
        return next() % 5000;
    case 3:
        return next() % 64 * 4096 + 2;
    case 4:
        return next();
    default:
        return (uint64_t)room + next() % ROOM / 16 * 16;
    }
}

static void fill(void *at, size_t bytes)
{
    for (uint64_t *word = at, *end = word + bytes / 8; word < end; word++)
        *word = anything();
}

static void arenas(char *at)
{
    for (int i = 0; i < 2; i++) {
        uint64_t *head = (uint64_t *)(at + i * 64 * MIB);
        head[0] = (uint64_t)at + 64 * MIB * (1 - i) + 0x30;
        head[1] = (uint64_t)at + 64 * MIB * (1 - i);
        head[2] = head[3] = 64 * MIB;
    }
}

static void blocks(char *at, size_t bytes)
{
    for (size_t offset = 0; offset < bytes; offset += 4096) {
        uint64_t *head = (uint64_t *)(at + offset);
        head[0] = 0;
        head[1] = (next() % 2 ? next() % 4096 : next() % (1UL << 40)) * 4096 + 2;
    }
}

static void descriptors(char *at, size_t bytes)
{
    for (size_t offset = 0; offset < bytes; offset += 4096) {
        uint64_t *head = (uint64_t *)(at + offset);
        head[0] = head[2] = (uint64_t)head;
    }
}

static void trie(char *known, uint64_t *leaf, uint64_t *record)
{
    uint64_t *root = statics + 1024, *first = root + ((uint64_t)known >> 30);
    for (uint64_t *slot = statics; slot < statics + sizeof statics / 8; slot++)
        *slot = slot < first ? 0 : next() % 2 ? (uint64_t)leaf : anything();
    *first = (uint64_t)leaf;
    leaf[(uint64_t)known >> 12 & 0x3FFFF] = (uint64_t)record;
    record[1] = (uint64_t)known;
    record[2] = 4096;
}

static void go(uint64_t *table, uint64_t *arena, uint64_t *span)
{
    for (size_t slot = 3 * MIB; slot < 4 * MIB; slot += 16)
        table[slot] = next() % 2 ? (uint64_t)arena : anything();
    table[((uint64_t)room + (1UL << 47)) / (64 * MIB)] = (uint64_t)arena;
    for (int i = 0; i < 8192; i++)
        arena[i] = (uint64_t)span;
    span[3] = (uint64_t)room;
    span[4] = 1UL << 12;
    statics[1024] = (uint64_t)table;
}

int main(int argc, char **argv)
{
    state = 88172645463325252ULL + (argc > 1 ? strtoul(argv[1], NULL, 10) : 0) * 1000003;
    char *all = mmap(NULL, ROOM + 64 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    room = (char *)(((uint64_t)all + 64 * MIB) & -(64 * MIB));
    if (all == MAP_FAILED || mprotect(room, ROOM - 64 * MIB, PROT_READ | PROT_WRITE)) {
        perror("mmap");
        return 1;
    }
    fill(room, 16 * MIB);
    arenas(room);
    blocks(room + 16 * MIB, 4 * MIB);
    descriptors(room + 20 * MIB, MIB);
    trie(room + 24 * MIB, (uint64_t *)(room + 26 * MIB), (uint64_t *)(room + 25 * MIB));
    go((uint64_t *)(room + 96 * MIB), (uint64_t *)(room + 32 * MIB), (uint64_t *)(room + 25 * MIB + 4096));
    if (mprotect(room + 8 * MIB, MIB, PROT_NONE)) /* a guard, as below a stack */
        return 1;
    puts("ready");
    fflush(stdout);
    getchar();
    return 0;
}
