"""Real-time priority for calls that hold a lock of the target.

Reading pagemap, smaps or memory holds the target's mmap lock (fs/proc/task_mmu.c; mm/memory.c, __access_remote_vm) for
microseconds. On a busy machine the kernel may preempt us meanwhile (cond_resched in the walk), and the target cannot
map memory until we run again: 20 to 70 ms on two CPUs with three busy loops, 0.2 ms with real-time priority (measured).
So for such a call this thread joins the class SCHED_FIFO (sched(7)), which no ordinary thread preempts. Without
CAP_SYS_NICE, or in a cgroup without real-time, the call is made with the usual priority.
"""

import os
import threading
import time

_SLICE_NS = 300_000  # after it, between two calls, others get the CPU
_NONE = -1


class _RealtimePriority(threading.local):
    """Use it in a `with` around each call. One more `with` around a loop of many short calls saves most changes of
    class; such a loop must do little between the calls."""

    depth = 0
    since_ns = 0
    usual = _NONE  # the thread's class before
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


realtime_priority = _RealtimePriority()
