"""Outstanding mappings by hybrid stack (trace-mmap)."""
