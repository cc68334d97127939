"""trace-mmap and trace-faults."""
