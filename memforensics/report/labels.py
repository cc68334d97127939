"""Names and sentences about a trace that the screen and the exports share. Plain text: each renderer escapes it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from memforensics.case.model import AllocationSite, Frame
from memforensics.case.views import Family, SiteGroup, TraceView
from memforensics.report.sentences import frame_name, loss_text, source_place
from memforensics.text import basename
from memforensics.units import duration_text

# Brackets and spaces that are part of the name of a C++ function
_OPERATORS = re.compile(
    r"\boperator *(?:\(\)|->\*?|<=>|<<=?|>>=?|[<>]=?|new\b|delete\b)|\(anonymous namespace\)|\{[^{}]*\}|->"
)
_HIDE = {ord(bracket): chr(0xE000 + at) for at, bracket in enumerate("()<> ")}
_SHOW = {ord(hidden): chr(bracket) for bracket, hidden in _HIDE.items()}

COVERAGE_NOISE = 0.02  # a coverage of up to so much above 1 is not explained


@dataclass(frozen=True, slots=True)
class Labels:
    """What the figures of a family of sites are called."""

    held: str  # outstanding bytes
    column: str  # the same, for a narrow column
    unit: str  # one of what is counted
    units: str
    allocated: str  # allocated bytes
    allocations: str
    resident: str | None  # resident bytes; None: the same as `held`
    events: str
    meaning: str  # what the sites are evidence of
    nothing: str  # when there are no sites
    profile: str  # name of the whole in an export


LABELS: dict[Family, Labels] = {
    "mappings": Labels(
        held="outstanding",
        column="outstanding",
        unit="block",
        units="blocks",
        allocated="allocated",
        allocations="allocations",
        resident="resident",
        events="system calls recorded",
        meaning="Outstanding memory was mapped during the trace and not unmapped by its end. That alone does not prove "
        "a leak.",
        nothing="No memory that was mapped during the trace is outstanding.",
        profile="mappings that are not unmapped",
    ),
    "malloc": Labels(
        held="outstanding",
        column="outstanding",
        unit="block",
        units="blocks",
        allocated="allocated",
        allocations="allocations",
        resident="resident",
        events="allocations recorded",
        meaning="Outstanding memory was allocated during the trace and not freed by its end. That alone does not prove "
        "a leak.",
        nothing="No memory that was allocated during the trace is outstanding.",
        profile="malloc blocks that are not freed",
    ),
    "faults": Labels(
        held="still resident",
        column="resident",
        unit="page fault",
        units="page faults",
        allocated="touched",
        allocations="faults",
        resident=None,
        events="faults that made memory resident",
        meaning="This shows which code touches new memory: a hint, not proof of a leak. A leaked block in pages that "
        "were touched before causes no fault, and the next code that needs new pages is shown instead.",
        nothing="No memory that was touched during the trace is still resident.",
        profile="touched pages that are still resident",
    ),
}


def group_name(group: SiteGroup, *, plain: bool = False, places: bool = True) -> str:
    """ucs_mpool_grow (libucs.so.0) inside munmap <- Model.stage_tensor (service.py:101): the frame that matters, and
    the application's innermost Python function if that is another. `plain`: without C++ parameters; `places`: with
    files and lines, and whether the memory made a heap larger."""
    named, caller = group.named, group.caller
    parts = [_frame_text(named, plain, places)] if named is not None else []
    if parts and group.inside is not None:
        parts[0] += f" inside {group.inside}"
    if parts and group.extends and places:
        parts[0] += " extends the heap"
    if caller is not None and (named is None or (named.file, named.function) != (caller.file, caller.function)):
        place = f" ({source_place(basename(caller.file), caller.line)})" if places else ""
        parts.append(caller.function + place)
    if not parts:
        parts = [_frame_text(frame, plain, places) for frame in group.sites[0].stack.frames[:2]]
    return " <- ".join(parts) or "unknown"


def group_name_in(group: SiteGroup, width: int) -> str:
    """The same in `width` columns. What does not fit is left out in this order: C++ parameters, files and lines, the
    beginning of the first function."""
    for plain, places in ((False, True), (True, True), (True, False)):
        text = group_name(group, plain=plain, places=places)
        if len(text) <= width:
            return text
    first, arrow, caller = text.partition(" <- ")
    room = width - len(arrow + caller)
    return f"…{first[1 - room :]}{arrow}{caller}" if arrow and room >= 8 else text


def plain_function(name: str) -> str:
    """at::native::fill for `void at::native::fill<float>(at::Tensor&, float)`: a C++ function without its result type,
    template arguments and parameters. Other names do not change."""
    if name.startswith("<") or not re.search(r"[<(]", name):
        return name
    out, depth = "", 0
    for character in _OPERATORS.sub(lambda found: found[0].translate(_HIDE), name):
        if character == "(" and depth == 0:
            break
        depth += {"<": 1, ">": -1}.get(character, 0)
        if depth == 0 and character != ">":
            out += character
    return out.strip().rpartition(" ")[2].translate(_SHOW) or name


def kind_text(sites: Sequence[AllocationSite]) -> str:
    """mmap shared; mmap, mremap; for faults: anonymous, shared, file."""
    kinds = ", ".join(sorted({site.kind for site in sites if site.kind != "fault"}))
    marks = " shared" * all(site.shared for site in sites) + " file" * all(site.file_backed for site in sites)
    return (kinds + marks).strip() or "anonymous"


def coverage_text(view: TraceView) -> str:
    coverage = view.coverage
    if coverage is None and view.engine == "bpftrace":
        return "unknown: bpftrace does not count resident pages"
    if coverage is None:
        return "unknown: RSS grew too little, or the process exited before its pages were counted"
    above = "; other pages were freed in that time" if coverage > 1 + COVERAGE_NOISE else ""
    return f"the traced memory explains {coverage:.1%} of the growth of RSS{above}"


def observed_text(view: TraceView) -> str:
    return f"{duration_text(view.seconds)} by {view.engine}, {view.events:,} {LABELS[view.family].events}"


def trust_sentences(view: TraceView) -> list[str]:
    """How complete a trace is."""
    return [
        f"observed: {observed_text(view)}",
        f"coverage: {coverage_text(view)}",
        *(f"lost: {loss_text(loss)}" for loss in view.case.losses),
        *([] if view.case.losses else ["lost: nothing"]),
    ]


def _frame_text(frame: Frame, plain: bool, places: bool) -> str:
    is_python = frame.kind == "python"
    name = frame_name(frame)
    if plain and not is_python:
        name = plain_function(name)
    place = basename(frame.module if not is_python and frame.module else frame.file or "")
    if not place or (not places and frame.function):
        return name
    line = f":{frame.line}" if frame.line is not None and is_python else ""
    return f"{name} ({place}{line})"
