"""watch: observes a process tree for as long as wanted and judges it again and again.

It is made to be left running: its memory is bounded (`Limits`), and so is its CPU time (`pacing`). Each interval reads
sizes only; mappings are read, and the verdict is formed, when the CPU allowance has room. Each tick says how old they
are.
"""

import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Literal, Protocol

from memforensics.analysis.diagnosis import AnalysisCache
from memforensics.analysis.series import Series, total_series
from memforensics.case.model import Case, CaseMeta, Diagnosis, Loss, Sample, Snapshot, Target
from memforensics.case.views import Ages, WatchTick
from memforensics.errors import MemforensicsError, TargetError
from memforensics.jobs.case.conclude import conclude_case
from memforensics.jobs.observe.recorder import Limits, Record, Recorder, new_meta, probe_failed
from memforensics.jobs.observe.tree import Event, TreeObserver
from memforensics.jobs.watch.cause import CauseSearch
from memforensics.jobs.watch.pacing import CpuAllowance, PacedTask
from memforensics.probes.proc.snapshot_cache import SnapshotCache
from memforensics.probes.proc.snapshots import take_snapshot
from memforensics.remedies.catalogue import Catalogue, load_catalogue
from memforensics.target import Process
from memforensics.units import NS_PER_S

Until = Literal["growing", "leak"]

LIMITS = Limits(
    samples=96,
    newest_samples=192,  # three minutes in full at 1 s, which show the beginning of a leak
    snapshots=8,
    mappings=40_000,
    left_processes=64,
    file_samples=600,
)
SNAPSHOT_INTERVAL_S = 5.0, 15.0  # the shortest: at the start, and later
VERDICT_INTERVAL_S = 0.5, 10.0
UNDELAYED_VERDICTS_S = 60.0  # the first seconds, in which a verdict is never delayed
COMMIT_EVERY_S = 2.0  # to the case file
RESCAN_SHARE = 0.001  # of the time, in scans for new children
LINE_POINTS = 160
RESTART_POLL_S = 1.0  # between two searches for a target that exited and should restart


class Observer(Protocol):
    """The source of ticks: a TreeObserver, or a recorded case that is played back."""

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
    search: bool = False,
    seed: int | None = None,
    find_restarted: Callable[[], int | None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
    stop: Callable[[], bool] = lambda: False,
    catalogue: Catalogue | None = None,
) -> Generator[WatchTick, None, None]:
    """Ticks until the time is over, the root has left, the verdict is reached, or `stop` says so. The last tick has
    `ended`.

    `search`: if the tree grows, search for the cause too (`CauseSearch`), because growth alone never proves a leak.
    `find_restarted` returns the PID of a restarted target (None: not yet). With it, a root that left is waited for; it
    is then a new target with a series of its own, and a case file of its own (leak-2.case next to leak.case).
    NoSuchProcess, NotATarget, PermissionNeeded at once; CaseError if no case file can be made. A file that cannot be
    written later, on a full disk, ends there; the ticks say so (`record_ended`).
    """
    began, run, file = time.monotonic(), 1, record
    while True:
        left = None if seconds is None else max(seconds - (time.monotonic() - began), 0.0)
        observer = TreeObserver(pid, children=children, interval_s=interval_s, rescan_share=RESCAN_SHARE, sleep=sleep)
        with observer:
            first = observer.open()
            with recorder_for(new_meta("watch", pid, seed=seed), file) as recorder:
                recorder.put(first)
                causes = CauseSearch(pid, children=children) if search else None
                yield from watch_with(
                    observer, recorder, seconds=left, until=until, search=causes, stop=stop, catalogue=catalogue
                )
        if find_restarted is None or observer.root_left is None:
            return
        while (found := find_restarted()) is None:
            if stop() or (seconds is not None and time.monotonic() - began >= seconds):
                return
            sleep(RESTART_POLL_S)
        pid, run = found, run + 1
        file = record.with_name(f"{record.stem}-{run}{record.suffix}") if record is not None else None


def recorder_for(meta: CaseMeta, path: Path | None, *, clock: Callable[[], int] = time.monotonic_ns) -> Recorder:
    """A Recorder that may run for weeks."""
    return Recorder(
        meta,
        path,
        LIMITS,
        commit_every_s=COMMIT_EVERY_S,
        tolerant=True,
        clock=clock,
    )


def watch_with(
    observer: Observer,
    recorder: Recorder,
    *,
    seconds: float | None = None,
    until: Until | None = None,
    search: CauseSearch | None = None,
    cpu: Callable[[], float] = time.process_time,
    stop: Callable[[], bool] = lambda: False,
    catalogue: Catalogue | None = None,
) -> Generator[WatchTick, None, None]:
    """`watch` on an open observer, by its clock. `cpu`: the CPU seconds that we have used."""
    running = _Watch(observer, recorder, search, cpu, catalogue or load_catalogue())
    try:
        yield from running.run(seconds, until, stop)
    finally:
        running.close()


