/* A malloc'ed block within other memory that the kernel has merged with it.
 *
 *   own_merged BLOCK ABOVE BELOW STYLE
 *
 * malloc(BLOCK) with ABOVE bytes of other memory directly above, then "ready". Each line on stdin that says "below" maps
 * BELOW more bytes directly under the lowest so far; "divide" gives all of the block but its first page an advice, which
 * divides the mapping (numpy does so for huge pages, RDMA for fork); "replace" frees the block and maps other memory in its place. All
 * is touched. STYLE is what other memory holds: "ones", or "numbers" that resemble the header of such a block
 * at the beginning of each page: 0, and numbers that rise by 1.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096 };
static int numbers;
static uint64_t next = 65536;

static void check(int ok, const char *what)
{
    if (!ok) {
        perror(what);
        exit(1);
    }
}

static void fill(char *at, size_t bytes)
{
    for (uint64_t *page = (uint64_t *)at; (char *)page < at + bytes; page += PAGE / sizeof *page) {
        page[0] = !numbers;
        page[1] = numbers ? next++ : 1;
    }
}

int main(int argc, char **argv)
{
    check(argc == 5, "arguments");
    size_t block = strtoull(argv[1], NULL, 0), above = strtoull(argv[2], NULL, 0), below = strtoull(argv[3], NULL, 0);
    size_t hole = block + PAGE, room = (size_t)4 << 30;
    numbers = strcmp(argv[4], "numbers") == 0;

    /* the only gap of just that size, so malloc's mmap comes to lie in it */
    char *reserved = mmap(NULL, room + hole + above + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(reserved != MAP_FAILED, "mmap");
    char *lowest = reserved + room;
    check(munmap(lowest, hole) == 0, "munmap");
    char *user = malloc(block);
    check(user == lowest + 16, "malloc elsewhere");
    memset(user, 1, block);
    if (above) {
        check(mprotect(lowest + hole, above, PROT_READ | PROT_WRITE) == 0, "mprotect");
        fill(lowest + hole, above);
    }
    char *start = lowest, line[32];
    for (;;) {
        puts("ready");
        fflush(stdout);
        if (!fgets(line, sizeof line, stdin))
            return 0;
        if (strncmp(line, "below", 5) == 0) {
            lowest -= below;
            check(lowest >= reserved && mprotect(lowest, below, PROT_READ | PROT_WRITE) == 0, "mprotect");
            fill(lowest, below);
        } else if (strncmp(line, "divide", 6) == 0) {
            check(madvise(start + PAGE, block, MADV_DONTFORK) == 0, "madvise");
        } else {
            free(user);
            check(mmap(start, hole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == start,
                  "mmap");
            fill(start, hole);
        }
    }
}
