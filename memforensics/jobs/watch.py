"""watch: a tree of processes, looked at for as long as wanted, judged anew at each tick. Memory stays constant."""

import time
from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from memforensics.analysis.series import total_series
from memforensics.case.model import Case, Diagnosis, ProbeStatus
from memforensics.errors import MemforensicsError, TargetError
from memforensics.jobs.conclude import conclude_case
from memforensics.jobs.observe import Event, Record, Recorder, TreeObserver, new_meta
from memforensics.probes.repeated import Earlier
from memforensics.probes.snapshots import take_snapshot
from memforensics.remedies.catalogue import load_catalogue
from memforensics.units import NS_PER_S

Until = Literal["growing", "leak"]

SAMPLES_KEPT = 400  # a process, in memory; older ones thin out
SNAPSHOTS_KEPT = 8
SNAPSHOT_EVERY_S = 5.0  # at the soonest
SNAPSHOT_SHARE = 0.01  # of the time at most spent in reading mappings
JUDGING_SHARE = 0.1  # of the time at most spent in judging


@dataclass(frozen=True, slots=True)
class WatchTick:
    """What is known at one tick. `ended`: why this is the last one, None while it goes on."""

    elapsed_s: float
    case: Case
    diagnosis: Diagnosis
    line: tuple[int, ...]  # bytes of the growth metric over time, the whole tree
    alive: int
    events: tuple[Event, ...]  # all so far
    ended: str | None = None


def watch(
    pid: int,
    *,
    children: bool = True,
    interval_s: float = 1.0,
    seconds: float | None = None,
    record: Path | None = None,
    until: Until | None = None,
    seed: int | None = None,
) -> Generator[WatchTick, None, None]:
    """Ticks until the time is over, the root has left, or the verdict is reached. The last one has `ended`.

    NoSuchProcess, NotATarget, PermissionNeeded at once; CaseError when the case cannot be written.
    """
    meta = new_meta("watch", pid, seed=seed)
    with TreeObserver(pid, children=children, interval_s=interval_s) as observer:
        first = observer.open()
        with Recorder(meta, record, max_samples=SAMPLES_KEPT, max_snapshots=SNAPSHOTS_KEPT) as recorder:
            recorder.put(first)
            yield from _Watch(observer, recorder).run(seconds, until)


class _Watch:
    def __init__(self, observer: TreeObserver, recorder: Recorder) -> None:
        self.observer, self.recorder = observer, recorder
        self.catalogue = load_catalogue()
        self.began_ns = observer.clock()
        self.next_snapshot_ns = 0
        self.earlier: defaultdict[int, Earlier] = defaultdict(Earlier)  # of each member's snapshots
        self.next_judging_ns = 0
        self.last: WatchTick | None = None

    def run(self, seconds: float | None, until: Until | None) -> Generator[WatchTick, None, None]:
        for records in self.observer.ticks(seconds):
            self.recorder.put(records)
            if self.observer.root_left is not None:
                break
            now = self.observer.clock()
            if now >= self.next_snapshot_ns:
                self._snapshot(now)
            if now < self.next_judging_ns:
                continue
            tick = self._judge()
            if until is not None and tick.diagnosis.verdict in ("leak", until):
                self._losses()
                yield self._judge(f"the verdict is {tick.diagnosis.verdict}")
                return
            yield tick
        self._losses()
        left = self.observer.root_left
        yield self._judge(f"process {self.observer.pid}: {left}" if left else "the time is over")

    def _judge(self, ended: str | None = None) -> WatchTick:
        began = time.perf_counter()
        case = self.recorder.case()
        now = self.observer.clock()
        tick = WatchTick(
            elapsed_s=(now - self.began_ns) / NS_PER_S,
            case=case,
            diagnosis=conclude_case(case, self.catalogue),
            line=total_series(case.samples).values,
            alive=len(self.observer.members),
            events=tuple(self.observer.events),
            ended=ended,
        )
        cost = time.perf_counter() - began
        if cost > JUDGING_SHARE * self.observer.interval_s:
            self.next_judging_ns = now + int(cost / JUDGING_SHARE * NS_PER_S)
        return tick

    def _snapshot(self, now: int) -> None:
        began = time.perf_counter()
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
        cost = time.perf_counter() - began
        wait = max(SNAPSHOT_EVERY_S, self.observer.interval_s, cost / SNAPSHOT_SHARE)
        self.next_snapshot_ns = now + int(wait * NS_PER_S)

    def _losses(self) -> None:
        self.recorder.put(self.observer.losses())
