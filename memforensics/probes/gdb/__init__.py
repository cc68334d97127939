"""Full stacks of a few calls by gdb, with the pauses measured."""
