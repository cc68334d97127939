/* A known chain of calls that ends in read(0), to compare with the unwinder.
 *
 *   chain            main -> level_1 -> ... -> level_12 -> read
 *   thread           the same below a thread's start routine
 *   handler          main -> raises -> raise .. SIGUSR1 -> on_signal -> level_1 -> ... -> read
 *   altstack         the same with the handler on a stack of its own
 *   fault            main -> faults_at_once (stopped at its first byte) .. SIGILL -> on_signal -> level_1 -> ... -> read
 *   aligned          main -> aligned (realigns its stack, and allocates on it) -> level_1 -> ... -> read
 *   nocfi            main -> level_1 -> ... -> level_12 -> no_cfi_1 -> no_cfi_2 -> before_read -> read
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LEVEL __attribute__((noinline, noclone, noipa))

static int without_cfi;
volatile int sink;

LEVEL int before_read(int n)
{
    char room[64];
    ssize_t got = read(0, room, sizeof room);
    sink += room[0];
    return n + (int)got;
}

int no_cfi_1(int n);
int no_cfi_2(int n);

/* No .cfi directives: like hand-written assembly, and like some Rust wheels. */
__asm__(".text\n"
        ".globl no_cfi_1\n.type no_cfi_1,@function\n"
        "no_cfi_1: push %rbx\n sub $0x30,%rsp\n mov %edi,%ebx\n call no_cfi_2\n add %ebx,%eax\n"
        " add $0x30,%rsp\n pop %rbx\n ret\n.size no_cfi_1,.-no_cfi_1\n"
        ".globl no_cfi_2\n.type no_cfi_2,@function\n"
        "no_cfi_2: push %r12\n push %r13\n sub $0x108,%rsp\n lea before_read(%rip),%rax\n call *%rax\n add $1,%eax\n"
        " add $0x108,%rsp\n pop %r13\n pop %r12\n ret\n.size no_cfi_2,.-no_cfi_2\n");

LEVEL int level_12(int n)
{
    return (without_cfi ? no_cfi_1(n) : before_read(n)) + sink;
}

#define DEFINE(name, next, bytes)                  \
    LEVEL int name(int n)                          \
    {                                              \
        volatile char room[bytes];                 \
        room[0] = (char)n;                         \
        int result = next(n * 3 + 1) + room[0];    \
        sink = result;                             \
        return result ^ n;                         \
    }
DEFINE(level_11, level_12, 8)
DEFINE(level_10, level_11, 200)
DEFINE(level_9, level_10, 16)
DEFINE(level_8, level_9, 4000)
DEFINE(level_7, level_8, 24)
DEFINE(level_6, level_7, 40)
DEFINE(level_5, level_6, 56)
DEFINE(level_4, level_5, 1)
DEFINE(level_3, level_4, 96)
DEFINE(level_2, level_3, 32)
DEFINE(level_1, level_2, 8)

/* Aligned variables beside alloca: the CFA is then a word in memory, found through rbp (GCC's DRAP). */
LEVEL int aligned(int n)
{
    volatile char line[256] __attribute__((aligned(128)));
    volatile char *more = __builtin_alloca((size_t)n + 100);
    line[n] = more[n] = (char)n;
    int result = level_1(n) + line[0] + more[0];
    sink = result + line[n];
    return result;
}

static void on_signal(int number)
{
    sink = level_1(number);
}

static void *in_thread(void *argument)
{
    sink = level_1((int)(long)argument);
    return NULL;
}

LEVEL int raises(int n)
{
    raise(SIGUSR1);
    return n + sink;
}

__attribute__((naked, noinline)) void faults_at_once(void)
{
    __asm__("ud2\n ret");
}

static void handle(int number, int flags)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    action.sa_flags = flags;
    sigaction(number, &action, NULL);
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "chain";
    setvbuf(stdout, NULL, _IONBF, 0);
    puts("ready");
    if (!strcmp(mode, "handler")) {
        handle(SIGUSR1, 0);
        sink = raises(1);
    } else if (!strcmp(mode, "altstack")) {
        stack_t other = {.ss_sp = malloc(65536), .ss_size = 65536};
        sigaltstack(&other, NULL);
        handle(SIGUSR1, SA_ONSTACK);
        sink = raises(1);
    } else if (!strcmp(mode, "aligned")) {
        sink = aligned(argc);
    } else if (!strcmp(mode, "fault")) {
        handle(SIGILL, 0);
        faults_at_once();
    } else if (!strcmp(mode, "thread")) {
        pthread_t thread;
        pthread_create(&thread, NULL, in_thread, (void *)1L);
        pthread_join(thread, NULL);
    } else {
        without_cfi = !strcmp(mode, "nocfi");
        sink = level_1(argc);
    }
    return sink & 1;
}
