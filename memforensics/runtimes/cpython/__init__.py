"""CPython from outside: where its runtime is, what its structures look like, its stacks. Nothing runs in the target."""
