"""trace-mmap and trace-faults: the allocation sites of processes for some seconds."""

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from memforensics.analysis.trace_view import ALL, Selection, view_of
from memforensics.case.model import AllocationSite, ProbeStatus, TraceSummary
from memforensics.case.views import EngineName, TraceTick, TraceView
from memforensics.errors import MemforensicsError, ProbeFailed, TargetError, UsageError
from memforensics.jobs.observe.background import BackgroundTasks
from memforensics.jobs.observe.recorder import Limits, Record, Recorder, new_meta
from memforensics.jobs.observe.tree import TreeObserver
from memforensics.probes.base import Budget, Probe
from memforensics.target import Process
from memforensics.target.tree import descendants

TracedFamily = Literal["mappings", "faults"]
COMMANDS: dict[TracedFamily, str] = {"mappings": "trace-mmap", "faults": "trace-faults"}

POLL_S = 0.1
VIEW_S = 1.0  # the longest time between two views
GROUPING_SHARE = 0.1  # of the time, at most, for grouping sites for the screen
OPEN_TRIES = 3
AUDIT_WAIT_S = 3.0  # at the end, for the hook audit


def trace_ticks(
    pids: int | Sequence[int],
    *,
    seconds: float,
    family: TracedFamily = "mappings",
    engine: EngineName = "bcc",
    children: bool = True,
    selection: Selection = ALL,
    record: Path | None = None,
    overhead: float | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Generator[TraceTick, None, None]:
    """Traces processes. A tick comes every POLL_S; the last has `ended`. The view is new about once a second.

    It ends when the time is over, when all given processes have left, when `stop` says so, or at Ctrl-C; it keeps what
    it has. NoSuchProcess, NotATarget, PermissionNeeded, ToolMissing, ProbeFailed, CaseError, UsageError.
    """
    roots = _roots([pids] if isinstance(pids, int) else pids, children)
    if engine == "bpftrace" and len(roots) > 1:
        raise UsageError("bpftrace can trace only one process", enable="name one PID, or --engine bcc")
    if engine == "bpftrace" and overhead is not None:
        raise UsageError("bpftrace cannot limit its overhead", enable="--engine bcc")
    with contextlib.ExitStack() as opened:
        trees = [opened.enter_context(TreeObserver(pid, children=children)) for pid in roots]
        recorder = opened.enter_context(Recorder(new_meta(COMMANDS[family], roots[0]), record, Limits()))
        run = _Run(trees, recorder, family, engine, children, seconds, selection, overhead)
        yield from run.ticks(stop)


@dataclass(slots=True)
class _Run:
    trees: list[TreeObserver]
    recorder: Recorder
    family: TracedFamily
    engine: EngineName
    children: bool
    seconds: float
    selection: Selection
    overhead: float | None = None  # the limit, as a share of the traced CPU time
    began: float = field(default_factory=time.monotonic)
    background: BackgroundTasks = field(default_factory=BackgroundTasks)
    probe: Probe | None = None
    view: TraceView | None = None
    stale: bool = False  # sites have come since the view was made
    _audited: set[int] = field(default_factory=set)
    _next_view: float = 0.0

    def ticks(self, stop: Callable[[], bool]) -> Generator[TraceTick, None, None]:
        for tree in self.trees:
            self.recorder.put(tree.open())
        ended = "the time is over"
        from memforensics.probes.ebpf.trace_loop import TraceLoop

        failed: MemforensicsError | None = None
        try:
            yield self._tick("starting", self.seconds)
            self.began = time.monotonic()
            probe = self._open()
            self.began = time.monotonic()
            while not stop() and (left := self.seconds - self._elapsed()) > 0 and self._alive():
                self._put(probe.poll())
                for tree in self.trees:
                    self.recorder.put(tree.tick())
                self.recorder.put(self.background.take())
                yield self._tick("tracing", left)
                if isinstance(probe, TraceLoop) and probe.declined:
                    ended = "it costs more than --overhead allows"
                    break
                time.sleep(min(POLL_S, left))
            if not self._alive():
                ended = "the process left"
            elif stop():
                ended = "stopped"
        except KeyboardInterrupt:
            ended = "interrupted"
        except (TargetError, ProbeFailed) as error:
            failed = error
        except BaseException:  # the caller stopped, or nothing could be opened
            with contextlib.suppress(MemforensicsError):
                self._close()
            raise
        took = self._elapsed()
        for tree in self.trees:
            self.recorder.put(tree.tick())
        self._close()
        name = self.probe.name if self.probe is not None else COMMANDS[self.family]
        self.recorder.put([ProbeStatus(name=name, status="partial" if failed else "ok", why=str(failed or ""))])
        self.background.wait(AUDIT_WAIT_S)
        self.recorder.put(self.background.take())
        if isinstance(failed, ProbeFailed):
            raise failed
        left_how = tuple((tree.pid, tree.root_left) for tree in self.trees if tree.root_left is not None)
        view = replace(self._view(), seconds=took, left=left_how)
        yield TraceTick("done", took, 0.0, self.recorder.growth(), view, ended)

    def _open(self) -> Probe:
        """Opens the probe on all members, or on the root if it traces one process. If a child leaves meanwhile, tries
        again without it."""
        for tries_left in reversed(range(OPEN_TRIES)):
            self.probe = _probe(self.family, self.engine)
            members: dict[int, Process] = {}
            for tree in self.trees:
                members |= tree.members
            try:
                open_all(self.probe, list(members.values()), Budget(seconds=self.seconds, overhead=self.overhead))
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
        """Keeps the records, without children if those are not wanted: the tracer follows forks by itself. Audits the
        hooks of each process that has sites, once, in the background."""
        roots = {tree.pid for tree in self.trees}
        for record in records:
            if isinstance(record, AllocationSite | TraceSummary) and not self.children and record.pid not in roots:
                continue
            self.recorder.put([record])
            if isinstance(record, AllocationSite):
                self.stale = True
                self._audit(record.pid)

    def _audit(self, pid: int) -> None:
        if pid not in self._audited:
            self._audited.add(pid)
            self.background.run(partial(_audit_of, pid))

    def _tick(self, phase: str, left: float) -> TraceTick:
        """A tick with the last view, or with a new one if sites came or VIEW_S has passed; making views takes at most
        GROUPING_SHARE of the time."""
        now = time.monotonic()
        if self.view is None or now >= self._next_view + (0.0 if self.stale else VIEW_S):
            self.view, self.stale = self._view(), False
            self._next_view = now + (time.monotonic() - now) / GROUPING_SHARE
        return TraceTick(phase, self._elapsed(), left, self.recorder.growth(), self.view)

    def _view(self) -> TraceView:
        return view_of(self.recorder.case(), self.engine, self._elapsed(), self.selection, self.family)

    def _elapsed(self) -> float:
        return time.monotonic() - self.began

    def _alive(self) -> bool:
        return any(tree.root_left is None for tree in self.trees)


def open_all(probe: Probe, members: Sequence[Process], budget: Budget) -> None:
    from memforensics.probes.ebpf.trace_loop import TraceLoop

    if isinstance(probe, TraceLoop):
        probe.open(members, budget)
    else:
        probe.open(members[0], budget)


def _roots(pids: Sequence[int], children: bool) -> list[int]:
    """The given processes, each once; with `children` without those that descend from another."""
    named = list(dict.fromkeys(pids))
    if not children or len(named) == 1:
        return named
    below = {child for pid in named for child in descendants(pid)}
    return [pid for pid in named if pid not in below] or named[:1]


def _audit_of(pid: int) -> Sequence[Record]:
    from memforensics.jobs.hooks import audit_records  # a slow import, which must not delay the first sites

    return audit_records(pid)


def _probe(family: TracedFamily, engine: EngineName) -> Probe:
    if family == "faults":
        from memforensics.probes.ebpf.faults.probe import fault_trace

        return fault_trace()
    if engine == "bpftrace":
        from memforensics.probes.ebpf.bpftrace import BpftraceTrace

        return BpftraceTrace()
    from memforensics.probes.ebpf.mmap.probe import mmap_trace

    return mmap_trace()
