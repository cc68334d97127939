"""The choice of a target process, and its identity."""
