/* All that the programs know of a machine, except its unwind rules (unwind.bpf.h): the kernel's struct pt_regs
 * (arch/x86/include/asm/ptrace.h, arch/arm64/include/asm/ptrace.h), whose members have other names in the C library's
 * copy; the registers by their part; and the system calls that make memory resident without a fault. Never run on
 * arm64, whose kernel has no tracepoint of page faults. */
#ifndef MEMFORENSICS_PTRACE_H
#define MEMFORENSICS_PTRACE_H
#if defined(__TARGET_ARCH_arm64) || defined(__aarch64__)
#define ON_AARCH64 1
struct pt_regs {
    unsigned long long regs[31], sp, pc, pstate;
    unsigned long long orig_x0; /* a system call's result takes the place of its first argument in regs[0] */
    int syscallno;
    unsigned int unused;
};
#define USER_PC pc
#define USER_SP sp
#define USER_FP regs[29]
#define USER_G regs[28]
#define ARGUMENT_1 orig_x0
#define ARGUMENT_2 regs[1]
#define ARGUMENT_3 regs[2]
#define ARGUMENT_4 regs[3]
#define ARGUMENT_5 regs[4]
#define SYSCALL_NUMBER syscallno
#define USER_BITS 48
#define NR_MMAP 222
#define NR_MUNMAP 215
#define NR_MADVISE 233
#define NR_MLOCK 228
#define NR_MLOCK2 284
#elif defined(__x86_64__) || defined(__TARGET_ARCH_x86)
#define ON_AARCH64 0
struct pt_regs {
    unsigned long r15, r14, r13, r12, bp, bx;
    unsigned long r11, r10, r9, r8, ax, cx, dx, si, di;
    unsigned long orig_ax, ip, cs, flags, sp, ss;
};
#define USER_PC ip
#define USER_SP sp
#define USER_FP bp
#define USER_G r14
#define ARGUMENT_1 di
#define ARGUMENT_2 si
#define ARGUMENT_3 dx
#define ARGUMENT_4 r10
#define ARGUMENT_5 r8
#define SYSCALL_NUMBER orig_ax
#define USER_BITS 47
#define NR_MMAP 9
#define NR_MUNMAP 11
#define NR_MADVISE 28
#define NR_MLOCK 149
#define NR_MLOCK2 325
#else
#error "no register layout for this machine yet"
#endif
#endif
