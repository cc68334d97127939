"""watch: a tree of processes, looked at for as long as wanted, and judged again and again.

Made to be left running: memory is bounded (`Recorder`), and so is our CPU time. Each interval only sizes are read;
reading the mappings and judging come whenever the allowance has room for them, and rarer the dearer they are. How old
each of them is, is told with it.
"""

import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from memforensics.analysis.diagnosis import AnalysisCache
from memforensics.analysis.series import Series, total_series
from memforensics.case.model import Case, CaseMeta, Diagnosis, Loss, Sample, Snapshot, Target
from memforensics.errors import MemforensicsError, TargetError
from memforensics.jobs.case.conclude import conclude_case
from memforensics.jobs.observe.recorder import Limits, Record, Recorder, new_meta, probe_failed
from memforensics.jobs.observe.tree import Event, TreeObserver
from memforensics.jobs.watch.cause import CauseSearch
from memforensics.probes.proc.snapshot_cache import Earlier
from memforensics.probes.proc.snapshots import take_snapshot
from memforensics.remedies.catalogue import Catalogue, load_catalogue
from memforensics.report.json.watch import Ages, WatchTick
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
SNAPSHOT_EVERY_S = 5.0, 15.0  # at the soonest: in the beginning, later
JUDGE_EVERY_S = 0.5, 10.0  # the same
LATER = 0.05  # of the time seen
COMMIT_EVERY_S = 2.0  # to the case file
CPU_SHARE = 0.005  # of a core: the most that we take in the long run
CPU_CREDIT_S = 0.8  # CPU seconds that may be taken beyond it: the first minutes are the ones looked at
PATIENCE_S = 60.0  # a judgement and a snapshot come at least so often ...
PATIENCE_SHARE = 0.15  # ... and sooner in the beginning: of the time seen, at 8 s, 9 s, 10.5 s, 12 s, ...
PATIENCE_CPU = 0.0025  # ... but later where one is dear: the most of a core that either takes without room for it
FIRST_S = 60.0  # in which a judgement is not put off, however dear
RESCAN_SHARE = 0.001  # of the time, in looking for new children
LINE_POINTS = 160
SEEK_S = 1.0  # how often to look for a target that went and should come back


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
    search: bool = False,
    seed: int | None = None,
    again: Callable[[], int | None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
    stop: Callable[[], bool] = lambda: False,
    catalogue: Catalogue | None = None,
) -> Generator[WatchTick, None, None]:
    """Ticks until the time is over, the root has left, the verdict is reached, or `stop` says so. The last one has
    `ended`.

    `search`: where it grows, look for the cause too (`CauseSearch`): a line alone is never a leak.
    With `again`, which gives the PID of a target that came back (None: not yet), a root that left is waited for: it is
    a new target then, with a series and (leak-2.case beside leak.case) a case of its own.
    NoSuchProcess, NotATarget, PermissionNeeded at once; CaseError when no case can be made there. One that cannot be
    written later, on a full disk, ends there, which the ticks tell (`record_ended`).
    """
    began, life, file = time.monotonic(), 1, record
    while True:
        left = None if seconds is None else max(seconds - (time.monotonic() - began), 0.0)
        observer = TreeObserver(pid, children=children, interval_s=interval_s, rescan_share=RESCAN_SHARE, sleep=sleep)
        with observer:
            first = observer.open()
            with recorder_for(new_meta("watch", pid, seed=seed), file) as recorder:
                recorder.put(first)
                looking = CauseSearch(pid, children=children) if search else None
                yield from watch_with(
                    observer, recorder, seconds=left, until=until, search=looking, stop=stop, catalogue=catalogue
                )
        if again is None or observer.root_left is None:
            return
        while (found := again()) is None:
            if stop() or (seconds is not None and time.monotonic() - began >= seconds):
                return
            sleep(SEEK_S)
        pid, life = found, life + 1
        file = record.with_name(f"{record.stem}-{life}{record.suffix}") if record is not None else None


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
    """The same of an observer that is open, on its clock. `cpu`: the CPU seconds that we have used."""
    running = _Watch(observer, recorder, search, cpu, catalogue or load_catalogue())
    try:
        yield from running.run(seconds, until, stop)
    finally:
        running.close()


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


