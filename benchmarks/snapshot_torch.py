"""A Python process with torch loaded and a model of 400 MB that has served, to be read by benchmarks/snapshot.py:
snapshot_torch.py LIBRARY, where LIBRARY is snapshot_target.c as a shared library. Same commands on stdin."""

import ctypes
import sys

import torch

library = ctypes.CDLL(sys.argv[1])
layers = [torch.nn.Linear(2048, 2048) for _ in range(24)]
model = torch.nn.Sequential(*layers)
with torch.inference_mode():
    for _ in range(3):
        model(torch.randn(16, 2048))
library.begin()
print("ready", flush=True)
for line in sys.stdin:
    if line.startswith("restart"):
        library.restart()
        print("restarted", flush=True)
    else:
        library.report()
