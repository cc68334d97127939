"""Pure functions on the case model: no OS access, no clock, no I/O. The same case gives the same words, anywhere."""
