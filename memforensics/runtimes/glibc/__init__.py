"""Readers of glibc's malloc and threads: arenas, mmapped chunks, thread stacks."""
