"""What the compiler inlined at an address: DW_TAG_inlined_subroutine (DWARF 5, 3.3.8.2) of one unit."""

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from memforensics.symbols.names.dwarf import (
    ABSTRACT_ORIGIN,
    CALL_FILE,
    CALL_LINE,
    DECL_LINE,
    LINKAGE_NAME,
    NAME,
    SIBLING,
    SPECIFICATION,
    Abbrev,
    Attributes,
    Unit,
)
from memforensics.symbols.names.timebudget import OutOfTime, TimeBudget
from memforensics.symbols.unwind.frame_instructions import Cursor

_LEXICAL_BLOCK, _INLINED, _SUBPROGRAM = 0x0B, 0x1D, 0x2E
_WITH_CODE = frozenset({_LEXICAL_BLOCK, _INLINED, _SUBPROGRAM})
# Types and what describes calls: nothing inside them has code. Skipped whole where the compiler says how far they go.
_WITHOUT_CODE = frozenset({0x01, 0x02, 0x04, 0x13, 0x17, 0x48, 0x4109, 0x15})
_MAX_FUNCTIONS = 1 << 18
_MAX_ORIGINS = 16
_MAX_DEPTH = 128  # inlined into each other
_CHECK_EVERY = 2048  # entries between two looks at the clock


@dataclass(frozen=True, slots=True)
class InlinedCall:
    """A function that was inlined, and where it was called. `file` is a number of the unit's file table."""

    function: str | None
    file: int | None
    line: int | None


class _Entry(NamedTuple):
    offset: int  # in the unit
    abbrev: Abbrev
    at: int  # where its attributes begin
    depth: int


class Functions:
    """The functions of one unit that have code, by address. Made of one pass over its entries, in which gcc's functions
    and types are stepped over whole. OutOfTime; DAMAGED."""

    def __init__(self, unit: Unit, budget: TimeBudget) -> None:
        found: list[tuple[int, int, int]] = []
        for entry in _entries(unit, budget, whole=_WITHOUT_CODE | {_SUBPROGRAM}):
            if entry.abbrev.tag == _SUBPROGRAM and len(found) < _MAX_FUNCTIONS:
                attributes, _ = unit.attributes(entry.abbrev, entry.at)
                found += [(low, high, entry.offset) for low, high in unit.ranges(attributes)]
        found.sort()
        self._starts = array("Q", [low for low, _, _ in found])
        self._ends = array("Q", [min(high, 2**64 - 1) for _, high, _ in found])
        self._entries = array("Q", [offset for _, _, offset in found])

    def at(self, vaddr: int) -> int | None:
        """The offset in the unit of the function's entry."""
        index = bisect_right(self._starts, vaddr) - 1
        return self._entries[index] if index >= 0 and vaddr < self._ends[index] else None


def inlined_at(unit: Unit, function: int, vaddr: int, budget: TimeBudget) -> list[InlinedCall]:
    """Innermost first. OutOfTime; DAMAGED. Entries are nested as the calls are: where one covers the address, so does
    one around it whose own ranges were lost (a linker's or a stripper's work)."""
    around: list[tuple[int, Attributes, bool]] = []  # depth, attributes, whether it may cover the address
    chain: list[Attributes] = []
    for entry in _entries(unit, budget, whole=_WITHOUT_CODE, start=function, covering=vaddr):
        while around and around[-1][0] >= entry.depth:
            around.pop()
        if entry.abbrev.tag == _INLINED and entry.offset != function and len(around) < _MAX_DEPTH:
            attributes, _ = unit.attributes(entry.abbrev, entry.at)
            ranges = unit.ranges(attributes)
            covers = any(low <= vaddr < high for low, high in ranges)
            around.append((entry.depth, attributes, covers or not ranges))
            if covers:
                chain = [each for _, each, may_cover in around if may_cover]
    calls: list[InlinedCall] = []
    within = unit.entry(function)
    for each in chain:
        if not _is_own_body(unit, each, within):
            file, line = unit.number(each, CALL_FILE), unit.number(each, CALL_LINE)
            calls.append(InlinedCall(_name(unit, each), file, line or None))
        within = each
    return calls[::-1]


def _is_own_body(unit: Unit, inlined: Attributes, within: Attributes) -> bool:
    """Whether this is no call: gcc splits a function (-fpartial-inlining) and puts the parts together again, which it
    tells as the function inlined into itself, called on the line of its own declaration."""
    origin = inlined.get(ABSTRACT_ORIGIN)
    if origin is None or origin[1] != within.get(ABSTRACT_ORIGIN, (0, None))[1]:
        return False
    of = unit.referred(inlined, ABSTRACT_ORIGIN)
    return of is not None and of[0].number(of[1], DECL_LINE) == unit.number(inlined, CALL_LINE)


def _name(unit: Unit, attributes: Attributes) -> str | None:
    """Mangled where the compiler tells it, along the chain of what an entry is an instance of."""
    name: bytes | None = None
    for _ in range(_MAX_ORIGINS):
        linkage = unit.text(attributes, LINKAGE_NAME)
        if linkage:
            return linkage.decode("utf-8", "backslashreplace")
        name = name or unit.text(attributes, NAME)
        origin = unit.referred(attributes, ABSTRACT_ORIGIN) or unit.referred(attributes, SPECIFICATION)
        if origin is None:
            break
        unit, attributes = origin
    return name.decode("utf-8", "backslashreplace") if name else None


def _entries(
    unit: Unit, budget: TimeBudget, *, whole: frozenset[int], start: int | None = None, covering: int | None = None
) -> Iterator[_Entry]:
    """Functions and inlined functions, in the order of the file; of the unit, or of the entry at `start` and all inside
    it. What is inside an entry of the tags `whole`, or of a block or function that does not cover the address, is left
    out where the compiler says where it ends."""
    first = unit.first_child if start is None else start
    if first is None:
        return
    abbrevs, end = unit.abbrevs, len(unit.data)
    cursor = Cursor(unit.data, 0, first)
    depth = 1 if start is None else 0
    count = 0
    while cursor.at < end:
        count += 1
        if count % _CHECK_EVERY == 0 and budget.spent:
            raise OutOfTime
        offset = cursor.at
        code = cursor.uleb()
        if not code:
            depth -= 1
            if depth <= 0:
                return
            continue
        abbrev, at = abbrevs[code], cursor.at
        if abbrev.tag in (_SUBPROGRAM, _INLINED):
            yield _Entry(offset, abbrev, at, depth)
        beyond = _beyond(unit, abbrev, at, whole, covering) if abbrev.has_sibling and offset != start else None
        if beyond is not None:
            cursor.at = beyond
            continue
        cursor.at = unit.step_over(abbrev, at)
        depth += abbrev.has_children
        if not depth:
            return


def _beyond(unit: Unit, abbrev: Abbrev, at: int, whole: frozenset[int], covering: int | None) -> int | None:
    """Where to go on behind an entry and all inside it. None: look into it."""
    skips = abbrev.tag in whole
    if not skips and (covering is None or abbrev.tag not in _WITH_CODE):
        return None
    attributes, end = unit.attributes(abbrev, at)
    if not skips and covering is not None:
        ranges = unit.ranges(attributes)
        skips = bool(ranges) and not any(low <= covering < high for low, high in ranges)
    sibling = unit.number(attributes, SIBLING) if skips else None
    return sibling if sibling is not None and sibling >= end else None
