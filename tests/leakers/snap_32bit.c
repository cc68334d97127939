/* A 32-bit program without a library, so that it builds without a 32-bit libc (-m32 -nostdlib -static). It touches 50
   pages of .bss, prints "ready" and waits for a line. */
static int call(int number, int a, int b, int c)
{
    int result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
    return result;
}

static volatile char data[50 * 4096] __attribute__((aligned(4096)));

void _start(void)
{
    char line;
    for (unsigned at = 0; at < sizeof data; at += 4096)
        data[at] = 1;
    call(4, 1, (int)"ready\n", 6);
    call(3, 0, (int)&line, 1);
    call(1, 0, 0, 0);
}
