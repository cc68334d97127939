"""What a probe is: availability(target) -> open(target, budget) -> poll() ... -> close()."""

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
    """Whether a probe can observe this target here: ok; partial (some of it); unavailable. `why` and `enable` (the
    exact command or setting) for the latter two."""

    status: ProbeState
    why: str = ""
    enable: str = ""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a probe may spend."""

    seconds: float
    overhead: float | None = None  # share of the target's CPU above the floor, 0 to 1; None: no bound asked for


class Probe(Protocol):
    """One way of observing. `open` may raise ProbeFailed, PermissionNeeded, ToolMissing; `poll` gives what is new
    since the last call and raises TargetGone when the target left; `close` always works, twice too, and gives the
    last evidence, losses and costs included."""

    name: str

    def availability(self, target: Process) -> Availability: ...

    def open(self, target: Process, budget: Budget) -> None: ...

    def poll(self) -> Iterable[Evidence]: ...

    def close(self) -> Iterable[Evidence]: ...
