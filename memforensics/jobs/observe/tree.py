"""Observing a process tree over time: who belongs to it, its samples, and the case that keeps them.

`TreeObserver` is what watch, diagnose, prove and ci have in common; `Recorder` keeps evidence in memory and, where
asked to, in a case file that is readable after a Ctrl-C or a SIGKILL up to the last second.
"""

import contextlib
import os
import platform
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from memforensics import __version__
from memforensics.case.model import Anchor, Case, CaseMeta, Loss, ProbeStatus, Sample, Snapshot, Target, VariantRun
from memforensics.case.store import KINDS, CaseFile
from memforensics.errors import CaseError, MemforensicsError, PermissionNeeded, TargetError, TargetGone, UnknownForm
from memforensics.jobs.observe.tiered_samples import TieredSamples
from memforensics.jobs.targets.identity import program_name
from memforensics.probes.base import Evidence
from memforensics.target import Process, open_process
from memforensics.target.about import about as about_process
from memforensics.target.procfs import ProcFS
from memforensics.target.tree import descendants, newest_pid
from memforensics.units import NS_PER_S

Record = Evidence | ProbeStatus | VariantRun

minimal_target = about_process

EVENTS_KEPT = 100
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
    rescan_share: float = RESCAN_SHARE
    members: dict[int, Process] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    root_left: str | None = None
    missed_ticks: int = 0
    _targets: dict[int, Target] = field(default_factory=dict)
    _forbidden: set[int] = field(default_factory=set)
    _unread: int = 0  # readings of another form than the kernel's
    _next_scan_ns: int = 0
    _newest_pid: bytes | None = None  # of the host, at the last scan

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
                else:
                    self._unread += isinstance(error, UnknownForm)
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
                    what="samples not taken: a reading took longer than the interval",
                    count=self.missed_ticks,
                    reduce="a longer --interval",
                )
            )
        if self._unread:
            found.append(
                Loss(
                    probe="samples",
                    what="readings of /proc that do not have its usual form",
                    count=self._unread,
                    reduce="report the kernel's version: this one writes /proc/PID/status otherwise",
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
                    continue  # it left meanwhile
                except PermissionNeeded:
                    self._forbidden.add(pid)
        cost = time.thread_time() - began
        self._next_scan_ns = now + int(max(RESCAN_SECONDS, cost / self.rescan_share) * NS_PER_S)
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
        target = replace(self.about(process), began_ns=now)
        self._targets[process.pid] = target
        self._tell(now, process.pid, "joined")
        return target

    def _leave(self, process: Process, how: str) -> Target:
        now = self.clock()
        process.close()
        self.members.pop(process.pid, None)
        self._tell(now, process.pid, how)
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
        now = self.clock()
        target = replace(self.about(fresh), began_ns=now)
        self._targets[process.pid] = target
        self._tell(now, process.pid, f"exec: it is {target.comm} now")
        return target

    def _tell(self, now: int, pid: int, what: str) -> None:
        """The newest events only: in a tree whose workers come and go for days there are very many."""
        self.events.append(Event(now, pid, what))
        if len(self.events) > 2 * EVENTS_KEPT:
            del self.events[:-EVENTS_KEPT]


FILE_SAMPLES = 600  # a process and level of thinning, in a bounded file
SAMPLES_A_BITE, SNAPSHOTS_A_BITE = 2000, 8  # taken out of it at once

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
        program=program_name(),
    )


@dataclass(slots=True)
class Recorder:
    """Evidence in memory and, with a path, in a case file that is committed about once a second.

    In memory, older samples and snapshots thin out, so that a watch of days stays small; so do processes that left,
    the oldest first, beyond `max_left`. The file keeps them all unless `bounded`: then it keeps FILE_SAMPLES a level of
    samples (`TieredSamples`) and the snapshots that memory has, and the rest is taken out now and then.
    Leaving the block, by Ctrl-C too, writes what is pending. `tolerant`: where the file cannot be written any more (a
    full disk), memory goes on alone and `failed` says why.
    """

    meta: CaseMeta
    path: Path | None = None
    commit_every_s: float = 1.0
    max_samples: int = 4096  # a process and level of thinning
    newest_samples: int | None = None  # of the newest level, where it keeps more
    max_snapshots: int = 16  # a process
    max_mappings: int = 1_000_000  # in all snapshots of a process: with very many, fewer snapshots are kept
    max_left: int = 1_000_000  # processes that left
    bounded: bool = False
    tolerant: bool = False
    failed: CaseError | None = None
    clock: Callable[[], int] = time.monotonic_ns
    _kept: dict[type, dict[Any, Any]] = field(default_factory=dict)
    _samples: dict[int, TieredSamples[Sample]] = field(default_factory=dict)
    _snapshots: dict[int, list[Snapshot]] = field(default_factory=dict)
    _left: dict[int, None] = field(default_factory=dict)  # the PIDs that left, in that order
    _in_file: dict[int, TieredSamples[int]] = field(default_factory=dict)  # times of a process's samples
    _gone: dict[type, list[tuple[int, int]]] = field(default_factory=dict)  # (pid, t_ns) to take out of the file
    _pending: list[Record] = field(default_factory=list)
    _file: CaseFile | None = None
    _committed_ns: int = 0

    def __post_init__(self) -> None:
        if self.path is not None:
            self._file = CaseFile.create(self.path, self.meta)

    def put(self, records: Iterable[Record]) -> None:
        """CaseError (unless `tolerant`) when the file cannot be written; memory then has it still."""
        for record in records:
            self._remember(record)
            if self._file is not None:
                self._pending.append(record)
        if self._pending and self.clock() - self._committed_ns >= self.commit_every_s * NS_PER_S:
            self.flush()

    def flush(self) -> None:
        pending, self._pending = self._pending, []
        self._committed_ns = self.clock()
        if self._file is None or not pending:
            return
        try:
            self._file.put(pending)
            self._prune()
        except CaseError as error:
            if not self.tolerant:
                raise
            self.failed = error
            self._file.close()
            self._file = None

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
        lines = [line for line in self._samples.values() if len(line) > 1]
        return sum(line.last.growth_metric - line.first.growth_metric for line in lines) if lines else None

    def close(self) -> None:
        if self._file is not None:
            try:
                self.flush()
            finally:
                if self._file is not None:
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
            line = self._samples.get(record.pid)
            if line is None:
                line = self._samples[record.pid] = TieredSamples(
                    self.max_samples, newest=self.newest_samples, seed=self.meta.seed
                )
            line.add(record)
            if self.bounded and self._file is not None:
                times = self._in_file.setdefault(record.pid, TieredSamples(FILE_SAMPLES, seed=self.meta.seed))
                self._drop(Sample, record.pid, times.add(record.t_ns))
        elif isinstance(record, Snapshot):
            kept = self._snapshots.setdefault(record.pid, [])
            kept.append(record)
            while _too_many(kept, self.max_snapshots, self.max_mappings):
                self._drop(Snapshot, record.pid, [kept.pop(_least_missed(kept)).t_ns])
        else:
            records = self._kept.setdefault(type(record), {})
            key = tuple(getattr(record, name) for name in KINDS[type(record)][0])
            records[key or len(records)] = record
            if isinstance(record, Target):
                self._remember_target(record)

    def _remember_target(self, target: Target) -> None:
        """Those that left long ago make room: a server may fork a worker a second for days."""
        self._left.pop(target.pid, None)
        if target.exited_ns is None:
            return
        self._left[target.pid] = None
        while len(self._left) > self.max_left:
            pid = next(iter(self._left))
            del self._left[pid]
            self._samples.pop(pid, None)
            self._drop(Sample, pid, self._in_file.pop(pid, ()))
            self._drop(Snapshot, pid, [snapshot.t_ns for snapshot in self._snapshots.pop(pid, ())])
            for kind, records in self._kept.items():
                if "pid" in KINDS[kind][0]:
                    at = KINDS[kind][0].index("pid")
                    for key in [key for key in records if key[at] == pid]:
                        del records[key]

    def _drop(self, kind: type, pid: int, times_ns: Iterable[int]) -> None:
        if self.bounded and self._file is not None:
            self._gone.setdefault(kind, []).extend((pid, t_ns) for t_ns in times_ns)

    def _prune(self) -> None:
        """Takes out of the file what is kept no longer, in large bites: SQLite uses the room again."""
        if self._file is None:
            return
        for kind, most in ((Sample, SAMPLES_A_BITE), (Snapshot, SNAPSHOTS_A_BITE)):
            gone = self._gone.get(kind, [])
            if len(gone) >= most:
                self._file.drop(kind, gone)
                self._gone[kind] = []


def _too_many(line: Sequence[Snapshot], most: int, mappings: int) -> bool:
    return len(line) > most or (len(line) > 2 and sum(len(s.mappings) for s in line) > mappings)


def _least_missed(line: Sequence[Snapshot]) -> int:
    """The one whose neighbours stand closest, so that what stays is spread over the whole time; never the first or
    the last."""
    return min(range(1, len(line) - 1), key=lambda i: line[i + 1].t_ns - line[i - 1].t_ns)
