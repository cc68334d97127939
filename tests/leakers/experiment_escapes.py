"""Starts processes that are hard to end, prints "ready" and sleeps: a child, and a grandchild in a session of its own,
whose parent is gone and which ignores SIGTERM and SIGHUP. Writes its own PID, the child's and the grandchild's to the
file $PIDS, in this order."""

import os
import signal
import sys
import time


def note() -> None:
    with open(os.environ["PIDS"], "a") as file:
        file.write(f"{os.getpid()}\n")


note()
noted, noting = os.pipe()
if os.fork() == 0:
    note()
    os.write(noting, b".")
    time.sleep(600)
    os._exit(0)
os.read(noted, 1)
child = os.fork()
if child == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        note()
        time.sleep(600)
    os._exit(0)
os.waitpid(child, 0)
print("ready", flush=True)
time.sleep(600)
sys.exit(0)
