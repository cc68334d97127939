"""Keeps blocks of exactly 1,000,003 bytes in a list, one every 20 ms, and churns others. It can import memray.

ex_python_heap.py [THREADS]    so many more threads, which wait
"""

import sys
import threading
import time

KEPT: list[bytearray] = []


def keep_a_block() -> None:
    KEPT.append(bytearray(1_000_003))


def churn() -> int:
    return sum(len(bytearray(500_009)) for _ in range(3))


def main() -> None:
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 0):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    print("ready", flush=True)
    for _ in range(1500):
        keep_a_block()
        churn()
        time.sleep(0.02)
    time.sleep(60)


main()
