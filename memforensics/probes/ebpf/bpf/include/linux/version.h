/* bcc's helpers.h compares these; no program here depends on a kernel version. */
#ifndef MEMFORENSICS_VERSION_H
#define MEMFORENSICS_VERSION_H
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 15, 0)
#endif
