"""diagnose: collects evidence on a live process tree for a limited time, then draws the conclusion. `report` draws it
again from the saved case."""

import resource
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from memforensics.analysis.diagnosis import analyze
from memforensics.analysis.unexplained_growth import is_heap_without_stack
from memforensics.case.model import (
    AllocationSite,
    Case,
    CaseMeta,
    Cost,
    Diagnosis,
    Loss,
    TraceSummary,
)
from memforensics.errors import CaseExists, Interrupted, MemforensicsError
from memforensics.jobs.case.conclude import conclude_case
from memforensics.jobs.case.files import case_path
from memforensics.jobs.hooks import audit_records
from memforensics.jobs.observe.background import BackgroundTasks
from memforensics.jobs.observe.background_trace import BackgroundTrace
from memforensics.jobs.observe.progress import OnProgress, Progress
from memforensics.jobs.observe.recorder import Record, Recorder, new_meta
from memforensics.jobs.observe.snapshot_schedule import SnapshotSchedule
from memforensics.jobs.observe.tree import TreeObserver
from memforensics.jobs.references import References
from memforensics.jobs.targets.identity import identify
from memforensics.probes.base import Budget, Evidence
from memforensics.probes.ebpf.faults.probe import FaultTrace, fault_trace
from memforensics.probes.ebpf.mmap.probe import mmap_trace
from memforensics.remedies.catalogue import Catalogue
from memforensics.target import Process, open_process
from memforensics.units import NS_PER_S

