"""The case: what was observed (model), and the file that keeps it (store)."""
