"""Readers of glibc's malloc and threads: arenas, blocks with a mapping of their own, thread stacks."""
