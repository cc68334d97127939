"""watch: a tree of processes, looked at for as long as wanted, and judged again and again.

Made to be left running: memory is bounded (`Recorder`), and so is our CPU time: readings of sizes come each interval,
reading the mappings and judging whenever the allowance has room for it.
"""

import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from memforensics.analysis.series import Series, total_series
from memforensics.case.model import Case, CaseMeta, Diagnosis, Loss, ProbeStatus
from memforensics.errors import MemforensicsError, TargetError
from memforensics.jobs.conclude import conclude_case
from memforensics.jobs.observe import Event, Record, Recorder, TreeObserver, new_meta
from memforensics.probes.repeated import Earlier
from memforensics.probes.snapshots import take_snapshot
from memforensics.remedies.catalogue import load_catalogue
from memforensics.target import Process
from memforensics.units import NS_PER_S

Until = Literal["growing", "leak"]

SAMPLES_KEPT = 96  # a process and level of thinning, in memory
SNAPSHOTS_KEPT = 8  # a process
MAPPINGS_KEPT = 40_000  # of a process, in all its snapshots
LEFT_KEPT = 64  # processes that left
SNAPSHOT_EVERY_S = 5.0  # at the soonest
CPU_SHARE = 0.006  # of a core: the most that we take in the long run
CPU_CREDIT_S = 1.5  # CPU seconds that may be taken beyond it: the first minutes are the ones looked at
PATIENCE_S = 60.0  # a judgement and a snapshot come at least so often, whatever they cost
PATIENCE_SHARE = 0.15  # of the time seen; sooner in the beginning: at 8 s, 9 s, 10.5 s, 12 s, ...
RESCAN_SHARE = 0.002  # of the time, in looking for new children
LINE_POINTS = 160
SEEK_S = 1.0  # how often to look for a target that went and should come back


@dataclass(frozen=True, slots=True)
class WatchTick:
    """What is known at one tick. `judged` is False where the diagnosis is that of an earlier tick. `ended`: why this is
    the last one of the process."""

    elapsed_s: float
    case: Case
    diagnosis: Diagnosis
    line: tuple[int, ...]  # bytes of the growth metric over time, the whole tree
    alive: int
    events: tuple[Event, ...]  # the newest
    ended: str | None = None
    judged: bool = True


class Observer(Protocol):
    """What ticks: a TreeObserver, or a recorded case played back."""

    pid: int
    interval_s: float
    events: list[Event]
    members: dict[int, Process]
    root_left: str | None

    @property
    def clock(self) -> Callable[[], int]: ...

    def ticks(self, seconds: float | None) -> Iterator[list[Record]]: ...

    def losses(self) -> list[Loss]: ...


def watch(
    pid: int,
    *,
    children: bool = True,
    interval_s: float = 1.0,
    seconds: float | None = None,
    record: Path | None = None,
    until: Until | None = None,
    seed: int | None = None,
    again: Callable[[], int | None] | None = None,
) -> Generator[WatchTick, None, None]:
    """Ticks until the time is over, the root has left, or the verdict is reached. The last one has `ended`.

    With `again`, which gives the PID of a target that came back (None: not yet), a root that left is waited for: it is
    a new target then, with a series and (leak-2.case beside leak.case) a case of its own.
    NoSuchProcess, NotATarget, PermissionNeeded at once; CaseError when the case cannot be written.
    """
    began, life, file = time.monotonic(), 1, record
    while True:
        left = None if seconds is None else max(seconds - (time.monotonic() - began), 0.0)
        observer = TreeObserver(pid, children=children, interval_s=interval_s, rescan_share=RESCAN_SHARE)
        with observer:
            first = observer.open()
            with recorder_for(new_meta("watch", pid, seed=seed), file) as recorder:
                recorder.put(first)
                yield from watch_with(observer, recorder, seconds=left, until=until)
        if again is None or observer.root_left is None:
            return
        while (found := again()) is None:
            if seconds is not None and time.monotonic() - began >= seconds:
                return
            time.sleep(SEEK_S)
        pid, life = found, life + 1
        file = record.with_name(f"{record.stem}-{life}{record.suffix}") if record is not None else None


def recorder_for(meta: CaseMeta, path: Path | None, *, clock: Callable[[], int] = time.monotonic_ns) -> Recorder:
    """A Recorder that may run for weeks."""
    return Recorder(
        meta,
        path,
        max_samples=SAMPLES_KEPT,
        max_snapshots=SNAPSHOTS_KEPT,
        max_mappings=MAPPINGS_KEPT,
        max_left=LEFT_KEPT,
        bounded=True,
        clock=clock,
    )


