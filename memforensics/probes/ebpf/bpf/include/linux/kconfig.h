/* bcc includes this first of all (its clang driver passes -include linux/kconfig.h). A real tree configures the kernel
 * here; programs that touch no kernel structure need only the basic types. */
#ifndef MEMFORENSICS_KCONFIG_H
#define MEMFORENSICS_KCONFIG_H

#define CONFIG_BPF_SYSCALL 1

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char s8;
typedef short s16;
typedef int s32;
typedef long long s64;
typedef unsigned long size_t;
typedef unsigned long uintptr_t;
typedef _Bool bool;

#define true 1
#define false 0
#ifndef NULL
#define NULL ((void *)0)
#endif

#endif
