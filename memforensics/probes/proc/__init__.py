"""Snapshots of mappings from /proc, and recognition of who owns each."""
