/* The real <linux/bpf.h> of the C library's kernel headers, or nothing: bcc carries its own copy (virtual_bpf.h). */
