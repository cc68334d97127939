"""trace-mmap: outstanding mappings of a process tree by stack, for some seconds."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from memforensics.analysis.blame import site_rate
from memforensics.analysis.frames import culprit_frame
from memforensics.case.model import AllocationSite, Case, Cost, Frame, Loss, ProbeStatus, TraceSummary
from memforensics.errors import MemforensicsError, ProbeFailed, TargetGone
from memforensics.jobs.observe import Recorder, TreeObserver, new_meta
from memforensics.probes.base import Budget, Probe
from memforensics.target import Process

EngineName = Literal["bcc", "bpftrace"]

POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class TraceProgress:
    """Where it stands."""

    phase: str
    seconds_left: float
    growth_bytes: int | None


@dataclass(frozen=True, slots=True)
class SiteRow:
    """One site as it is shown. `named`: the frame that matters, by the rule that diagnose blames by."""

    site: AllocationSite
    bytes_per_minute: float | None
    named: Frame | None


@dataclass(frozen=True, slots=True)
class TraceView:
    """What a trace found. Rows by outstanding bytes, most first. `coverage`: of the whole tree."""

    engine: EngineName
    seconds: float
    rows: tuple[SiteRow, ...]
    summaries: tuple[TraceSummary, ...]
    losses: tuple[Loss, ...]
    costs: tuple[Cost, ...]
    root_left: str | None = None
    interrupted: bool = False

    @property
    def events(self) -> int:
        return sum(summary.events for summary in self.summaries)

    @property
    def coverage(self) -> float | None:
        known = [s for s in self.summaries if s.resident_bytes is not None and s.coverage is not None]
        growth = sum(s.rss_growth_bytes or 0 for s in known)
        return sum(s.resident_bytes or 0 for s in known) / growth if growth > 0 else None


def trace(
    pid: int,
    *,
    seconds: float,
    engine: EngineName = "bcc",
    record: Path | None = None,
    progress: Callable[[TraceProgress], None] = lambda _: None,
) -> TraceView:
    """Traces the process and its descendants. Ctrl-C ends it early: what was collected is concluded and kept.

    NoSuchProcess, NotATarget, PermissionNeeded, ToolMissing, ProbeFailed, CaseError.
    """
    with TreeObserver(pid) as tree, Recorder(new_meta("trace-mmap", pid), record) as recorder:
        recorder.put(tree.open())
        probe = _probe(engine)
        progress(TraceProgress("learning the stacks", seconds, None))
        members = list(tree.members.values())
        interrupted = False
        failed: MemforensicsError | None = None
        began = time.monotonic()
        try:
            _open(probe, members, seconds)
            began = time.monotonic()
            while tree.root_left is None and (left := seconds - (time.monotonic() - began)) > 0:
                recorder.put(probe.poll())
                recorder.put(tree.tick())
                progress(TraceProgress("tracing", left, recorder.growth()))
                time.sleep(min(POLL_S, left))
        except KeyboardInterrupt:
            interrupted = True
        except (TargetGone, ProbeFailed) as error:
            failed = error
        took = time.monotonic() - began
        recorder.put(probe.close())
        recorder.put([ProbeStatus(name="mmap-trace", status="partial" if failed else "ok", why=str(failed or ""))])
        if isinstance(failed, ProbeFailed):
            raise failed
        return view_of(recorder.case(), engine, took, tree.root_left, interrupted)


def view_of(
    case: Case, engine: EngineName, seconds: float, root_left: str | None = None, interrupted: bool = False
) -> TraceView:
    """The rows of a case. Pure."""
    sites = sorted(case.sites, key=lambda s: (-s.outstanding_bytes, -s.allocated_bytes, s.pid, s.site_id))
    return TraceView(
        engine=engine,
        seconds=seconds,
        rows=tuple(SiteRow(site, site_rate(site), culprit_frame(site.stack.frames, None)) for site in sites),
        summaries=case.traces,
        losses=case.losses,
        costs=case.costs,
        root_left=root_left,
        interrupted=interrupted,
    )


def folded(view: TraceView) -> str:
    """Lines of `outermost;...;leaf bytes` of what is outstanding, for flame graph programs."""
    lines = []
    for row in view.rows:
        if row.site.outstanding_bytes > 0:
            names = [_folded_name(frame) for frame in reversed(row.site.stack.frames)]
            lines.append(f"{';'.join((f'pid {row.site.pid}', *names))} {row.site.outstanding_bytes}")
    return "".join(line + "\n" for line in lines)


def _folded_name(frame: Frame) -> str:
    name = frame.function or (f"{frame.offset:#x}" if frame.offset is not None else "?")
    if frame.kind == "python":
        name = f"{name} ({Path(frame.file or '?').name}:{frame.line})"
    elif frame.module:
        name = f"{name} [{Path(frame.module).name}]"
    return name.replace(";", ":").replace("\n", " ")


def _probe(engine: EngineName) -> Probe:
    if engine == "bpftrace":
        from memforensics.probes.ebpf.bpftrace import BpftraceTrace

        return BpftraceTrace()
    from memforensics.probes.mmap_trace import MmapTrace

    return MmapTrace()


def _open(probe: Probe, members: list[Process], seconds: float) -> None:
    """All of the tree where the probe can, else its root."""
    from memforensics.probes.mmap_trace import MmapTrace

    budget = Budget(seconds=seconds)
    if isinstance(probe, MmapTrace):
        probe.open(members, budget)
    else:
        probe.open(members[0], budget)
