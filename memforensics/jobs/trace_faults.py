"""trace-faults: who touches memory that was not there, in a process tree, by stack, for some seconds."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from memforensics import __version__
from memforensics.analysis.blame import site_rate
from memforensics.analysis.frames import culprit_frame
from memforensics.case.model import AllocationSite, Case, Cost, Frame, Loss, ProbeStatus, TraceSummary
from memforensics.errors import MemforensicsError, ProbeFailed, TargetGone
from memforensics.jobs.observe import Recorder, TreeObserver, new_meta
from memforensics.probes.base import Budget
from memforensics.report.export.folded import folded as folded_profile
from memforensics.report.export.profile import Profile
from memforensics.report.text import library_name

POLL_S = 0.1
SETTLING_S = 1.0  # a rate needs at least this long a trace

MEANING = (
    "Evidence of who touches new memory, not of who leaks: a leaked block that reuses pages that were touched before "
    "costs no fault, and the next temporary that has to take new ones is named here instead. No culprit rests on it "
    "alone."
)


@dataclass(frozen=True, slots=True)
class FaultProgress:
    """Where it stands."""

    phase: str
    seconds_left: float
    growth_bytes: int | None


@dataclass(frozen=True, slots=True)
class FaultRow:
    """One site as it is shown. `named`: the frame that matters, by the rule that diagnose blames by."""

    site: AllocationSite
    bytes_per_minute: float | None
    named: Frame | None


@dataclass(frozen=True, slots=True)
class FaultView:
    """What a trace found. `rows`: anonymous and shared memory, most of it still resident first; `file_rows`: pages of
    mapped files, apart. `coverage`: of the whole tree, file pages left out on both sides."""

    case: Case
    seconds: float
    rows: tuple[FaultRow, ...]
    file_rows: tuple[FaultRow, ...]
    root_left: str | None = None
    interrupted: bool = False

    @property
    def summaries(self) -> tuple[TraceSummary, ...]:
        return self.case.traces

    @property
    def losses(self) -> tuple[Loss, ...]:
        return self.case.losses

    @property
    def costs(self) -> tuple[Cost, ...]:
        return self.case.costs

    @property
    def faults(self) -> int:
        return sum(summary.events for summary in self.case.traces)

    @property
    def coverage(self) -> float | None:
        known = [s for s in self.case.traces if s.coverage is not None]
        growth = sum(s.rss_growth_bytes or 0 for s in known)
        return sum(s.resident_bytes or 0 for s in known) / growth if growth > 0 else None


def trace_faults(
    pid: int,
    *,
    seconds: float,
    record: Path | None = None,
    progress: Callable[[FaultProgress], None] = lambda _: None,
) -> FaultView:
    """Traces the process and its descendants. Ctrl-C ends it early: what was collected is concluded and kept.

    NoSuchProcess, NotATarget, PermissionNeeded, ToolMissing, ProbeFailed, CaseError.
    """
    from memforensics.probes.faults import FaultTrace

    with TreeObserver(pid) as tree, Recorder(new_meta("trace-faults", pid), record) as recorder:
        recorder.put(tree.open())
        probe = FaultTrace()
        progress(FaultProgress("learning the stacks", seconds, None))
        interrupted = False
        failed: MemforensicsError | None = None
        began = time.monotonic()
        try:
            probe.open(list(tree.members.values()), Budget(seconds=seconds))
            began = time.monotonic()
            while tree.root_left is None and (left := seconds - (time.monotonic() - began)) > 0:
                recorder.put(probe.poll())
                recorder.put(tree.tick())
                progress(FaultProgress("tracing", left, recorder.growth()))
                time.sleep(min(POLL_S, left))
        except KeyboardInterrupt:
            interrupted = True
        except (TargetGone, ProbeFailed) as error:
            failed = error
        took = time.monotonic() - began
        recorder.put(probe.close())
        recorder.put([ProbeStatus(name=probe.name, status="partial" if failed else "ok", why=str(failed or ""))])
        if isinstance(failed, ProbeFailed):
            raise failed
        return view_of(recorder.case(), took, tree.root_left, interrupted)


def view_of(case: Case, seconds: float, root_left: str | None = None, interrupted: bool = False) -> FaultView:
    """The rows of a case. Pure."""
    sites = sorted(case.sites, key=lambda s: (-s.outstanding_bytes, -s.allocated_bytes, s.pid, s.site_id))
    rows = [
        FaultRow(site, site_rate(site) if seconds >= SETTLING_S else None, culprit_frame(site.stack.frames, None))
        for site in sites
        if site.kind == "fault"
    ]
    return FaultView(
        case=case,
        seconds=seconds,
        rows=tuple(row for row in rows if not row.site.file_backed),
        file_rows=tuple(row for row in rows if row.site.file_backed),
        root_left=root_left,
        interrupted=interrupted,
    )


def folded(view: FaultView) -> bytes:
    """Lines of `outermost;...;leaf bytes` of what is still resident, for flame graph programs. Files' pages left
    out."""
    case = view.case
    profile = Profile(
        sites=[row.site for row in view.rows],
        title="trace-faults",
        version=__version__,
        anchor=case.meta.anchor,
        began_ns=min((s.began_ns for s in case.traces), default=case.meta.anchor.monotonic_ns),
        ended_ns=max((s.ended_ns for s in case.traces), default=case.meta.anchor.monotonic_ns),
        processes={target.pid: target.comm or library_name(target.exe or "") for target in case.targets},
        notes=(MEANING,),
    )
    return folded_profile(profile)
