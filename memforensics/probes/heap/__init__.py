"""The heap: outstanding allocations, and references to them."""
