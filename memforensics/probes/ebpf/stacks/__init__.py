"""Stacks walked in the kernel: the unwind rules it asks for, and Python frames."""
