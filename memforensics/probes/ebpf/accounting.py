"""What a trace counts, and how: the part in which traces of mappings and of page faults differ."""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from memforensics.case.model import AllocationSite, Releases
from memforensics.errors import ProbeFailed
from memforensics.probes.ebpf.loader.program_set import LossRow, StackPrograms
from memforensics.probes.ebpf.traced_processes import S, TracedProcess
from memforensics.target import Process

if TYPE_CHECKING:
    from memforensics.probes.ebpf.trace_loop import TraceLoop


class Totals(NamedTuple):
    """One process at the end. `resident_bytes`: without files. `unknown_bytes`: mapped by unknown code, because events
    were dropped; None: not compared with /proc."""

    events: int
    outstanding_bytes: int
    resident_bytes: int | None
    unknown_bytes: int | None = None
    releases: tuple[Releases, ...] = ()


class Accounting(Protocol[S]):
    """What a trace counts, and how."""

    name: str

    def unsupported(self) -> str | None:
        """Why this kernel cannot run it; None: it can."""

    def load(self, trace: "TraceLoop[S, Any]", *, bounded: bool) -> StackPrograms:
        """The armed programs of this trace. `bounded`: its overhead has a bound. ToolMissing, PermissionNeeded,
        ProbeFailed."""

    def open_space(self, number: int, process: Process, site_numbers: "itertools.count[int]") -> S:
        """TargetGone, PermissionNeeded."""

    def target(self, traced: TracedProcess[S]) -> bytes:
        """What the kernel keeps of a process: struct target of the programs."""

    def start(self, traced: TracedProcess[S]) -> None:
        """Recording starts for a process, or for the new program that it runs."""

    def poll(self) -> None:
        """A few times a second, after events were handled."""

    def sample(self, now: int) -> Iterator[AllocationSite]:
        """About once a second, after the counters were read. The sites that changed, named as they are taken."""

    def before_detach(self) -> None:
        """At the end, while events still come; it may take CATCH_UP_S."""

    def finish(self, ended_ns: int) -> None:
        """After the programs were detached and the last events handled."""

    def totals(self, traced: TracedProcess[S], ended_ns: int) -> Totals: ...

    def blind(self, traced: TracedProcess[S]) -> ProbeFailed | None:
        """The error when a process grew by BLIND_GROWTH or more and no event was seen."""

    def losses(self) -> Iterator[LossRow]: ...