def watch_with(
    observer: Observer,
    recorder: Recorder,
    *,
    seconds: float | None = None,
    until: Until | None = None,
    cpu: Callable[[], float] = time.process_time,
) -> Generator[WatchTick, None, None]:
    """The same of an observer that is open, on its clock. `cpu`: the CPU seconds that we have used."""
    yield from _Watch(observer, recorder, cpu).run(seconds, until)


@dataclass(slots=True)
class _Allowance:
    """Of our own CPU time: a share of the time that passes, and a credit at the start."""

    clock: Callable[[], int]
    cpu: Callable[[], float]
    began_ns: int = field(init=False)
    cpu_began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began_ns, self.cpu_began = self.clock(), self.cpu()

    def has_room(self) -> bool:
        passed = (self.clock() - self.began_ns) / NS_PER_S
        return self.cpu() - self.cpu_began <= CPU_CREDIT_S + CPU_SHARE * passed


class _Watch:
    def __init__(self, observer: Observer, recorder: Recorder, cpu: Callable[[], float]) -> None:
        self.observer, self.recorder = observer, recorder
        self.catalogue = load_catalogue()
        self.began_ns = observer.clock()
        self.allowance = _Allowance(observer.clock, cpu)
        self.next_snapshot_ns = self.snapshot_overdue_ns = 0
        self.judging_overdue_ns = 0
        self.earlier: defaultdict[int, Earlier] = defaultdict(Earlier)  # of each member's snapshots
        self.diagnosis: Diagnosis | None = None

    def run(self, seconds: float | None, until: Until | None) -> Generator[WatchTick, None, None]:
        for records in self.observer.ticks(seconds):
            self.recorder.put(records)
            if self.observer.root_left is not None:
                break
            now = self.observer.clock()
            if now >= self.next_snapshot_ns and (now >= self.snapshot_overdue_ns or self.allowance.has_room()):
                self._snapshot(now)
            tick = self._tick(judge=now >= self.judging_overdue_ns or self.allowance.has_room())
            if until is not None and tick.judged and tick.diagnosis.verdict in ("leak", until):
                self.recorder.put(self.observer.losses())
                yield self._tick(ended=f"the verdict is {tick.diagnosis.verdict}")
                return
            yield tick
        self.recorder.put(self.observer.losses())
        left = self.observer.root_left
        yield self._tick(ended=f"process {self.observer.pid}: {left}" if left else "the time is over")

    def _tick(self, *, judge: bool = True, ended: str | None = None) -> WatchTick:
        case, now = self.recorder.case(), self.observer.clock()
        judged = judge or self.diagnosis is None
        if self.diagnosis is None or judged:
            self.diagnosis = conclude_case(case, self.catalogue)
            self.judging_overdue_ns = now + self._patience_ns(now)
        return WatchTick(
            elapsed_s=(now - self.began_ns) / NS_PER_S,
            case=case,
            diagnosis=self.diagnosis,
            line=_evenly(total_series(case.samples)),
            alive=len(self.observer.members),
            events=tuple(self.observer.events),
            ended=ended,
            judged=judged,
        )

    def _snapshot(self, now: int) -> None:
        for process in list(self.observer.members.values()):
            found: list[Record]
            try:
                snapshot, losses = take_snapshot(process, earlier=self.earlier[process.pid])
                found = [snapshot, *losses]
            except TargetError:
                continue  # the next tick tells how it left
            except MemforensicsError as error:
                found = [
                    ProbeStatus(
                        name="snapshots", pid=process.pid, status="partial", why=str(error), enable=error.enable
                    )
                ]
            self.recorder.put(found)
        for gone in self.earlier.keys() - self.observer.members.keys():
            del self.earlier[gone]
        self.next_snapshot_ns = now + int(max(SNAPSHOT_EVERY_S, self.observer.interval_s) * NS_PER_S)
        self.snapshot_overdue_ns = now + self._patience_ns(now)

    def _patience_ns(self, now: int) -> int:
        return min(int(PATIENCE_SHARE * (now - self.began_ns)), int(PATIENCE_S * NS_PER_S))


def _evenly(line: Series) -> tuple[int, ...]:
    """Its values at LINE_POINTS even times: older samples are thinned, and would take too little room of a picture."""
    if len(line.values) < 3:
        return line.values
    begin, end = line.times_s[0], line.times_s[-1]
    count = min(LINE_POINTS, len(line.values))
    times = [begin + (end - begin) * i / (count - 1) for i in range(count)]
    return tuple(line.values[max(bisect_right(line.times_s, t) - 1, 0)] for t in times)