@dataclass(slots=True)
class _Turn:
    """Something dear that is done when there is room for it, and at the latest when it is overdue."""

    allowance: _Allowance
    every_s: tuple[float, float]  # at the soonest: in the beginning, later
    first_s: float = 0.0  # in which it is not put off
    next_ns: int = 0
    overdue_ns: int = 0

    def is_due(self, now: int) -> bool:
        return now >= self.next_ns and (now >= self.overdue_ns or self.allowance.has_room())

    def done(self, now: int, cpu_s: float) -> None:
        """It took so much of our CPU time."""
        seen_s = (now - self.allowance.began_ns) / NS_PER_S
        patience_s = min(PATIENCE_SHARE * seen_s, PATIENCE_S)
        if seen_s > self.first_s:
            patience_s = max(patience_s, cpu_s / PATIENCE_CPU)
        soonest, later = self.every_s
        self.next_ns = now + int(min(max(soonest, LATER * seen_s), later) * NS_PER_S)
        self.overdue_ns = now + int(patience_s * NS_PER_S)


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
        allowance = _Allowance(observer.clock, cpu)
        self.reading = _Turn(allowance, SNAPSHOT_EVERY_S)
        self.judging = _Turn(allowance, JUDGE_EVERY_S, FIRST_S)
        self.cache = AnalysisCache()
        self.earlier: defaultdict[int, Earlier] = defaultdict(Earlier)  # of each member's snapshots
        self.read_ns: dict[int, tuple[int, int]] = {}  # of each member's last snapshot: taken, and its oldest figure
        self.now: dict[int, Sample] = {}  # the newest of each living member
        self.is_news = True
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
            if self.reading.is_due(now):
                self._snapshot(now)
            tick = self._tick(judge=self.judging.is_due(now))
            if until is not None and tick.judged and tick.diagnosis.verdict in ("leak", until):
                yield self._last(f"the verdict is {tick.diagnosis.verdict}")
                return
            yield tick
        left = self.observer.root_left
        yield self._last(f"process {self.observer.pid}: {left}" if left else "the time is over")

    def close(self) -> None:
        """However it ends: what the search found is kept."""
        if self.search is not None:
            search, self.search = self.search, None
            self.recorder.put(search.close())

    def _take(self, records: Iterable[Record]) -> None:
        self.recorder.put(records)
        for record in records:
            if isinstance(record, Sample):
                self.now[record.pid] = record
                continue
            self.is_news = True
            if isinstance(record, Target) and record.exited_ns is not None:
                self.now.pop(record.pid, None)
                self.read_ns.pop(record.pid, None)

    def _last(self, ended: str) -> WatchTick:
        self._take(self.observer.losses())
        self.recorder.flush()  # whether the file has it all is told with it
        return self._tick(judge=True, ended=ended)

    def _tick(self, *, judge: bool, ended: str | None = None) -> WatchTick:
        now, is_news = self.observer.clock(), self.is_news
        if self.case is None or judge or is_news:
            self.case = self.recorder.case()
            if self.search is not None:
                self.case = self.search.added_to(self.case)
        judged = judge or self.diagnosis is None
        if self.diagnosis is None or judge:
            began = self.cpu()
            self.diagnosis = conclude_case(self.case, self.catalogue, self.cache)
            self.line, self.judged_ns = _evenly(total_series(self.case.samples)), now
            self.judging.done(now, self.cpu() - began)
        if self.search is not None and not ended and self.search.follow(self.diagnosis, now):
            self.judging.next_ns = self.judging.overdue_ns = 0
            is_news = True
        total = sum(sample.growth_metric for sample in self.now.values())
        self.is_news = False
        return WatchTick(
            t_ns=now,
            elapsed_s=(now - self.began_ns) / NS_PER_S,
            case=self.case,
            diagnosis=self.diagnosis,
            now=dict(self.now),
            ages=Ages(
                verdict_ns=self.judged_ns,
                layers_ns=min((taken for taken, _ in self.read_ns.values()), default=None),
                oldest_ns=min((oldest for _, oldest in self.read_ns.values()), default=None),
            ),
            line=(*self.line[:-1], total) if self.now else self.line,
            events=tuple((event.pid, event.what) for event in self.observer.events),
            search=self.search.state if self.search is not None else None,
            ended=ended,
            judged=judged,
            record_ended=self.recorder.failed.why if self.recorder.failed is not None else None,
            is_news=judged or is_news,
        )

    def _snapshot(self, now: int) -> None:
        began = self.cpu()
        for process in list(self.observer.members.values()):
            found: list[Record]
            try:
                snapshot, losses = take_snapshot(process, earlier=self.earlier[process.pid])
                found = [snapshot, *losses]
                self.read_ns[process.pid] = snapshot.t_ns, _oldest_ns(snapshot)
            except TargetError:
                continue  # the next tick tells how it left
            except MemforensicsError as error:
                found = [probe_failed("snapshots", error, pid=process.pid, status="partial")]
            self.recorder.put(found)
        for gone in self.earlier.keys() - self.observer.members.keys():
            del self.earlier[gone]
        self.reading.done(now, self.cpu() - began)


def _oldest_ns(snapshot: Snapshot) -> int:
    return min((m.read_ns for m in snapshot.mappings if m.read_ns is not None), default=snapshot.t_ns)


def _evenly(line: Series) -> tuple[int, ...]:
    """Its values at LINE_POINTS even times: older samples are thinned, and would take too little room of a picture."""
    if len(line.values) < 3:
        return line.values
    begin, end = line.times_s[0], line.times_s[-1]
    count = min(LINE_POINTS, len(line.values))
    times = [begin + (end - begin) * i / (count - 1) for i in range(count)]
    return tuple(line.values[max(bisect_right(line.times_s, t) - 1, 0)] for t in times)
