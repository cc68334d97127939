/* A program for aarch64 whose calls are all known. It has no C library, so that all of its code is in this file.
 *
 *   _start -> begin -> bare (no unwind table) -> middle -> faults .. SIGSEGV -> on_signal -> above -> leaf
 *
 * tests/fixtures/record_aarch64.py says how it is compiled and recorded.
 */
#define APART __attribute__((noinline, noclone, noipa))
typedef unsigned long word;

volatile word sink;

__asm__(".text\n"
        ".globl _start\n.type _start,%function\n"
        "_start: .cfi_startproc\n .cfi_undefined x30\n mov x29, #0\n mov x30, #0\n bl begin\n mov x8, #93\n svc #0\n"
        ".cfi_endproc\n.size _start,.-_start\n"
        /* with a frame record at the bottom of its frame, as GCC makes them, and no table */
        ".globl bare\n.type bare,%function\n"
        "bare: paciasp\n stp x29, x30, [sp, #-64]!\n mov x29, sp\n str x19, [sp, #16]\n mov x19, x0\n blr x1\n"
        " add x0, x0, x19\n ldr x19, [sp, #16]\n ldp x29, x30, [sp], #64\n autiasp\n ret\n.size bare,.-bare\n"
        ".globl faults\n.type faults,%function\n"
        "faults: .cfi_startproc\n bti c\n mov x2, #0\n ldr x2, [x2]\n add x0, x0, x2\n ret\n.cfi_endproc\n"
        ".size faults,.-faults\n");

word bare(word n, word (*next)(word));
word faults(word n);

static word call(word number, word a, word b, word c, word d)
{
    register word x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b;
    register word x2 __asm__("x2") = c, x3 __asm__("x3") = d;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
}

APART word leaf(word n)
{
    return call(172, n, 0, 0, 0) | 1; /* getpid */
}

APART word above(word n)
{
    volatile word room[24];
    room[n & 7] = n;
    return leaf(n) + room[0];
}

void on_signal(int number, void *info, word *context)
{
    sink = above((word)number);
    context[22 + 1 + 2] = (word)&sink; /* uc_mcontext: x2 */
}

APART word middle(word n)
{
    volatile char *room = __builtin_alloca(n * 16); /* its CFA is by x29 */
    room[0] = (char)n;
    return faults(n) + room[0];
}

word begin(void)
{
    struct {
        void *handler;
        word flags, restorer, mask;
    } action = {(void *)on_signal, 4, 0, 0}; /* SA_SIGINFO */
    call(134, 11, (word)&action, 0, 8);      /* rt_sigaction */
    return bare(3, middle) + sink;
}
