"""Observing a process tree over time: who belongs to it, its samples, and the case that keeps them.

`TreeObserver` is what watch, diagnose, prove and ci have in common; `Recorder` keeps evidence in memory and, where
asked to, in a case file that is readable after a Ctrl-C or a SIGKILL up to the last second.
"""

import contextlib
import os
import platform
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from memforensics import __version__
from memforensics.case.model import Anchor, Case, CaseMeta, Loss, ProbeStatus, Sample, Snapshot, Target, VariantRun
from memforensics.case.store import KINDS, CaseFile
from memforensics.errors import MemforensicsError, PermissionNeeded, TargetError, TargetGone
from memforensics.probes.base import Evidence
from memforensics.target import Process, open_process
from memforensics.target.about import about as about_process
from memforensics.target.procfs import ProcFS
from memforensics.target.tree import descendants
from memforensics.units import NS_PER_S

Record = Evidence | ProbeStatus | VariantRun

minimal_target = about_process

RESCAN_SECONDS = 1.0  # how often to look for new children
RESCAN_SHARE = 0.02  # of the time at most: on hosts with very many processes the look is dear, and comes less often


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a member: it joined, left, or became another program."""

    t_ns: int
    pid: int
    what: str


@dataclass(slots=True)
class TreeObserver:
    """Samples of a process and (children) all its descendants, at a steady interval.

    `open` raises NoSuchProcess, NotATarget, PermissionNeeded. `ticks` gives the evidence of each tick and ends when the
    time is over or the root has left; `root_left` then says how. Children that cannot be read are counted as a loss.
    Clock (ns) and sleep (s) are arguments, so that a recorded /proc can be observed too.
    """

    pid: int
    children: bool = True
    interval_s: float = 0.5
    proc: ProcFS = field(default_factory=ProcFS)
    clock: Callable[[], int] = time.monotonic_ns
    sleep: Callable[[float], None] = time.sleep
    about: Callable[[Process], Target] = about_process
    members: dict[int, Process] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    root_left: str | None = None
    missed_ticks: int = 0
    _targets: dict[int, Target] = field(default_factory=dict)
    _forbidden: set[int] = field(default_factory=set)
    _next_scan_ns: int = 0

    def open(self) -> list[Record]:
        """Takes hold of the root and of the descendants there are; who they are."""
        found = self._join(open_process(self.pid, proc=self.proc), self.clock())
        return [found, *self._scan(self.clock())]

    def tick(self) -> list[Record]:
        """One Sample of each member; new members, and those that left, as Targets."""
        now = self.clock()
        found: list[Record] = self._scan(now) if now >= self._next_scan_ns else []
        for process in list(self.members.values()):
            try:
                if process.execed():
                    found.append(self._became_another(process))
                found.append(process.sample(clock=self.clock))
            except (TargetError, PermissionNeeded) as error:
                how = process.left_how()
                if how is None and isinstance(error, PermissionNeeded):
                    how = str(error)  # exec of a set-uid program: still there, no longer ours to read
                if how is not None or isinstance(error, TargetGone):
                    found.append(self._leave(process, how or "it exited"))
        return found

    def ticks(self, seconds: float | None) -> Iterator[list[Record]]:
        """The evidence of each tick, for so many seconds (None: without end). Late ticks are skipped and counted."""
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
        """What was not seen, so far."""
        found = []
        if self.missed_ticks:
            found.append(
                Loss(
                    probe="samples",
                    what="ticks missed: reading took longer than the interval",
                    count=self.missed_ticks,
                    reduce="a longer --interval",
                )
            )
        if self._forbidden:
            found.append(
                Loss(
                    probe="samples",
                    what="child processes not allowed to be read",
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
        began = time.perf_counter()
        found: list[Record] = []
        for root in (self.pid, *self._orphans()):
            for pid in descendants(root, self.proc):
                if pid in self.members or pid in self._forbidden:
                    continue
                try:
                    found.append(self._join(open_process(pid, proc=self.proc), now))
                except TargetError:
                    continue  # it left meanwhile
                except PermissionNeeded:
                    self._forbidden.add(pid)
        cost = time.perf_counter() - began
        self._next_scan_ns = now + int(max(RESCAN_SECONDS, cost / RESCAN_SHARE) * NS_PER_S)
        return found

    def _orphans(self) -> list[int]:
        """Members whose parent left the tree: their own children are no longer found below the root."""
        return [
            pid
            for pid, target in self._targets.items()
            if pid in self.members and pid != self.pid and target.ppid not in self.members
        ]

    def _join(self, process: Process, now: int) -> Target:
        self.members[process.pid] = process
        target = self.about(process)
        self._targets[process.pid] = target
        self.events.append(Event(now, process.pid, "joined"))
        return target

    def _leave(self, process: Process, how: str) -> Target:
        now = self.clock()
        process.close()
        self.members.pop(process.pid, None)
        self.events.append(Event(now, process.pid, how))
        if process.pid == self.pid:
            self.root_left = how
        target = replace(self._targets[process.pid], exited_ns=now, left_how=how)
        self._targets[process.pid] = target
        return target

    def _became_another(self, process: Process) -> Target:
        """Exec keeps the PID and the start time, and nothing else."""
        fresh = open_process(process.pid, proc=self.proc)
        process.close()
        self.members[process.pid] = fresh
        target = self.about(fresh)
        self._targets[process.pid] = target
        self.events.append(Event(self.clock(), process.pid, f"exec: it is {target.comm} now"))
        return target


# --- keeping it -------------------------------------------------------------------------------------------------------


def new_meta(command: str, root_pid: int | None, *, seed: int | None = None) -> CaseMeta:
    """The head of a new case, with both clocks read now."""
    host = os.uname()
    return CaseMeta(
        memforensics_version=__version__,
        command=command,
        anchor=Anchor(monotonic_ns=time.monotonic_ns(), wall_ns=time.time_ns()),
        root_pid=root_pid,
        seed=seed if seed is not None else random.SystemRandom().randrange(1 << 31),
        hostname=host.nodename,
        kernel=host.release,
        machine=host.machine,
        python=platform.python_version(),
    )


@dataclass(slots=True)
class Recorder:
    """Evidence in memory and, with a path, in a case file that is committed about once a second.

    In memory, older samples and snapshots thin out once there are many, so that a watch of days stays small; the file
    keeps them all. Leaving the block, by Ctrl-C too, writes what is pending.
    """

    meta: CaseMeta
    path: Path | None = None
    commit_every_s: float = 1.0
    max_samples: int = 4096  # a process
    max_snapshots: int = 16  # a process
    clock: Callable[[], int] = time.monotonic_ns
    _kept: dict[type, dict[Any, Any]] = field(default_factory=dict)
    _samples: dict[int, list[Sample]] = field(default_factory=dict)
    _snapshots: dict[int, list[Snapshot]] = field(default_factory=dict)
    _pending: list[Record] = field(default_factory=list)
    _file: CaseFile | None = None
    _committed_ns: int = 0

    def __post_init__(self) -> None:
        if self.path is not None:
            self._file = CaseFile.create(self.path, self.meta)

    def put(self, records: Iterable[Record]) -> None:
        """CaseError when the file cannot be written; memory then has it still."""
        for record in records:
            self._remember(record)
            if self._file is not None:
                self._pending.append(record)
        if self._pending and self.clock() - self._committed_ns >= self.commit_every_s * NS_PER_S:
            self.flush()

    def flush(self) -> None:
        pending, self._pending = self._pending, []
        self._committed_ns = self.clock()
        if self._file is not None and pending:
            self._file.put(pending)

    def case(self) -> Case:
        """All of it, as analysis takes it."""
        fields: dict[str, tuple[Any, ...]] = {
            KINDS[kind][1]: tuple(records.values()) for kind, records in self._kept.items()
        }
        samples = sorted((s for line in self._samples.values() for s in line), key=lambda s: s.t_ns)
        snapshots = sorted((s for line in self._snapshots.values() for s in line), key=lambda s: s.t_ns)
        return Case(meta=self.meta, samples=tuple(samples), snapshots=tuple(snapshots), **fields)

    def growth(self) -> int | None:
        """Bytes that the members have grown by since each one's first sample; None before there are two samples."""
        grown = [line[-1].growth_metric - line[0].growth_metric for line in self._samples.values() if len(line) > 1]
        return sum(grown) if grown else None

    def close(self) -> None:
        if self._file is not None:
            try:
                self.flush()
            finally:
                self._file.close()
                self._file = None

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self.close()
            return
        with contextlib.suppress(MemforensicsError):  # the first error is the one to tell
            self.close()

    def _remember(self, record: Record) -> None:
        if isinstance(record, Sample):
            _keep_thin(self._samples.setdefault(record.pid, []), record, self.max_samples)
        elif isinstance(record, Snapshot):
            _keep_thin(self._snapshots.setdefault(record.pid, []), record, self.max_snapshots)
        else:
            records = self._kept.setdefault(type(record), {})
            key = tuple(getattr(record, name) for name in KINDS[type(record)][0])
            records[key or len(records)] = record


def _keep_thin(line: list[Any], record: object, most: int) -> None:
    """Appends; when there are too many, every second one of the older half goes. The first stays for good."""
    line.append(record)
    if len(line) > most:
        half = len(line) // 2
        line[1:half] = line[2:half:2]
