"""Sentences about a trace that the screen and the exports share. Pure text: each renderer escapes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from memforensics.case.model import AllocationSite, Caller, Frame, Loss
from memforensics.report import observed as say
from memforensics.report.text import library_name
from memforensics.units import duration_text

COVERAGE_NOISE = 0.02  # above 1, that needs no explanation

Family = Literal["mappings", "malloc", "faults"]
FAMILIES: tuple[Family, ...] = ("mappings", "malloc", "faults")


@dataclass(frozen=True, slots=True)
class Words:
    """What the figures of a family of sites are called."""

    held: str  # what a site's outstanding bytes are
    pieces: str  # what is counted of it
    got: str  # what its allocated bytes are
    gets: str  # what its allocations are
    resident: str | None  # what its resident bytes are; None: the same as is held
    events: str  # what was booked
    meaning: str  # what it is evidence of
    nothing: str  # when nothing was found
    heap: str  # the whole, in one line


WORDS: dict[Family, Words] = {
    "mappings": Words(
        held="outstanding",
        pieces="blocks",
        got="allocated",
        gets="allocations",
        resident="resident",
        events="system calls booked",
        meaning="Outstanding is memory that was mapped during the trace and not given back by its end. That alone does "
        "not make it a leak.",
        nothing="Nothing that was mapped since the start is outstanding.",
        heap="mappings that are not given back",
    ),
    "malloc": Words(
        held="outstanding",
        pieces="blocks",
        got="allocated",
        gets="allocations",
        resident="resident",
        events="allocations booked",
        meaning="Outstanding is memory that was allocated during the trace and not freed by its end. That alone does "
        "not make it a leak.",
        nothing="Nothing that was allocated since the start is outstanding.",
        heap="malloc'ed blocks that are not freed",
    ),
    "faults": Words(
        held="still resident",
        pieces="touches",
        got="touched",
        gets="faults",
        resident=None,
        events="faults that made memory resident",
        meaning="Evidence of who touches new memory, not of who leaks: a leaked block that reuses pages that were "
        "touched before costs no fault, and the next temporary that has to take new ones is named here instead. No "
        "culprit rests on it alone.",
        nothing="No new memory was touched that is still resident.",
        heap="touched pages that are still resident",
    ),
}


def family_of(site: AllocationSite) -> Family:
    return "malloc" if site.kind == "malloc" else "faults" if site.kind == "fault" else "mappings"


class Group(Protocol):
    """Sites that are one line to a person; analysis makes them."""

    @property
    def key(self) -> tuple[object, ...]: ...
    @property
    def pid(self) -> int: ...
    @property
    def named(self) -> Frame | None: ...
    @property
    def caller(self) -> Caller | None: ...
    @property
    def inside(self) -> str | None: ...
    @property
    def sites(self) -> tuple[AllocationSite, ...]: ...
    @property
    def bytes_per_minute(self) -> float | None: ...
    @property
    def age_s(self) -> float | None: ...
    @property
    def outstanding_bytes(self) -> int: ...
    @property
    def outstanding_count(self) -> int: ...
    @property
    def allocated_bytes(self) -> int: ...
    @property
    def allocated_count(self) -> int: ...
    @property
    def resident_bytes(self) -> int | None: ...


def matter_text(group: Group) -> str:
    """ucs_mpool_grow (mpool.c:266) inside munmap <- Model.stage_tensor (service.py:101): the frame that matters, and
    the application's innermost Python function where that is another."""
    named, caller = group.named, group.caller
    parts = [_frame_text(named)] if named is not None else []
    if parts and group.inside is not None:
        parts[0] += f" inside {group.inside}"
    if caller is not None and (named is None or (named.file, named.function) != (caller.file, caller.function)):
        parts.append(f"{caller.function} ({say.place(library_name(caller.file), caller.line)})")
    if not parts:
        parts = [_frame_text(frame) for frame in group.sites[0].stack.frames[:2]]
    return " <- ".join(parts) or "unknown"


def kind_text(sites: Sequence[AllocationSite]) -> str:
    """mmap shared; mmap, mremap; of faults: anonymous, shared, file."""
    kinds = ", ".join(sorted({site.kind for site in sites if site.kind != "fault"}))
    marks = " shared" * all(site.shared for site in sites) + " file" * all(site.file_backed for site in sites)
    return (kinds + marks).strip() or "anonymous"


def coverage_text(coverage: float | None, engine: str) -> str:
    if coverage is None and engine == "bpftrace":
        return "not known: this engine does not count resident pages"
    if coverage is None:
        return "not known: RSS grew too little, or the process left before its pages were counted"
    above = ": other pages went meanwhile" if coverage > 1 + COVERAGE_NOISE else ""
    return f"{coverage:.1%} of the growth of RSS is accounted for{above}"


def observed_text(seconds: float, engine: str, events: int, words: Words) -> str:
    return f"{duration_text(seconds)} by {engine}, {events:,} {words.events}"


def trust_sentences(
    coverage: float | None, engine: str, seconds: float, losses: Sequence[Loss], events: int, words: Words
) -> list[str]:
    """How far to trust it."""
    return [
        f"observed: {observed_text(seconds, engine, events, words)}",
        f"coverage: {coverage_text(coverage, engine)}",
        *(f"lost: {loss_text(loss)}" for loss in losses),
        *([] if losses else ["lost: nothing"]),
    ]


def loss_text(loss: Loss) -> str:
    return f"{loss.count:,} {loss.what}" + (f" (less with: {loss.reduce})" if loss.reduce else "")


def _frame_text(frame: Frame) -> str:
    place = library_name(frame.module if frame.kind != "python" and frame.module else frame.file or "")
    line = f":{frame.line}" if frame.line is not None and frame.kind == "python" else ""
    return f"{say.frame_name(frame)} ({place}{line})" if place else say.frame_name(frame)
