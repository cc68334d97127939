"""diagnose: collect evidence on a live tree of processes within a time, then conclude. `report` on the saved case runs
the same second half again."""

import os
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Generic, TypeVar

from memforensics.analysis.diagnosis import analyze
from memforensics.analysis.unexplained_growth import is_heap_without_stack
from memforensics.case.model import (
    AllocationSite,
    Case,
    CaseMeta,
    Cost,
    Diagnosis,
    Loss,
    ProbeStatus,
    Sample,
    TraceSummary,
)
from memforensics.case.store import CaseFile
from memforensics.errors import CaseExists, Interrupted, MemforensicsError, TargetError
from memforensics.jobs.case.conclude import conclude_case
from memforensics.jobs.case.files import state_folder
from memforensics.jobs.observe.background import BackgroundTasks
from memforensics.jobs.observe.tree import Record, Recorder, TreeObserver, new_meta
from memforensics.jobs.references import References
from memforensics.jobs.targets.identity import identify
from memforensics.probes.base import Budget, Evidence
from memforensics.probes.ebpf.faults.probe import FaultTrace
from memforensics.probes.ebpf.mmap.probe import MmapTrace
from memforensics.probes.hooks import audit_hooks
from memforensics.probes.proc.snapshot_cache import Earlier
from memforensics.probes.proc.snapshots import take_snapshot
from memforensics.remedies.catalogue import Catalogue, load_catalogue
from memforensics.symbols.address_space import AddressSpace
from memforensics.target import Process, open_process
from memforensics.units import NS_PER_S

TICK_S = 0.5
SNAPSHOTS = 6  # in one run, the first and the last included
SPARING = 8.0  # between two snapshots, so many times what one takes
AUDIT_AGAIN = 0.67  # of the time
TOUCH_AT = 0.5  # of the time: whether page faults are to be traced for the rest of it
TOUCH_IDS = 1 << 40  # added to the numbers of their sites
YOUNG_S = 2.0  # a child younger than this is left unaudited: many live for one request
CLOSING_S = 3.0  # of the time asked for, kept for the last readings and the conclusion


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands, for a screen."""

    phase: str
    seconds_left: float
    growth_bytes: int | None = None  # of the tree's anonymous, shared and swapped memory, so far


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to. `path`: the case file, None where there is none; `trouble`: why there is none, or why it is
    not complete."""

    case: Case
    diagnosis: Diagnosis
    path: Path | None
    trouble: str = ""
    interrupted: bool = False


def diagnose(
    pid: int,
    seconds: float,
    *,
    record: Path | None = None,
    on_progress: OnProgress | None = None,
    children: bool = True,
    seed: int | None = None,
    catalogue: Catalogue | None = None,
    command: str = "diagnose",
) -> tuple[Case, Diagnosis]:
    """As `investigate`, for those who need the answer alone. Interrupted at Ctrl-C, the case kept."""
    found = investigate(
        pid,
        seconds,
        record=record,
        on_progress=on_progress,
        children=children,
        seed=seed,
        catalogue=catalogue,
        command=command,
    )
    if found.interrupted:
        raise Interrupted(str(found.path) if found.path else None)
    return found.case, found.diagnosis


def investigate(
    pid: int,
    seconds: float,
    *,
    record: Path | None = None,
    on_progress: OnProgress | None = None,
    children: bool = True,
    seed: int | None = None,
    catalogue: Catalogue | None = None,
    command: str = "diagnose",
) -> Outcome:
    """Looks at the process (and its children) for about `seconds` in all, and concludes. The case is kept in `record`,
    or under a name of its own in the state folder (`case_path`); there it is done without where the disk is full.

    NoSuchProcess, NotATarget, PermissionNeeded when it cannot be looked at; CaseError when `record` cannot be made. At
    Ctrl-C it concludes on what was seen (`interrupted`); at a second one, Interrupted.
    """
    catalogue = load_catalogue() if catalogue is None else catalogue
    open_process(pid).close()  # says at once what is wrong with the PID, before a file is made
    recorder, path, trouble = _recorder(new_meta(command, pid, seed=seed), record)
    try:
        with recorder:
            interrupted = _collect(recorder, pid, seconds, on_progress or (lambda _: None), children=children)
        if recorder.failed is not None:
            trouble = f"the case is not complete: {recorder.failed.why}" + (f"; it is {path}" if path else "")
        if path is None or recorder.failed is not None:
            case = recorder.case()
        else:
            with CaseFile.open(path) as file:
                case = file.load()
        return Outcome(case, conclude_case(case, catalogue), path, trouble, interrupted)
    except KeyboardInterrupt:
        raise Interrupted(str(path) if path else None) from None


