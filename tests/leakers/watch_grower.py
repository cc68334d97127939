"""Grows at a known rate of touched private anonymous memory, in one of several ways, and prints its own figures.

watch_grower.py KIND MIB_PER_MINUTE [SECONDS]
KIND: leak      keeps every chunk
      flat      touches 32 MiB once and waits
      saw       grows at the rate and frees everything every 1.5 s
      fill      grows at the rate for 3 s, then stops
      parent    is flat itself; a child is `leak`
      exec      becomes `leak` by exec after a second
      short     is `flat` and ends after 2 s
      late      is `flat` for SECONDS, then `leak`
      told      is `flat` and ends on a line of stdin
"""

import mmap
import os
import subprocess
import sys
import time

CHUNK = 256 * 1024


def take() -> mmap.mmap:
    """256 KiB of private anonymous memory, every page touched."""
    block = mmap.mmap(-1, CHUNK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.write(b"\x01" * CHUNK)
    return block


def grow(rate_bytes_per_s: float, *, back_after_s: float = 0.0, stop_after_s: float = 0.0) -> None:
    kept: list[mmap.mmap] = []
    began = time.monotonic()
    while True:
        passed = time.monotonic() - began
        if back_after_s and passed > back_after_s:
            for block in kept:
                block.close()
            kept.clear()
            began, passed = time.monotonic(), 0.0
        while len(kept) * CHUNK < rate_bytes_per_s * (min(passed, stop_after_s) if stop_after_s else passed):
            kept.append(take())
        time.sleep(0.02)


def main() -> None:
    kind, rate = sys.argv[1], float(sys.argv[2]) * 1024 * 1024 / 60
    base = [take() for _ in range(128)]
    child = None
    if kind == "parent":
        child = subprocess.Popen([sys.executable, __file__, "leak", sys.argv[2]], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        child.stdout.readline()
        print(f"ready {child.pid}", flush=True)
    else:
        print(f"ready {os.getpid()}", flush=True)
    if kind == "leak":
        grow(rate)
    elif kind == "late":
        time.sleep(float(sys.argv[3]))
        print("leaks", flush=True)
        grow(rate)
    elif kind == "saw":
        grow(rate, back_after_s=1.5)
    elif kind == "fill":
        grow(rate, stop_after_s=3.0)
    elif kind == "exec":
        time.sleep(1.0)
        os.execv(sys.executable, [sys.executable, __file__, "leak", sys.argv[2]])
    elif kind == "short":
        time.sleep(2.0)
        return
    elif kind == "told":
        sys.stdin.readline()
        return
    while True:
        time.sleep(1.0)
        assert base


if __name__ == "__main__":
    main()
