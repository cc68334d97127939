"""Page faults by hybrid stack (trace-faults)."""