def case_path(pid: int, folder: Path | None = None) -> Path:
    """`memforensics-PID-TIME.case` in the folder (default: the state folder; MemforensicsError when there is none),
    with a number behind it where there is such a file."""
    stem = f"memforensics-{pid}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = folder or state_folder()
    names = chain([f"{stem}.case"], (f"{stem}-{number}.case" for number in count(2)))
    return next(path for name in names if not os.path.lexists(path := folder / name))


def _recorder(meta: CaseMeta, record: Path | None) -> tuple[Recorder, Path | None, str]:
    """What keeps the case, where, and why nowhere. Another run may take the same name in the same second: then the
    next one is taken."""
    if record is not None:
        return Recorder(meta, record, tolerant=True), record, ""
    while True:
        try:
            path = case_path(meta.root_pid or 0)
            return Recorder(meta, path, tolerant=True), path, ""
        except CaseExists:
            continue
        except MemforensicsError as error:
            return Recorder(meta), None, f"no case is kept: {error}"


def _collect(recorder: Recorder, pid: int, seconds: float, on_progress: OnProgress, *, children: bool) -> bool:
    """All evidence of one run; whether it was interrupted."""
    with TreeObserver(pid, children=children, interval_s=TICK_S, about=identify) as observer:
        run = _Run(recorder, observer, seconds, on_progress)
        try:
            run.observe()
            run.finish()
        except KeyboardInterrupt:
            run.close()
            return True
        except BaseException:
            run.close()
            raise
    return False


