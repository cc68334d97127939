"""The interface of a probe: availability(target), open(target, budget), poll() any number of times, close()."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from memforensics.case.model import (
    AllocationSite,
    CapturedStack,
    Cost,
    HeapProfile,
    HeapState,
    Hook,
    HookAudit,
    Loss,
    Module,
    Pause,
    ProbeState,
    ReferenceCheck,
    Sample,
    Snapshot,
    Target,
    TraceSummary,
)
from memforensics.target import Process

Evidence = (
    Target
    | Module
    | Sample
    | Snapshot
    | AllocationSite
    | TraceSummary
    | Hook
    | HookAudit
    | CapturedStack
    | HeapState
    | ReferenceCheck
    | HeapProfile
    | Loss
    | Pause
    | Cost
)


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a probe can observe the target: ok, partial or unavailable. The latter two have a `why`, and in `enable`
    the exact command or setting that helps."""

    status: ProbeState
    why: str = ""
    enable: str = ""


@dataclass(frozen=True, slots=True)
class Budget:
    """The time and overhead that a probe may use."""

    seconds: float
    overhead: float | None = None  # share of the target's CPU above the floor, 0 to 1; None: no limit


class Probe(Protocol):
    """One way of observing. `open` may raise ProbeFailed, PermissionNeeded, ToolMissing. `poll` returns what is new
    since the last call, and raises TargetGone when the target left. `close` always works, also twice, and returns the
    last evidence, with losses and costs."""

    name: str

    def availability(self, target: Process) -> Availability: ...

    def open(self, target: Process, budget: Budget) -> None: ...

    def poll(self) -> Iterable[Evidence]: ...

    def close(self) -> Iterable[Evidence]: ...
