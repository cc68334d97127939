"""Calls that hold a lock of the target, made before all ordinary work of this machine.

Reading pagemap, smaps or memory holds the target's mmap lock (fs/proc/task_mmu.c; mm/memory.c, __access_remote_vm),
for microseconds. On a busy machine the kernel may take the CPU from us right then (cond_resched in the walk), and the
target cannot map until we have it again: 20 to 70 ms were measured on two CPUs with three busy loops, 0.2 ms this way.
So for the call this thread is of the real-time class (SCHED_FIFO, sched(7)), which nothing ordinary preempts. Without
CAP_SYS_NICE, or in a cgroup without real-time, calls are made as they are.
"""

import os
import threading
import time

_SLICE_NS = 300_000  # of many calls in a row: then whoever waits for this CPU has a turn, no lock being held
_NONE = -1


class _Urgent(threading.local):
    """To be used in a `with` around each call. Around a loop of very many short calls too (each with its own), it saves
    most of the changes of class; what such a loop does between calls must be short."""

    depth = 0
    since_ns = 0
    usual = _NONE  # the thread's own class
    is_able = hasattr(os, "sched_setscheduler")

    def __enter__(self) -> None:
        self.depth += 1
        if not self.is_able:
            return
        if self.depth == 1:
            self._raise()
        elif time.monotonic_ns() - self.since_ns > _SLICE_NS:
            self._lower()
            self._raise()

    def __exit__(self, *_: object) -> None:
        self.depth -= 1
        if self.depth == 0 and self.is_able:
            self._lower()

    def _raise(self) -> None:
        try:
            if self.usual == _NONE:
                self.usual = os.sched_getscheduler(0)
                self.is_able = self.usual in (os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_IDLE)
            if self.is_able:
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
                self.since_ns = time.monotonic_ns()
        except OSError:
            self.is_able = False

    def _lower(self) -> None:
        os.sched_setscheduler(0, self.usual, os.sched_param(0))


urgent = _Urgent()