class _Run:
    """One collection. The observer's ticks keep the time; all that reads for longer runs beside them."""

    def __init__(self, recorder: Recorder, observer: TreeObserver, seconds: float, on_progress: OnProgress) -> None:
        self.recorder, self.observer, self.on_progress = recorder, observer, on_progress
        self.began = time.monotonic()
        self.seconds = max(1.0, seconds - min(CLOSING_S, 0.1 * seconds))
        self.trace: MmapTrace | None = None
        self.opening = _Opening(_open_trace)
        self.touch: FaultTrace | None = None
        self.opening_touch: _Opening[FaultTrace] | None = None
        self.background = BackgroundTasks()
        self.references = References(self.background, self.seconds, recorder.meta.seed)
        self.snapshots = _SnapshotTimes(self.seconds)
        self._audited: set[int] = set()
        self._audited_late: set[int] = set()
        self._seen_ns: dict[int, int] = {}
        self._first: dict[int, Sample] = {}
        self._last: dict[int, Sample] = {}

    @property
    def members(self) -> list[Process]:
        return list(self.observer.members.values())

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def observe(self) -> None:
        self._progress("opening")
        self.recorder.put(self.observer.open())
        self.opening.start(self.members, Budget(seconds=self.seconds))
        for records in self.observer.ticks(self.seconds - self.elapsed):
            self._remember(records)
            self._audit()
            self._poll_trace()
            self._check_references()
            self._poll_touch()
            if self.snapshots.due(self.elapsed) and not self.background.busy:
                self._snapshot()
            self.recorder.put(self.background.take())
            self._progress("observing")
            if self.elapsed >= self.seconds:
                break

    def finish(self) -> None:
        """The last readings of what still lives, then everything closed."""
        self._progress("closing")
        if self.trace is not None and self.observer.root_left is None:
            self.background.wait()
            self.references.search_again(self.trace)
            self.background.wait()
            self.recorder.put(self.references.missed())
        if self.observer.root_left is None and self.snapshots.worth_one_more:
            self._snapshot()
            self.background.wait()
        self.close()

    def close(self) -> None:
        """Closes the probes and keeps what they still have. Works at any moment, and twice."""
        try:
            self._take_trace(wait=True)
            if self.trace is not None:
                trace, self.trace = self.trace, None
                self.recorder.put(trace.close())
            self._take_touch(wait=True)
            if self.touch is not None:
                touch, self.touch = self.touch, None
                self.recorder.put(_beside_mappings(touch.close()))
        finally:
            self.background.close()
            self.recorder.put(self.background.take())
            used = resource.getrusage(resource.RUSAGE_SELF)
            self.recorder.put(self.observer.losses())
            self.recorder.put([Cost(probe="memforensics", observer_cpu_s=used.ru_utime + used.ru_stime)])

    # --- probes

    def _take_trace(self, *, wait: bool) -> None:
        """The trace, once it is open (or will not be)."""
        opened = self.opening.result(wait=wait)
        if opened is not None:
            self.trace, statuses = opened
            self.recorder.put(statuses)

    def _poll_trace(self) -> None:
        self._take_trace(wait=False)
        if self.trace is None:
            return
        try:
            self.recorder.put(self.trace.poll())
        except TargetError:
            return
        except MemforensicsError as error:
            trace, self.trace = self.trace, None
            self.recorder.put(trace.close())
            self.recorder.put([ProbeStatus(name=trace.name, status="partial", why=str(error), enable=error.enable)])

    def _check_references(self) -> None:
        if self.trace is not None:
            self.references.step(self.elapsed / self.seconds, self.trace, self.recorder.case)

    def _take_touch(self, *, wait: bool) -> None:
        opened = self.opening_touch.result(wait=wait) if self.opening_touch is not None else None
        if opened is not None:
            self.touch, statuses = opened
            self.recorder.put(statuses)

    def _poll_touch(self) -> None:
        """From the middle on, page faults are traced too where a heap grows and nobody was seen to ask for it."""
        if self.opening_touch is None:
            if self.trace is not None and self.elapsed > TOUCH_AT * self.seconds:
                case, left = self.recorder.case(), Budget(seconds=self.seconds - self.elapsed)
                self.opening_touch = _Opening(partial(_open_touch, case))
                self.opening_touch.start(self.members, left)
            return
        self._take_touch(wait=False)
        if self.touch is None:
            return
        try:
            self.recorder.put(_beside_mappings(self.touch.poll()))
        except MemforensicsError as error:
            touch, self.touch = self.touch, None
            self.recorder.put(_beside_mappings(touch.close()))
            if not isinstance(error, TargetError):
                self.recorder.put([_unavailable(touch.name, 0, error)])

    def _audit(self) -> None:
        """Hooks and versions of each member: the root at once, a child when it has lived for a while; and all again in
        the last third, for what was loaded meanwhile (a process that has just begun has loaded nothing yet)."""
        late = self.elapsed > AUDIT_AGAIN * self.seconds
        audited = self._audited_late if late else self._audited
        for pid in list(self.observer.members):
            since = self._seen_ns.setdefault(pid, time.monotonic_ns())
            settled = pid == self.observer.pid or time.monotonic_ns() - since > YOUNG_S * NS_PER_S
            if settled and pid not in audited:
                audited.add(pid)
                self.background.run(partial(audit_of, pid))

    def _snapshot(self) -> None:
        for pid in list(self.observer.members):
            self.background.run(partial(self.snapshots.take, pid))
        self.snapshots.taken(self.elapsed)

    def _remember(self, records: list[Record]) -> None:
        self.recorder.put(records)
        for record in records:
            if isinstance(record, Sample):
                self._first.setdefault(record.pid, record)
                self._last[record.pid] = record

    def _progress(self, phase: str) -> None:
        grown = sum(self._last[pid].growth_metric - first.growth_metric for pid, first in self._first.items())
        self.on_progress(Progress(phase, max(0.0, self.seconds - self.elapsed), grown if self._first else None))


T = TypeVar("T", bound=MmapTrace | FaultTrace)


