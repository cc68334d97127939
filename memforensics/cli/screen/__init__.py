"""What commands show on a terminal: live screens, keys, tables, progress, and output to files."""
