/* main -> descend, which calls itself four times and jumps (a tail call) into last -> read(0). Built with -O2 and without
 * CFI: only the jump shows how `last` was reached. */
#include <stdio.h>
#include <unistd.h>

#define FUNCTION __attribute__((noinline, noclone, noipa))

volatile int sink;

FUNCTION int last(int n)
{
    char room[64];
    sink += n;
    ssize_t got = read(0, room, sizeof room);
    sink += room[0];
    return n + (int)got;
}

FUNCTION int descend(int n)
{
    if (n == 0)
        return last(n);
    int below = descend(n - 1);
    sink += below;
    return below + n;
}

int main(int argc, char **argv)
{
    (void)argv;
    puts("ready");
    fflush(stdout);
    return descend(argc + 3) == 12345;
}
