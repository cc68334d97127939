"""A service: 500 requests a second, each maps 2 MiB, fills it by numpy and computes a little. Prints served requests
and the CPU seconds that they took, four times a second. Too slow for that rate: late requests are not owed."""

import mmap
import time

import numpy as np

SIZE = 2 << 20
RATE = 500.0
LONGEST_DEBT = int(RATE / 10)
weights = np.ones((64, 64))


def handle() -> None:
    memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    array = np.frombuffer(memory, dtype=np.float64)
    array[:] = 1.0
    array[:4096].reshape(64, 64) @ weights
    del array
    memory.close()


served, began, report = 0, time.monotonic(), 0.0
while True:
    now = time.monotonic()
    owed = int((now - began) * RATE) - served
    if owed > LONGEST_DEBT:
        began += (owed - LONGEST_DEBT) / RATE
    if owed > 0:
        handle()
        served += 1
    if now >= report:
        print(f"served {served} failed 0 at {now:.6f} cpu {time.process_time():.6f}", flush=True)
        report = now + 0.25
    if owed <= 0:
        time.sleep(0.001)
