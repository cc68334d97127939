"""What the commands show: values that analysis and jobs make, and that report renders.

The conventions are those of case.model. A case holds none of these values.
"""

from collections import Counter
from collections.abc import Mapping as MappingOf
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from memforensics.case.model import (
    EXIT_CODES,
    AllocationSite,
    Caller,
    CapturedStack,
    Case,
    CaseMeta,
    Diagnosis,
    Frame,
    Growth,
    HeapProfile,
    Hook,
    HookAudit,
    KernelTotals,
    Layer,
    LayerRow,
    Loss,
    Mapping,
    MappingGroup,
    Module,
    Pause,
    Sample,
    Snapshot,
    Target,
    Verdict,
)
from memforensics.errors import ProbeFailed
from memforensics.units import NS_PER_S, duration_text

# --- trace-mmap, trace-faults, and the exports ---------------------------------------------------------------------

EngineName = Literal["bcc", "bpftrace"]
Family = Literal["mappings", "malloc", "faults"]
FAMILIES: tuple[Family, ...] = ("mappings", "malloc", "faults")

GroupKey = tuple[object, ...]


def family_of(site: AllocationSite) -> Family:
    return "malloc" if site.kind == "malloc" else "faults" if site.kind == "fault" else "mappings"


@dataclass(frozen=True, slots=True)
class SiteGroup:
    """Sites of one process and layer that have the frame that matters, and the application's function, in common.

    `sites` by outstanding bytes, most first, with hook frames marked. `inside`: the function that releases memory and
    inside whose replacement this memory was requested. `extends`: the memory made a heap larger. `age_s`: the median
    age of the outstanding blocks where ages were read (they are at the end of a trace), else how long the group has
    held memory without a break.
    """

    key: GroupKey
    pid: int
    layer: Layer
    extends: bool
    named: Frame | None
    caller: Caller | None
    inside: str | None
    sites: tuple[AllocationSite, ...]
    bytes_per_minute: float | None
    age_s: float | None

    @property
    def outstanding_bytes(self) -> int:
        return sum(site.outstanding_bytes for site in self.sites)

    @property
    def outstanding_count(self) -> int:
        return sum(site.outstanding_count for site in self.sites)

    @property
    def allocated_bytes(self) -> int:
        return sum(site.allocated_bytes for site in self.sites)

    @property
    def allocated_count(self) -> int:
        return sum(site.allocated_count for site in self.sites)

    @property
    def resident_bytes(self) -> int | None:
        """None when it was not read for one of them."""
        known = [site.resident_bytes for site in self.sites if site.resident_bytes is not None]
        return sum(known) if len(known) == len(self.sites) else None


@dataclass(frozen=True, slots=True)
class TraceView:
    """What a trace has found. `sites` are those selected, most outstanding first, page cache last, including sites
    that hold nothing at the end. `groups` have the sites that hold memory, in the selected order, and `file_groups`
    those of page cache. `left_out`: groups that hold memory and were not selected. `left`: the named processes that
    exited, and how."""

    case: Case
    family: Family
    engine: EngineName
    seconds: float
    sites: tuple[AllocationSite, ...]
    rates: tuple[float | None, ...]  # bytes a minute, of each site
    groups: tuple[SiteGroup, ...]
    file_groups: tuple[SiteGroup, ...] = ()
    left_out: tuple[SiteGroup, ...] = ()
    left: tuple[tuple[int, str], ...] = ()

    @property
    def events(self) -> int:
        return sum(summary.events for summary in self.case.traces)

    @property
    def coverage(self) -> float | None:
        known = [s for s in self.case.traces if s.resident_bytes is not None and s.coverage is not None]
        growth = sum(s.rss_growth_bytes or 0 for s in known)
        return sum(s.resident_bytes or 0 for s in known) / growth if growth > 0 else None


@dataclass(frozen=True, slots=True)
class TraceTick:
    """How far a trace is. `ended`: why this is the last tick; None while it runs."""

    phase: str
    elapsed_s: float
    seconds_left: float
    growth_bytes: int | None
    view: TraceView
    ended: str | None = None


