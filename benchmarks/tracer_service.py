"""A service: 500 requests a second, each maps 2 MiB, fills it by numpy and computes a little. Prints served requests
and the CPU seconds that they took, four times a second."""

import mmap
import time

import numpy as np

SIZE = 2 << 20
RATE = 500.0
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
    due = int((time.monotonic() - began) * RATE)
    while served < due:
        handle()
        served += 1
    now = time.monotonic()
    if now >= report:
        print(f"served {served} failed 0 at {now:.6f} cpu {time.process_time():.6f}", flush=True)
        report = now + 0.25
    time.sleep(0.001)
