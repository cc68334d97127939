"""What this host allows, and whether one process can be observed."""
