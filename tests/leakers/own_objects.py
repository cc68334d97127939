"""Fills CPython's object allocator: argv[1] objects of 100 bytes, then "ready". Each line of stdin adds as many."""

import sys

kept = []
while True:
    kept += [bytes(67) for _ in range(int(sys.argv[1]))]  # 33 bytes of header: 100, in blocks of 112
    print("ready", flush=True)
    if not sys.stdin.readline():
        break