class _Watch:
    def __init__(
        self,
        observer: Observer,
        recorder: Recorder,
        search: CauseSearch | None,
        cpu: Callable[[], float],
        catalogue: Catalogue,
    ) -> None:
        self.observer, self.recorder, self.search, self.cpu = observer, recorder, search, cpu
        self.catalogue = catalogue
        self.began_ns = observer.clock()
        allowance = CpuAllowance(observer.clock, cpu)
        self.snapshots = PacedTask(allowance, SNAPSHOT_INTERVAL_S)
        self.verdicts = PacedTask(allowance, VERDICT_INTERVAL_S, UNDELAYED_VERDICTS_S)
        self.analysis_cache = AnalysisCache()
        self.snapshot_caches: defaultdict[int, SnapshotCache] = defaultdict(SnapshotCache)  # of each member's snapshots
        self.snapshot_ns: dict[int, tuple[int, int]] = {}  # PID -> its last snapshot, the oldest figure in it
        self.newest: dict[int, Sample] = {}  # of each member that still runs
        self.has_changed = True
        self.case: Case | None = None
        self.diagnosis: Diagnosis | None = None
        self.line: tuple[int, ...] = ()
        self.judged_ns = 0

    def run(
        self, seconds: float | None, until: Until | None, stop: Callable[[], bool]
    ) -> Generator[WatchTick, None, None]:
        for records in self.observer.ticks(seconds):
            self._take(records)
            if self.observer.root_left is not None:
                break
            if stop():
                yield self._last("you ended it")
                return
            now = self.observer.clock()
            if self.snapshots.is_due(now):
                self._snapshot(now)
            tick = self._tick(judge=self.verdicts.is_due(now))
            if until is not None and tick.judged and tick.diagnosis.verdict in ("leak", until):
                yield self._last(f"the verdict is {tick.diagnosis.verdict}")
                return
            yield tick
        left = self.observer.root_left
        yield self._last(f"process {self.observer.pid}: {left}" if left else "the time is over")

    def close(self) -> None:
        """Keeps what the search found, however the watch ends."""
        if self.search is not None:
            search, self.search = self.search, None
            self.recorder.put(search.close())

    def _take(self, records: Iterable[Record]) -> None:
        self.recorder.put(records)
        for record in records:
            if isinstance(record, Sample):
                self.newest[record.pid] = record
                continue
            self.has_changed = True
            if isinstance(record, Target) and record.exited_ns is not None:
                self.newest.pop(record.pid, None)
                self.snapshot_ns.pop(record.pid, None)

    def _last(self, ended: str) -> WatchTick:
        self._take(self.observer.losses())
        self.recorder.flush()  # the last tick says whether the file is complete
        return self._tick(judge=True, ended=ended)

    def _tick(self, *, judge: bool, ended: str | None = None) -> WatchTick:
        now, has_changed = self.observer.clock(), self.has_changed
        if self.case is None or judge or has_changed:
            self.case = self.recorder.case()
            if self.search is not None:
                self.case = self.search.added_to(self.case)
        judged = judge or self.diagnosis is None
        if self.diagnosis is None or judge:
            began = self.cpu()
            self.diagnosis = conclude_case(self.case, self.catalogue, self.analysis_cache)
            self.line, self.judged_ns = _resampled(total_series(self.case.samples)), now
            self.verdicts.done(now, self.cpu() - began)
        if self.search is not None and not ended and self.search.follow(self.diagnosis, now):
            self.verdicts.expedite()
            has_changed = True
        total = sum(sample.growth_metric for sample in self.newest.values())
        self.has_changed = False
        return WatchTick(
            t_ns=now,
            elapsed_s=(now - self.began_ns) / NS_PER_S,
            case=self.case,
            diagnosis=self.diagnosis,
            now=dict(self.newest),
            ages=Ages(
                verdict_ns=self.judged_ns,
                layers_ns=min((taken for taken, _ in self.snapshot_ns.values()), default=None),
                oldest_ns=min((oldest for _, oldest in self.snapshot_ns.values()), default=None),
            ),
            line=(*self.line[:-1], total) if self.newest else self.line,
            events=tuple((event.pid, event.what) for event in self.observer.events),
            search=self.search.state if self.search is not None else None,
            ended=ended,
            judged=judged,
            record_ended=self.recorder.failed.why if self.recorder.failed is not None else None,
            is_news=judged or has_changed,
        )

    def _snapshot(self, now: int) -> None:
        began = self.cpu()
        for process in list(self.observer.members.values()):
            found: list[Record]
            try:
                snapshot, losses = take_snapshot(process, cache=self.snapshot_caches[process.pid])
                found = [snapshot, *losses]
                self.snapshot_ns[process.pid] = snapshot.t_ns, _oldest_ns(snapshot)
            except TargetError:
                continue  # the next tick says how it left
            except MemforensicsError as error:
                found = [probe_failed("snapshots", error, pid=process.pid, status="partial")]
            self.recorder.put(found)
        for gone in self.snapshot_caches.keys() - self.observer.members.keys():
            del self.snapshot_caches[gone]
        self.snapshots.done(now, self.cpu() - began)


def _oldest_ns(snapshot: Snapshot) -> int:
    return min((m.read_ns for m in snapshot.mappings if m.read_ns is not None), default=snapshot.t_ns)


def _resampled(line: Series) -> tuple[int, ...]:
    """Its values at LINE_POINTS evenly spaced times: older samples are sparse and would get too little of the width."""
    if len(line.values) < 3:
        return line.values
    begin, end = line.times_s[0], line.times_s[-1]
    count = min(LINE_POINTS, len(line.values))
    times = [begin + (end - begin) * i / (count - 1) for i in range(count)]
    return tuple(line.values[max(bisect_right(line.times_s, t) - 1, 0)] for t in times)
