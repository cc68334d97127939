/* The rounding that bcc's BPF_PERF_OUTPUT tables use. */
#ifndef MEMFORENSICS_LOG2_H
#define MEMFORENSICS_LOG2_H
static inline __attribute__((always_inline)) unsigned long roundup_pow_of_two(unsigned long value)
{
    return value <= 1 ? 1 : 1UL << (64 - __builtin_clzl(value - 1));
}
#endif
