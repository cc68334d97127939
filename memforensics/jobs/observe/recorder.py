"""The recorder: all evidence of one observation in memory and, with a path, in a case file.

The conclusion is drawn from memory (`Recorder.case`); the file is only appended to. Without `Limits` both hold the same
records in the same order, so `memforensics report` on the file gives the same report.
"""

import contextlib
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from memforensics import __version__
from memforensics.case.model import (
    Anchor,
    Case,
    CaseMeta,
    ProbeState,
    ProbeStatus,
    Sample,
    Snapshot,
    Target,
    VariantRun,
)
from memforensics.case.store import KINDS, CaseFile
from memforensics.errors import CaseError, MemforensicsError
from memforensics.jobs.observe.tiered_samples import LEAST_PER_TIER, TieredSamples
from memforensics.jobs.targets.identity import program_name
from memforensics.probes.base import Evidence
from memforensics.units import NS_PER_S

Record = Evidence | ProbeStatus | VariantRun

_SAMPLE_BATCH, _SNAPSHOT_BATCH = 2000, 8  # how many are deleted from the file at once


def new_meta(command: str, root_pid: int | None, *, seed: int | None = None) -> CaseMeta:
    """The metadata of a new case; its anchor reads both clocks now."""
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


def probe_failed(
    name: str, error: MemforensicsError, *, pid: int = 0, status: ProbeState = "unavailable"
) -> ProbeStatus:
    """The status of a probe that stopped with this error."""
    return ProbeStatus(name=name, pid=pid, status=status, why=str(error), enable=error.enable)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a recorder that may run for weeks. All but `left_processes` are per process."""

    samples: int = 4096  # per tier of `TieredSamples`, in memory
    newest_samples: int | None = None  # in the newest tier, if more
    snapshots: int = 16
    mappings: int = 1_000_000  # in all snapshots: a process with very many mappings keeps fewer snapshots
    left_processes: int = 1_000_000  # the oldest are dropped first
    file_samples: int | None = None  # per tier, in the file; None: the file keeps every record


@dataclass(slots=True)
class Recorder:
    """Records in memory and in a case file that is committed about once a second.

    Use it in a `with` block: leaving it, also by Ctrl-C, writes what is pending. With `tolerant`, an error of the file
    (a full disk) does not end the observation: `failed` has the error and memory goes on alone.
    """

    meta: CaseMeta
    path: Path | None = None
    limits: Limits | None = None  # None: keep everything
    commit_every_s: float = 1.0
    tolerant: bool = False
    failed: CaseError | None = None
    clock: Callable[[], int] = time.monotonic_ns
    _kept: dict[type, dict[Any, Any]] = field(default_factory=dict)
    _samples: dict[int, TieredSamples[Sample]] = field(default_factory=dict)
    _snapshots: dict[int, list[Snapshot]] = field(default_factory=dict)
    _left: dict[int, None] = field(default_factory=dict)  # PIDs in the order in which they left
    _in_file: dict[int, TieredSamples[int]] = field(default_factory=dict)  # PID -> times of its samples in the file
    _dropped: dict[type, list[tuple[int, int]]] = field(default_factory=dict)  # (pid, t_ns) to delete from the file
    _pending: list[Record] = field(default_factory=list)
    _file: CaseFile | None = None
    _committed_ns: int = 0

    def __post_init__(self) -> None:
        if self.path is not None:
            self._file = CaseFile.create(self.path, self.meta)

    def put(self, records: Iterable[Record]) -> None:
        """Keeps the records. CaseError (unless `tolerant`) if the file cannot be written; memory has them then."""
        for record in records:
            self._remember(record)
            if self._file is not None:
                self._pending.append(record)
        if self._pending and self.clock() - self._committed_ns >= self.commit_every_s * NS_PER_S:
            self.flush()

    def flush(self) -> None:
        """Commits what is pending."""
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
        """All evidence in memory, for analysis."""
        fields: dict[str, tuple[Any, ...]] = {
            KINDS[kind][1]: tuple(records.values()) for kind, records in self._kept.items()
        }
        samples = sorted((s for tiers in self._samples.values() for s in tiers), key=lambda s: s.t_ns)
        snapshots = sorted((s for kept in self._snapshots.values() for s in kept), key=lambda s: s.t_ns)
        return Case(meta=self.meta, samples=tuple(samples), snapshots=tuple(snapshots), **fields)

    def growth(self) -> int | None:
        """Bytes by which the processes grew since each one's first sample; None before any has two samples."""
        sampled = [tiers for tiers in self._samples.values() if len(tiers) > 1]
        return sum(t.last.growth_metric - t.first.growth_metric for t in sampled) if sampled else None

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
        with contextlib.suppress(MemforensicsError):  # the first error is the one to report
            self.close()

    def _remember(self, record: Record) -> None:
        if isinstance(record, Sample):
            self._remember_sample(record)
        elif isinstance(record, Snapshot):
            self._remember_snapshot(record)
        else:
            records = self._kept.setdefault(type(record), {})
            key = tuple(getattr(record, name) for name in KINDS[type(record)][0]) or len(records)
            records.pop(key, None)  # a replaced record goes to the end, as in the file
            records[key] = record
            if isinstance(record, Target):
                self._remember_exit(record)

    def _remember_sample(self, sample: Sample) -> None:
        limits, seed = self.limits, self.meta.seed
        tiers = self._samples.get(sample.pid)
        if tiers is None:
            if limits is None:
                tiers = TieredSamples(LEAST_PER_TIER, newest=sys.maxsize)
            else:
                tiers = TieredSamples(limits.samples, newest=limits.newest_samples, seed=seed)
            self._samples[sample.pid] = tiers
        tiers.add(sample)
        if self._file is not None and limits is not None and limits.file_samples is not None:
            times = self._in_file.setdefault(sample.pid, TieredSamples(limits.file_samples, seed=seed))
            self._drop(Sample, sample.pid, times.add(sample.t_ns))

    def _remember_snapshot(self, snapshot: Snapshot) -> None:
        kept = self._snapshots.setdefault(snapshot.pid, [])
        kept.append(snapshot)
        while self.limits is not None and _too_many(kept, self.limits):
            self._drop(Snapshot, snapshot.pid, [kept.pop(_most_redundant(kept)).t_ns])

    def _remember_exit(self, target: Target) -> None:
        """Forgets the process that left first when too many have left: a server may fork a worker a second for
        days."""
        self._left.pop(target.pid, None)
        if target.exited_ns is None:
            return
        self._left[target.pid] = None
        while self.limits is not None and len(self._left) > self.limits.left_processes:
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
        if self._file is not None and self.limits is not None and self.limits.file_samples is not None:
            self._dropped.setdefault(kind, []).extend((pid, t_ns) for t_ns in times_ns)

    def _prune(self) -> None:
        """Deletes from the file, in batches, what memory has dropped; SQLite reuses the space."""
        if self._file is None:
            return
        for kind, batch in ((Sample, _SAMPLE_BATCH), (Snapshot, _SNAPSHOT_BATCH)):
            dropped = self._dropped.get(kind, [])
            if len(dropped) >= batch:
                self._file.drop(kind, dropped)
                self._dropped[kind] = []


def _too_many(kept: Sequence[Snapshot], limits: Limits) -> bool:
    return len(kept) > limits.snapshots or (len(kept) > 2 and sum(len(s.mappings) for s in kept) > limits.mappings)


def _most_redundant(kept: Sequence[Snapshot]) -> int:
    """The index of the snapshot whose neighbours are closest in time, so that the rest covers the whole time; never the
    first or the last."""
    return min(range(1, len(kept) - 1), key=lambda i: kept[i + 1].t_ns - kept[i - 1].t_ns)
