"""Which process is meant, and who it is."""