TICK_S = 0.5
SECOND_AUDIT_AT = 0.67  # of the time
TRACE_FAULTS_AT = 0.5  # of the time: when to decide whether page faults are traced for the rest of it
FAULT_SITE_IDS = 1 << 40  # added to the site IDs of the fault trace
MIN_CHILD_AGE_S = 2.0  # a younger child is not audited: many children live for one request
CLOSING_S = 3.0  # of the requested time, for the last readings and the conclusion


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a run. `path`: the case file, if there is one. `trouble`: why there is none, or why it is not
    complete."""

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
) -> Outcome:
    """Observes the process (and its children) for about `seconds` in all, and draws the conclusion. The case is kept in
    `record`, or in the state folder under a name made by `case_path`; on a full disk the run goes on without a file.

    NoSuchProcess, NotATarget, PermissionNeeded if the process cannot be observed; CaseError if `record` cannot be made.
    After Ctrl-C it concludes on what was seen (`interrupted`); after a second one it raises Interrupted.
    """
    open_process(pid).close()  # reports a wrong PID before a file is made
    recorder, trouble = _recorder(new_meta(command, pid, seed=seed), record)
    path = recorder.path
    try:
        with recorder:
            interrupted = _collect(recorder, pid, seconds, on_progress or (lambda _: None), children=children)
        if recorder.failed is not None:
            trouble = f"the case is not complete: {recorder.failed.why} ({path})"
        case = recorder.case()
        return Outcome(case, conclude_case(case, catalogue), path, trouble, interrupted)
    except KeyboardInterrupt:
        raise Interrupted(str(path) if path else None) from None


def _recorder(meta: CaseMeta, record: Path | None) -> tuple[Recorder, str]:
    """The recorder, and why it has no file if it has none."""
    if record is not None:
        return Recorder(meta, record, tolerant=True), ""
    while True:
        try:
            return Recorder(meta, case_path(meta.root_pid or 0), tolerant=True), ""
        except CaseExists:
            continue  # another run took the same name in the same second
        except MemforensicsError as error:
            return Recorder(meta), f"no case is kept: {error}"


def _collect(recorder: Recorder, pid: int, seconds: float, on_progress: OnProgress, *, children: bool) -> bool:
    """All evidence of one run. True: it was interrupted."""
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
    """One collection. The observer's ticks keep the time; everything slower runs in the background."""

    def __init__(self, recorder: Recorder, observer: TreeObserver, seconds: float, on_progress: OnProgress) -> None:
        self.recorder, self.observer, self.on_progress = recorder, observer, on_progress
        self.began = time.monotonic()
        self.seconds = max(1.0, seconds - min(CLOSING_S, 0.1 * seconds))
        self.mappings = BackgroundTrace(mmap_trace, lambda found: found)
        self.faults: BackgroundTrace[FaultTrace] | None = None
        self.background = BackgroundTasks()
        self.references = References(self.background, self.seconds, recorder.meta.seed)
        self.snapshots = SnapshotSchedule(self.seconds)
        self._audited: set[int] = set()
        self._audited_again: set[int] = set()
        self._first_seen_ns: dict[int, int] = {}

    @property
    def members(self) -> list[Process]:
        return list(self.observer.members.values())

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def observe(self) -> None:
        self._progress("opening")
        self.recorder.put(self.observer.open())
        self.mappings.start(self.members, Budget(seconds=self.seconds))
        for records in self.observer.ticks(self.seconds - self.elapsed):
            self.recorder.put(records)
            self._audit()
            self.recorder.put(self.mappings.poll())
            if self.mappings.trace is not None:
                self.references.step(self.elapsed / self.seconds, self.mappings.trace, self.recorder.case)
            self._poll_faults()
            if self.snapshots.is_due(self.elapsed) and not self.background.busy:
                self._snapshot()
            self.recorder.put(self.background.take())
            self._progress("observing")
            if self.elapsed >= self.seconds:
                break

    def finish(self) -> None:
        """Takes the last readings of the processes that still run, then closes everything."""
        self._progress("closing")
        if self.mappings.trace is not None and self.observer.root_left is None:
            self.background.wait()
            self.references.search_again(self.mappings.trace)
            self.background.wait()
            self.recorder.put(self.references.missed())
        if self.observer.root_left is None and self.snapshots.fits_in(CLOSING_S / 2):
            self._snapshot()
            self.background.wait()
        self.close()

    def close(self) -> None:
        """Closes the probes and keeps their last records. It works at any moment, also twice."""
        try:
            self.recorder.put(self.mappings.close())
            if self.faults is not None:
                self.recorder.put(self.faults.close())
        finally:
            self.background.close()
            self.recorder.put(self.background.take())
            used = resource.getrusage(resource.RUSAGE_SELF)
            self.recorder.put(self.observer.losses())
            self.recorder.put([Cost(probe="memforensics", observer_cpu_s=used.ru_utime + used.ru_stime)])

    def _poll_faults(self) -> None:
        """From TRACE_FAULTS_AT on, page faults are traced too if a heap grows and no stack asked for it."""
        if self.faults is not None:
            self.recorder.put(self.faults.poll())
        elif self.mappings.trace is not None and self.elapsed > TRACE_FAULTS_AT * self.seconds:
            self.faults = BackgroundTrace(partial(_faults_if_needed, self.recorder.case()), _fault_records)
            self.faults.start(self.members, Budget(seconds=self.seconds - self.elapsed))

    def _audit(self) -> None:
        """Audits hooks and versions of each member: the root at once, a child after MIN_CHILD_AGE_S; and all of them
        again in the last third, because a process that has just started has not loaded its libraries yet."""
        audited = self._audited_again if self.elapsed > SECOND_AUDIT_AT * self.seconds else self._audited
        for pid in list(self.observer.members):
            first_seen_ns = self._first_seen_ns.setdefault(pid, time.monotonic_ns())
            is_old = pid == self.observer.pid or time.monotonic_ns() - first_seen_ns > MIN_CHILD_AGE_S * NS_PER_S
            if is_old and pid not in audited:
                audited.add(pid)
                self.background.run(partial(audit_records, pid))

    def _snapshot(self) -> None:
        for pid in list(self.observer.members):
            self.background.run(partial(self.snapshots.take, pid))
        self.snapshots.started(self.elapsed)

    def _progress(self, phase: str) -> None:
        self.on_progress(Progress(phase, max(0.0, self.seconds - self.elapsed), self.recorder.growth()))


def _faults_if_needed(case: Case) -> FaultTrace | None:
    """None if the evidence so far does not call for it."""
    return fault_trace() if any(is_heap_without_stack(finding) for finding in analyze(case).findings) else None


def _fault_records(found: Iterable[Evidence]) -> Iterable[Record]:
    """The records of a fault trace that go into a case that has a trace of mappings: not its summaries, because those
    of the mappings have the same key."""
    for record in found:
        if isinstance(record, AllocationSite):
            yield replace(record, site_id=record.site_id + FAULT_SITE_IDS)
        elif isinstance(record, Loss) and record.reduce.startswith("--"):
            yield replace(record, reduce=f"memforensics trace-faults with {record.reduce}")
        elif not isinstance(record, TraceSummary):
            yield record
