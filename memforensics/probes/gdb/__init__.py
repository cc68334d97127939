"""A few full stacks by GDB, with the pause measured."""