class _Opening(Generic[T]):
    """A trace is opened (compiled, loaded, its first stacks learned: 1 to 3 s) beside the ticks."""

    def __init__(self, open_it: Callable[[list[Process], Budget], tuple[T | None, list[Record]]]) -> None:
        self._open_it = open_it
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="open-trace")
        self._future: Future[tuple[T | None, list[Record]]] | None = None

    def start(self, members: list[Process], budget: Budget) -> None:
        self._future = self._pool.submit(self._open_it, members, budget)

    def result(self, *, wait: bool) -> tuple[T | None, list[Record]] | None:
        """The trace (None: there is none) and how that came, once; None while it is not ready, and from then on."""
        future = self._future
        if future is None or not (wait or future.done()):
            return None
        found = future.result()
        self._future = None
        self._pool.shutdown(wait=False)
        return found


def _open_trace(members: list[Process], budget: Budget) -> tuple[MmapTrace | None, list[Record]]:
    return _opened(MmapTrace(), members, budget)


def _open_touch(case: Case, members: list[Process], budget: Budget) -> tuple[FaultTrace | None, list[Record]]:
    """None, where what was seen so far does not call for it."""
    if not any(is_heap_without_stack(finding) for finding in analyze(case).findings):
        return None, []
    return _opened(FaultTrace(), members, budget)


def _beside_mappings(found: Iterable[Evidence]) -> list[Record]:
    """What of a fault trace goes into a case beside a trace of mappings, which has the summaries of the processes."""
    records: list[Record] = []
    for record in found:
        if isinstance(record, AllocationSite):
            records.append(replace(record, site_id=record.site_id + TOUCH_IDS))
        elif isinstance(record, Loss) and record.reduce.startswith("--"):
            records.append(replace(record, reduce=f"memforensics trace-faults with {record.reduce}"))
        elif not isinstance(record, TraceSummary):
            records.append(record)
    return records


def _opened(trace: T, members: list[Process], budget: Budget) -> tuple[T | None, list[Record]]:
    try:
        able = trace.availability(members[0])
        if able.status != "unavailable":
            trace.open(members, budget)
    except TargetError:
        return None, []  # the observer's next tick tells how it left
    except MemforensicsError as error:
        return None, [_unavailable(trace.name, 0, error)]
    status = ProbeStatus(name=trace.name, status=able.status, why=able.why, enable=able.enable)
    return (None if able.status == "unavailable" else trace), [status]


class _SnapshotTimes:
    """When to take snapshots: SNAPSHOTS in a run; fewer where one is dear, the last of them near the end."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.every = seconds, seconds / (SNAPSHOTS - 1)
        self.next_s = 0.0
        self.cost_s = 0.0  # of all members, the dearest so far
        self._spent = 0.0
        self._earlier: defaultdict[int, Earlier] = defaultdict(Earlier)

    def due(self, elapsed: float) -> bool:
        return elapsed >= self.next_s

    def taken(self, elapsed: float) -> None:
        self.cost_s, self._spent = max(self.cost_s, self._spent), 0.0
        gap = max(self.every, SPARING * self.cost_s)
        last = self.seconds - 1.5 * self.cost_s
        if elapsed + gap <= last:
            self.next_s = elapsed + gap
        else:
            self.next_s = last if elapsed + gap / 2 < last else float("inf")

    @property
    def worth_one_more(self) -> bool:
        """Whether one after the end fits into the closing time."""
        return max(self.cost_s, self._spent) < CLOSING_S / 2

    def take(self, pid: int) -> list[Record]:
        began = time.monotonic()
        try:
            with closing(open_process(pid)) as process:
                snapshot, losses = take_snapshot(process, earlier=self._earlier[pid])
        except TargetError:
            return []
        except MemforensicsError as error:
            return [_unavailable("snapshots", pid, error)]
        self._spent += time.monotonic() - began
        return [snapshot, *losses]


def audit_of(pid: int) -> list[Record]:
    """Hooks, versions and what was looked at, of one process; nothing when it left."""
    try:
        with closing(open_process(pid)) as process:
            hooks, audit, modules, losses = audit_hooks(process, AddressSpace(process))
    except TargetError:
        return []
    except MemforensicsError as error:
        return [_unavailable("hooks", pid, error)]
    return [*hooks, audit, *modules, *losses, ProbeStatus(name="hooks", pid=pid, status="ok")]


def _unavailable(name: str, pid: int, error: MemforensicsError) -> ProbeStatus:
    return ProbeStatus(name=name, pid=pid, status="unavailable", why=str(error), enable=error.enable)
