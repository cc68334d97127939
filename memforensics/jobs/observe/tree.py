"""A process tree that is observed over time: its members and their samples, at a steady interval.

watch, diagnose, prove, ci and the tracers share it.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from memforensics.case.model import Loss, Target
from memforensics.errors import PermissionNeeded, TargetError, TargetGone, UnknownForm
from memforensics.jobs.observe.recorder import Record
from memforensics.target import Process, open_process
from memforensics.target.describe import describe
from memforensics.target.procfs import ProcFS
from memforensics.target.tree import descendants, newest_pid
from memforensics.units import NS_PER_S

EVENTS_KEPT = 100
RESCAN_S = 1.0  # between two scans for new children
RESCAN_SHARE = 0.02  # of the time at most: with very many processes a scan is expensive, and is made less often


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a member: it joined, left, or became another program."""

    t_ns: int
    pid: int
    what: str


@dataclass(slots=True)
class TreeObserver:
    """Samples a process and (`children`) all its descendants at a steady interval.

    `open` raises NoSuchProcess, NotATarget, PermissionNeeded. `ticks` yields the records of each tick and ends when the
    time is over or the root has left; `root_left` then says how. A child that cannot be read counts as a loss.
    Clock (ns) and sleep (s) are arguments, so that a test can observe a recorded /proc.
    """

    pid: int
    children: bool = True
    interval_s: float = 0.5
    proc: ProcFS = field(default_factory=ProcFS)
    clock: Callable[[], int] = time.monotonic_ns
    sleep: Callable[[float], None] = time.sleep
    about: Callable[[Process], Target] = describe
    rescan_share: float = RESCAN_SHARE
    members: dict[int, Process] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    root_left: str | None = None
    missed_ticks: int = 0
    _targets: dict[int, Target] = field(default_factory=dict)
    _forbidden: set[int] = field(default_factory=set)
    _malformed: int = 0  # reads of /proc that did not parse
    _next_scan_ns: int = 0
    _newest_pid: bytes | None = None  # of the host, at the last scan

    def open(self) -> list[Record]:
        """Opens the root and its present descendants; their Targets."""
        found = self._join(open_process(self.pid, proc=self.proc), self.clock())
        return [found, *self._scan(self.clock())]

    def tick(self) -> list[Record]:
        """A Sample of each member, and the Target of each that joined or left."""
        now = self.clock()
        found: list[Record] = self._scan(now) if now >= self._next_scan_ns else []
        for process in list(self.members.values()):
            try:
                if process.execed():
                    found.append(self._executed(process))
                found.append(process.sample(clock=self.clock))
            except (TargetError, PermissionNeeded) as error:
                how = process.left_how()
                if how is None and isinstance(error, PermissionNeeded):
                    how = str(error)  # it executed a set-uid program: still there, but not readable
                if how is not None or isinstance(error, TargetGone):
                    found.append(self._leave(process, how or "it exited"))
                else:
                    self._malformed += isinstance(error, UnknownForm)
        return found

    def ticks(self, seconds: float | None) -> Iterator[list[Record]]:
        """The records of each tick for `seconds` (None: without end). Late ticks are skipped and counted."""
        interval_ns = max(int(self.interval_s * NS_PER_S), 1)
        begin = due = self.clock()
        while self.root_left is None:
            yield self.tick()
            now = self.clock()
            if seconds is not None and now - begin >= seconds * NS_PER_S:
                return
            due += interval_ns
            if now > due:
                missed = (now - due) // interval_ns + 1
                self.missed_ticks += missed
                due += missed * interval_ns
            pause = (due - now) / NS_PER_S
            if seconds is not None:
                pause = min(pause, max(seconds - (now - begin) / NS_PER_S, 0.0))
            self.sleep(pause)

    def losses(self) -> list[Loss]:
        """What was not seen so far."""
        found = []
        if self.missed_ticks:
            found.append(
                Loss(
                    probe="samples",
                    what="samples skipped: reading took longer than the interval",
                    count=self.missed_ticks,
                    reduce="a longer --interval",
                )
            )
        if self._malformed:
            found.append(
                Loss(
                    probe="samples",
                    what="reads of /proc that could not be parsed",
                    count=self._malformed,
                    reduce="report the kernel version: its /proc/PID/status has another format",
                )
            )
        if self._forbidden:
            found.append(
                Loss(
                    probe="samples",
                    what="child processes that may not be read",
                    count=len(self._forbidden),
                    reduce="run as root, or grant CAP_SYS_PTRACE",
                )
            )
        return found

    def close(self) -> None:
        for process in self.members.values():
            process.close()
        self.members.clear()

    def __enter__(self) -> "TreeObserver":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _scan(self, now: int) -> list[Record]:
        if not self.children:
            self._next_scan_ns = 1 << 62
            return []
        newest = newest_pid(self.proc)
        if newest is not None and newest == self._newest_pid:
            return []
        self._newest_pid = newest
        began = time.thread_time()
        found: list[Record] = []
        for root in (self.pid, *self._orphans()):
            for pid in descendants(root, self.proc):
                if pid in self.members or pid in self._forbidden or pid == os.getpid():
                    continue
                try:
                    found.append(self._join(open_process(pid, proc=self.proc), now))
                except TargetError:
                    continue  # it has left
                except PermissionNeeded:
                    self._forbidden.add(pid)
        cost = time.thread_time() - began
        self._next_scan_ns = now + int(max(RESCAN_S, cost / self.rescan_share) * NS_PER_S)
        return found

    def _orphans(self) -> list[int]:
        """Members whose parent has left: a scan from the root does not reach their children."""
        return [
            pid
            for pid, target in self._targets.items()
            if pid in self.members and pid != self.pid and target.ppid not in self.members
        ]

    def _join(self, process: Process, now: int) -> Target:
        self.members[process.pid] = process
        target = replace(self.about(process), began_ns=now)
        self._targets[process.pid] = target
        self._add_event(now, process.pid, "joined")
        return target

    def _leave(self, process: Process, how: str) -> Target:
        now = self.clock()
        process.close()
        self.members.pop(process.pid, None)
        self._add_event(now, process.pid, how)
        if process.pid == self.pid:
            self.root_left = how
        target = replace(self._targets[process.pid], exited_ns=now, left_how=how)
        self._targets[process.pid] = target
        return target

    def _executed(self, process: Process) -> Target:
        """The new Target after exec, which keeps only the PID and the start time."""
        fresh = open_process(process.pid, proc=self.proc)
        process.close()
        self.members[process.pid] = fresh
        now = self.clock()
        target = replace(self.about(fresh), began_ns=now)
        self._targets[process.pid] = target
        self._add_event(now, process.pid, f"executed {target.comm}")
        return target

    def _add_event(self, now: int, pid: int, what: str) -> None:
        """Keeps only the newest events: workers may come and go for days."""
        self.events.append(Event(now, pid, what))
        if len(self.events) > 2 * EVENTS_KEPT:
            del self.events[:-EVENTS_KEPT]
