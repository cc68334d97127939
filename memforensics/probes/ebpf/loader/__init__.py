"""From C source to loaded programs: compiling, maps, ring buffers, and the layouts shared with the kernel side."""
