"""What commands put on a terminal: refresh, keys, tables that settle, and where output goes."""