# --- snapshot and diff ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OwnedGroup:
    """Mappings of one owner at one time. `bytes`: resident; in_rss False: mapped, but outside RSS."""

    name: str
    layer: Layer
    count: int
    bytes: int
    in_rss: bool = True


@dataclass(frozen=True, slots=True)
class SnapshotView:
    """What `memforensics snapshot` shows."""

    target: Target | None
    snapshot: Snapshot
    layers: tuple[LayerRow, ...]
    kernel_totals: KernelTotals
    groups: tuple[OwnedGroup, ...]  # the largest first
    mappings: tuple[tuple[Mapping, str, Layer], ...]  # with the group and layer of most of its bytes
    losses: tuple[Loss, ...] = ()


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a diff: what was there at that time, and where it comes from."""

    snapshots: tuple[Snapshot, ...]  # one of each process, the main one first
    name: str  # "leak.case, first snapshot", "PID 4711"
    targets: tuple[Target, ...] = ()  # others of the case, too
    losses: tuple[Loss, ...] = ()

    def target(self, pid: int) -> Target | None:
        return next((target for target in self.targets if target.pid == pid), None)


@dataclass(frozen=True, slots=True)
class ProcessChange:
    """One process of a tree. None: it was not there."""

    pid: int
    name: str
    before_bytes: int | None
    after_bytes: int | None

    @property
    def change_bytes(self) -> int:
        return (self.after_bytes or 0) - (self.before_bytes or 0)

    @property
    def what(self) -> str:
        if self.before_bytes is None:
            return "appeared"
        if self.after_bytes is None:
            return "went"
        return "grew" if self.change_bytes > 0 else "shrank" if self.change_bytes < 0 else "same"


@dataclass(frozen=True, slots=True)
class DiffView:
    """What `memforensics diff` shows."""

    before: Side
    after: Side
    groups: tuple[MappingGroup, ...]
    layers: tuple[LayerRow, ...]
    processes: tuple[ProcessChange, ...]  # largest change first
    change_bytes: int  # the sum of the groups' changes
    same_process: bool
    losses: tuple[Loss, ...] = ()

    @property
    def seconds(self) -> float | None:
        """Between the two; None for different processes."""
        if not self.same_process:
            return None
        first, last = (max(s.t_ns for s in side.snapshots) for side in (self.before, self.after))
        return (last - first) / NS_PER_S


# --- hooks, stacks, heap, doctor -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HooksView:
    """What `memforensics hooks` shows."""

    target: Target
    hooks: tuple[Hook, ...]
    audit: HookAudit
    modules: tuple[Module, ...]
    losses: tuple[Loss, ...]
    meanings: MappingOf[str, str]  # function -> what its hook means


@dataclass(frozen=True, slots=True)
class StacksView:
    """What `memforensics stacks` shows."""

    target: Target
    captures: tuple[CapturedStack, ...]
    pauses: tuple[Pause, ...]
    losses: tuple[Loss, ...]
    call: str = ""  # what was waited for: "mmap", "mmap where length == 4096"
    timeout_s: float = 0.0
    why_nothing: str = ""  # where nothing was captured and the time did not run out

    @property
    def nothing(self) -> str | None:
        """Why there is no capture; None when there is one."""
        if self.captures:
            return None
        why = f" ({self.why_nothing})" if self.why_nothing else ""
        return f"nothing was captured: no call of {self.call} in {duration_text(self.timeout_s)}{why}"

    @property
    def total_ms(self) -> float:
        return sum(pause.ms for pause in self.pauses)

    @property
    def longest_ms(self) -> float:
        return max((pause.ms for pause in self.pauses), default=0.0)


@dataclass(frozen=True, slots=True)
class HeapView:
    """What `memforensics heap --memray` shows. `sites`: the largest outstanding, by Python stack."""

    target: Target
    profile: HeapProfile
    sites: tuple[AllocationSite, ...]
    pause: Pause
    losses: tuple[Loss, ...]

    def rate(self, outstanding_bytes: int) -> float | None:
        """Bytes a minute, over the time tracked."""
        seconds = self.profile.seconds
        return outstanding_bytes * 60 / seconds if seconds > 0 else None


@dataclass(frozen=True, slots=True)
class Check:
    """One check of the host or of a process. `why`: what was found, in both cases. `enable`: the exact command or
    setting; empty when ok. `essential`: diagnose with stacks does not work fully without it."""

    name: str
    ok: bool
    why: str = ""
    enable: str = ""
    essential: bool = False


@dataclass(frozen=True, slots=True)
class Examination:
    """What `memforensics doctor` shows."""

    checks: tuple[Check, ...]

    @property
    def exit_code(self) -> int:
        """0 when everything that diagnose needs is there, else 3."""
        return 0 if all(check.ok for check in self.checks if check.essential) else 3


# --- case files ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listing:
    """What a case file holds. Times are Unix nanoseconds; None where nothing has a time."""

    path: Path
    file_bytes: int  # with its write-ahead log
    schema: int  # version of the case file's tables
    meta: CaseMeta
    targets: tuple[Target, ...]
    counts: MappingOf[str, int]  # table -> rows
    began_wall_ns: int | None
    ended_wall_ns: int | None

    @property
    def seconds(self) -> float | None:
        if self.began_wall_ns is None or self.ended_wall_ns is None:
            return None
        return (self.ended_wall_ns - self.began_wall_ns) / NS_PER_S


@dataclass(slots=True)
class Symbolized:
    """What `memforensics case symbolize` changed. Each place (module, build-id and offset) counts once."""

    path: Path
    stacks_changed: int = 0
    named: int = 0  # places that have a function now and had none
    placed: int = 0  # places that have a file and line now and had none
    known: int = 0  # places that had both
    inlined: int = 0  # frames of inlined functions that were added
    unnamed: Counter[tuple[str, str | None, str]] = field(default_factory=Counter)  # (module, build-id, why) -> places


# --- watch and ci --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ages:
    """When each part of what is shown was read or concluded (monotonic ns); None: not yet."""

    verdict_ns: int
    layers_ns: int | None = None  # of the snapshot that the layers come from; of several processes the oldest
    oldest_ns: int | None = None  # of the oldest figure of a mapping in it


@dataclass(frozen=True, slots=True)
class WatchTick:
    """What is known at one tick. Sizes are current; `case` and `diagnosis` are those of the last conclusion, except
    for the list of processes."""

    t_ns: int  # monotonic
    elapsed_s: float
    case: Case
    diagnosis: Diagnosis
    now: MappingOf[int, Sample]  # the newest of each living member
    ages: Ages
    line: tuple[int, ...] = ()  # bytes of the growth metric over time, the whole tree
    events: tuple[tuple[int, str], ...] = ()  # (PID, what happened to it), the newest
    search: str | None = None  # progress of the search for the cause
    ended: str | None = None  # why this is the last tick of the process
    judged: bool = True  # concluded at this very tick
    record_ended: str | None = None  # why the case file is not written any more
    is_news: bool = True  # more than sizes and ages differs from the tick before

    @property
    def rss(self) -> int:
        return sum(sample.rss for sample in self.now.values())

    def age_s(self, then_ns: int | None) -> float | None:
        return None if then_ns is None else max(self.t_ns - then_ns, 0) / NS_PER_S


@dataclass(frozen=True, slots=True)
class Scenario:
    """One command that went through the gate of `ci`. Without a case: it ended before it could be observed."""

    name: str
    passed: bool
    message: str
    seconds: float
    verdict: Verdict = "insufficient-data"
    case: Case | None = None
    diagnosis: Diagnosis | None = None
    case_file: Path | None = None
    failed_to_observe: bool = False

    @property
    def growth(self) -> Growth | None:
        return self.diagnosis.growth if self.diagnosis else None

    @property
    def exit_code(self) -> int:
        if self.failed_to_observe:
            return ProbeFailed.exit_code
        return 0 if self.passed else EXIT_CODES[self.verdict] or 1
