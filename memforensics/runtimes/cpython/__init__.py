"""Reads CPython from outside: its runtime, its structures, its stacks. Nothing runs in the target."""
