"""Sentences about a trace that the screen and the exports share. Pure text: each renderer escapes it."""

from collections.abc import Sequence
from typing import Protocol

from memforensics.case.model import AllocationSite, Caller, Frame, Loss
from memforensics.report import observed as say
from memforensics.report.text import library_name
from memforensics.units import duration_text


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
    """mmap shared; mmap, mremap."""
    kinds = ", ".join(sorted({site.kind for site in sites}))
    marks = " shared" * all(site.shared for site in sites) + " file" * all(site.file_backed for site in sites)
    return kinds + marks


def coverage_text(coverage: float | None, engine: str) -> str:
    if coverage is None and engine == "bpftrace":
        return "not known: this engine does not count resident pages"
    if coverage is None:
        return "not known: RSS grew too little, or the process left before its pages were counted"
    return f"{coverage:.1%} of the growth of RSS is accounted for"


def trust_sentences(
    coverage: float | None, engine: str, seconds: float, losses: Sequence[Loss], events: int
) -> list[str]:
    """How far to trust it."""
    return [
        f"observed: {duration_text(seconds)} by {engine}, {events:,} system calls booked",
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
