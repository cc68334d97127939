"""Touches memory on lines with a known number. Prints "ready"; then executes one line at a time and prints "done":

own N        N new pages, written by keep_touched
kernel N     os.preadv into N new pages, by read_into
innocent N   N times: temporary allocates 60,000 bytes and frees them; leak allocates as many there and keeps them
"""

import mmap
import os
import sys

BLOCK = 60_000  # below the size from which malloc maps blocks by themselves
KEPT = []


def fresh(pages):
    KEPT.append(mmap.mmap(-1, pages * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    KEPT[-1].madvise(mmap.MADV_NOHUGEPAGE)
    return KEPT[-1]


def keep_touched(pages):
    mapped = fresh(pages)
    for offset in range(0, len(mapped), mmap.PAGESIZE):
        mapped[offset] = 1  # LINE own


def read_into(pages):
    zeros = os.open("/dev/zero", os.O_RDONLY)
    os.preadv(zeros, [fresh(pages)], 0)  # LINE kernel
    os.close(zeros)


def temporary():
    return len(b"x" * BLOCK)  # LINE temporary


def leak():
    KEPT.append(b"y" * BLOCK)  # LINE leak


def innocent(count):
    for _ in range(count):
        temporary()
        leak()


def main():
    print("ready", flush=True)
    for line in sys.stdin:
        what, count = line.split()
        {"own": keep_touched, "kernel": read_into, "innocent": innocent}[what](int(count))
        print("done", flush=True)


main()
