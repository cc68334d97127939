/* The kernel's struct pt_regs (arch/x86/include/asm/ptrace.h, arch/arm64/include/asm/ptrace.h), whose members have
 * other names than those of the C library's copy. */
#ifndef MEMFORENSICS_PTRACE_H
#define MEMFORENSICS_PTRACE_H
#if defined(__x86_64__) || defined(__TARGET_ARCH_x86)
struct pt_regs {
    unsigned long r15, r14, r13, r12, bp, bx;
    unsigned long r11, r10, r9, r8, ax, cx, dx, si, di;
    unsigned long orig_ax, ip, cs, flags, sp, ss;
};
#else
#error "no register layout for this machine yet"
#endif
#endif
