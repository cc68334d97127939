"""trace-mmap: outstanding mappings of processes by stack, for some seconds; and the same view of a saved case."""

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from memforensics import __version__
from memforensics.analysis.blame import site_rate
from memforensics.analysis.sites import SiteFilter, SiteGroup, SortKey, group_by_frame, score
from memforensics.case.model import AllocationSite, Case, Cost, Loss, ProbeStatus, TraceSummary
from memforensics.case.store import CaseFile
from memforensics.errors import CaseError, MemforensicsError, ProbeFailed, TargetError, UsageError
from memforensics.jobs.beside import Beside
from memforensics.jobs.observe import Record, Recorder, TreeObserver, new_meta
from memforensics.probes.base import Budget, Probe
from memforensics.report.export import ExportFormat, export
from memforensics.report.export.profile import Profile
from memforensics.report.trace_json import trace_json
from memforensics.report.trace_words import matter_text, trust_sentences
from memforensics.target import Process
from memforensics.target.tree import descendants

EngineName = Literal["bcc", "bpftrace"]
Family = Literal["mappings", "malloc", "faults"]

POLL_S = 0.1
VIEW_S = 1.0  # at most between two views
GROUPING_SHARE = 0.1  # of the time at most spent in grouping sites for the screen
OPEN_TRIES = 3
AUDITS_WAITED_S = 3.0  # at the end, for who intercepts what


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which sites to show, and in what order."""

    sort: SortKey = "outstanding"
    filters: tuple[SiteFilter, ...] = ()  # a site must pass all
    min_age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TraceView:
    """What a trace found, or has found so far. `sites` are those wanted, most outstanding first, those that hold
    nothing at the end included; `groups` have those that hold something, in the wanted order; `left_out` hold something
    and were not wanted. `left`: processes named by the user that left, and how."""

    case: Case
    engine: EngineName
    seconds: float
    sites: tuple[AllocationSite, ...]
    groups: tuple[SiteGroup, ...]
    left_out: tuple[SiteGroup, ...] = ()
    left: tuple[tuple[int, str], ...] = ()

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
    def events(self) -> int:
        return sum(summary.events for summary in self.summaries)

    @property
    def coverage(self) -> float | None:
        known = [s for s in self.summaries if s.resident_bytes is not None and s.coverage is not None]
        growth = sum(s.rss_growth_bytes or 0 for s in known)
        return sum(s.resident_bytes or 0 for s in known) / growth if growth > 0 else None


@dataclass(frozen=True, slots=True)
class TraceTick:
    """Where it stands. `ended`: why this is the last one, None while it goes on."""

    phase: str
    elapsed_s: float
    seconds_left: float
    growth_bytes: int | None
    view: TraceView
    ended: str | None = None


def trace_ticks(
    pids: int | Sequence[int],
    *,
    seconds: float,
    engine: EngineName = "bcc",
    children: bool = True,
    wanted: Wanted = Wanted(),
    record: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Generator[TraceTick, None, None]:
    """Traces processes; a tick each tenth of a second, the last with `ended`. About once a second the view is new.

    Ends when the time is over, all named processes left, `stop` says so, or by Ctrl-C: what was collected is then
    concluded and kept. NoSuchProcess, NotATarget, PermissionNeeded, ToolMissing, ProbeFailed, CaseError, UsageError.
    """
    roots = _roots([pids] if isinstance(pids, int) else pids, children)
    if engine == "bpftrace" and len(roots) > 1:
        raise UsageError("bpftrace traces one process", enable="name one PID, or --engine bcc")
    with contextlib.ExitStack() as opened:
        trees = [opened.enter_context(TreeObserver(pid, children=children)) for pid in roots]
        recorder = opened.enter_context(Recorder(new_meta("trace-mmap", roots[0]), record))
        run = _Run(trees, recorder, engine, children, seconds, wanted)
        yield from run.ticks(stop)


@dataclass(slots=True)
class _Run:
    trees: list[TreeObserver]
    recorder: Recorder
    engine: EngineName
    children: bool
    seconds: float
    wanted: Wanted
    began: float = field(default_factory=time.monotonic)
    beside: Beside = field(default_factory=Beside)
    probe: Probe | None = None
    view: TraceView | None = None
    stale: bool = False  # sites came that the view does not have
    _audited: set[int] = field(default_factory=set)
    _next_view: float = 0.0

    def ticks(self, stop: Callable[[], bool]) -> Generator[TraceTick, None, None]:
        for tree in self.trees:
            self.recorder.put(tree.open())
        ended = "the time is over"
        failed: MemforensicsError | None = None
        try:
            yield self._tick("learning the stacks", self.seconds)
            self.began = time.monotonic()
            probe = self._open()
            self.began = time.monotonic()
            while not stop() and (left := self.seconds - self._elapsed()) > 0 and self._alive():
                self._put(probe.poll())
                for tree in self.trees:
                    self.recorder.put(tree.tick())
                self.recorder.put(self.beside.take())
                yield self._tick("tracing", left)
                time.sleep(min(POLL_S, left))
            if not self._alive():
                ended = "the process left"
            elif stop():
                ended = "stopped"
        except KeyboardInterrupt:
            ended = "interrupted"
        except (TargetError, ProbeFailed) as error:
            failed = error
        except BaseException:  # nobody takes the ticks any more, or nothing could be opened
            with contextlib.suppress(MemforensicsError):
                self._close()
            raise
        took = self._elapsed()
        for tree in self.trees:
            self.recorder.put(tree.tick())
        self._close()
        self.recorder.put([ProbeStatus(name="mmap-trace", status="partial" if failed else "ok", why=str(failed or ""))])
        self.beside.wait(AUDITS_WAITED_S)
        self.recorder.put(self.beside.take())
        if isinstance(failed, ProbeFailed):
            raise failed
        left_how = tuple((tree.pid, tree.root_left) for tree in self.trees if tree.root_left is not None)
        view = view_of(self.recorder.case(), self.engine, took, self.wanted)
        yield TraceTick("done", took, 0.0, self.recorder.growth(), replace(view, left=left_how), ended)

    def _open(self) -> Probe:
        """All of the trees where the probe can, else the root. Children may leave while it opens: then it tries again
        with those that are left."""
        for tries_left in reversed(range(OPEN_TRIES)):
            self.probe = _probe(self.engine)
            members: dict[int, Process] = {}
            for tree in self.trees:
                members |= tree.members
            try:
                open_all(self.probe, list(members.values()), Budget(seconds=self.seconds))
                break
            except TargetError:
                for tree in self.trees:
                    self.recorder.put(tree.tick())
                if not tries_left or not self._alive():
                    raise
        assert self.probe is not None
        return self.probe

    def _close(self) -> None:
        if self.probe is not None:
            self._put(self.probe.close())

    def _put(self, records: Iterable[Record]) -> None:
        """Keeps what is wanted of it: the tracer follows forks by itself. Hooks of each process that has sites are
        looked up once, beside."""
        roots = {tree.pid for tree in self.trees}
        for record in records:
            if isinstance(record, AllocationSite | TraceSummary) and not self.children and record.pid not in roots:
                continue
            self.recorder.put([record])
            if isinstance(record, AllocationSite):
                self.stale = True
                self._audit(record.pid)

    def _audit(self, pid: int) -> None:
        from memforensics.jobs.diagnose import audit_of

        if pid not in self._audited:
            self._audited.add(pid)
            self.beside.run(partial(audit_of, pid))

    def _tick(self, phase: str, left: float) -> TraceTick:
        """With the last view, or a new one where sites came or a second went by; but making views may not take more
        than its share of the time."""
        now = time.monotonic()
        if self.view is None or now >= self._next_view + (0.0 if self.stale else VIEW_S):
            self.view, self.stale = view_of(self.recorder.case(), self.engine, self._elapsed(), self.wanted), False
            self._next_view = now + (time.monotonic() - now) / GROUPING_SHARE
        return TraceTick(phase, self._elapsed(), left, self.recorder.growth(), self.view)

    def _elapsed(self) -> float:
        return time.monotonic() - self.began

    def _alive(self) -> bool:
        return any(tree.root_left is None for tree in self.trees)


def open_all(probe: Probe, members: Sequence[Process], budget: Budget) -> None:
    from memforensics.probes.mmap_trace import MmapTrace

    if isinstance(probe, MmapTrace):
        probe.open(members, budget)
    else:
        probe.open(members[0], budget)


def view_of(case: Case, engine: EngineName, seconds: float, wanted: Wanted = Wanted()) -> TraceView:
    """The groups of a case. Pure."""
    now_ns = max([t.ended_ns for t in case.traces] or [s.t_ns for s in case.samples] or [0])
    passing = [site for site in case.sites if all(f.matches(site) for f in wanted.filters)]
    passing.sort(key=lambda s: (-s.outstanding_bytes, -s.allocated_bytes, s.pid, s.site_id))
    groups = group_by_frame(passing, case.hooks, now_ns)
    young = [group for group in groups if (group.age_s or 0.0) < wanted.min_age_s]
    shown = [group for group in groups if (group.age_s or 0.0) >= wanted.min_age_s]
    shown.sort(key=lambda group: -score(group, wanted.sort))
    chosen = {_key(site) for site in passing}
    others = group_by_frame([site for site in case.sites if _key(site) not in chosen], case.hooks, now_ns)
    if wanted.min_age_s > 0:
        chosen = {_key(site) for group in shown for site in group.sites}
    sites = tuple(site for site in passing if _key(site) in chosen)
    return TraceView(case, engine, seconds, sites, tuple(shown), (*young, *others))


# --- a saved case, and other programs' formats ------------------------------------------------------------------------


def view_of_file(path: Path, family: Family | None = None, wanted: Wanted = Wanted()) -> TraceView:
    """CaseError when it is no case, or has no such sites."""
    with CaseFile.open(path) as file:
        return view_of_case(file.load(), family, wanted)


def view_of_case(case: Case, family: Family | None = None, wanted: Wanted = Wanted()) -> TraceView:
    """What a case of diagnose or trace-mmap holds. Mappings, malloc'ed blocks and faults count the same memory, each
    in its way, and are not mixed. CaseError when there are no such sites."""
    chosen = family or next((f for f in _FAMILIES if any(_family(s) == f for s in case.sites)), None)
    sites = tuple(site for site in case.sites if _family(site) == chosen)
    if not sites:
        raise CaseError(
            f"the case holds no {family or 'allocation'} sites",
            why=f"it was made by memforensics {case.meta.command}",
            enable="memforensics trace-mmap PID --record leak.case",
        )
    engine: EngineName = "bpftrace" if any(trace.engine == "bpftrace" for trace in case.traces) else "bcc"
    seconds = max((trace.ended_ns - trace.began_ns for trace in case.traces), default=0) / 1e9
    return view_of(replace(case, sites=sites), engine, seconds, wanted)


def export_view(view: TraceView, form: ExportFormat) -> bytes:
    """The wanted sites for another program."""
    return export(profile_of(view), form)


def json_of(view: TraceView) -> dict[str, Any]:
    """For --json."""
    rates = [(site, site_rate(site)) for site in view.sites]
    return trace_json(
        rates,
        view.coverage,
        view.losses,
        view.costs,
        view.seconds,
        view.summaries,
        groups=view.groups,
        left_out=view.left_out,
    )


def profile_of(view: TraceView) -> Profile:
    """What every export is made of. Frames of known interposers are marked as such."""
    case, meta = view.case, view.case.meta
    marked = {_key(site): site for group in view.groups for site in group.sites}
    times = [t for trace in case.traces for t in (trace.began_ns, trace.ended_ns)] or [s.t_ns for s in case.samples]
    times = times or [meta.anchor.monotonic_ns]
    root = case.target(meta.root_pid) if meta.root_pid is not None else None
    of_whom = f" of process {meta.root_pid}" if meta.root_pid is not None else ""
    return Profile(
        sites=[marked.get(_key(site), site) for site in view.sites],
        title=f"memforensics {meta.command}{of_whom}",
        version=__version__,
        anchor=meta.anchor,
        began_ns=min(times),
        ended_ns=max(times),
        executable=root.exe if root is not None else None,
        processes={target.pid: target.comm for target in case.targets},
        names={_key(site): matter_text(group) for group in view.groups for site in group.sites},
        samples=case.samples,
        notes=trust_sentences(view.coverage, view.engine, view.seconds, view.losses, view.events),
    )


def _key(site: AllocationSite) -> tuple[int, int]:
    return site.pid, site.site_id


_FAMILIES: tuple[Family, ...] = ("mappings", "malloc", "faults")


def _family(site: AllocationSite) -> Family:
    return "malloc" if site.kind == "malloc" else "faults" if site.kind == "fault" else "mappings"


def _roots(pids: Sequence[int], children: bool) -> list[int]:
    """The processes named, each once and, where children are followed, none that is a descendant of another."""
    named = list(dict.fromkeys(pids))
    if not children or len(named) == 1:
        return named
    below = {child for pid in named for child in descendants(pid)}
    return [pid for pid in named if pid not in below] or named[:1]


def _probe(engine: EngineName) -> Probe:
    if engine == "bpftrace":
        from memforensics.probes.ebpf.bpftrace import BpftraceTrace

        return BpftraceTrace()
    from memforensics.probes.mmap_trace import MmapTrace

    return MmapTrace()
