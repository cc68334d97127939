"""Whose pages are still there: what was touched, latest first, against what is resident. Pure."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

PAGE = 4096
FAULT_AROUND_PAGES = 16  # of a file, by one fault (fault_around_bytes, mm/memory.c); a bigger folio comes whole
GAP_BYTES = 1 << 21  # places this near each other are looked at in one go

Interval = tuple[int, int]


class Touched(NamedTuple):
    """`pages` became resident somewhere in [start, end), by the stack of `site`. `at`: the kernel's key."""

    start: int
    end: int
    pages: int
    site: int
    t_ns: int
    at: int


@dataclass(slots=True)
class StillThere:
    """Of one site."""

    bytes: int = 0
    touches: int = 0  # of which something is still resident


def place(page: int, count: int, window: int, *, anonymous: bool) -> Interval:
    """Where `count` pages that one fault at the address `page` brought can be. Anonymous folios are aligned to their
    size and whole; of a file, those that were in the page cache come, anywhere in the aligned window around the fault.
    `window`: bytes from `page` on, where a system call named the range."""
    if window:
        return page, page + window
    if anonymous or count == 1:
        return page, page + count * PAGE
    size = PAGE * max(FAULT_AROUND_PAGES, 1 << (count - 1).bit_length())
    start = page & ~(size - 1)
    return start, start + size


def spans(touched: Sequence[Touched]) -> Iterator[Interval]:
    """The address ranges to look at, rising. `touched` by rising start."""
    if not touched:
        return
    start, end = touched[0].start, touched[0].end
    for one in touched:
        if one.start - end > GAP_BYTES:
            yield start, end
            start, end = one.start, one.end
        end = max(end, one.end)
    yield start, end


def still_there(touched: Sequence[Touched], present: Sequence[Interval]) -> tuple[dict[int, StillThere], list[Touched]]:
    """Resident bytes by site, each present page to who touched it last; and the touches of which nothing is left. Both
    arguments by rising start; `present` disjoint."""
    out: dict[int, StillThere] = {}
    gone: list[Touched] = []
    starts = [low for low, _ in present]
    for cluster in _clusters(touched):
        free = _overlap(present, starts, cluster[0].start, max(one.end for one in cluster))
        left = _Free(free)
        for one in sorted(cluster, key=lambda one: -one.t_ns):
            size = left.take(one.start, one.end, one.pages * PAGE)
            if size == 0:
                gone.append(one)
                continue
            account = out.setdefault(one.site, StillThere())
            account.bytes += size
            account.touches += 1
    return out, gone


def _clusters(touched: Iterable[Touched]) -> Iterator[list[Touched]]:
    """Touches whose places overlap, together."""
    cluster: list[Touched] = []
    end = 0
    for one in touched:
        if cluster and one.start >= end:
            yield cluster
            cluster = []
            end = 0
        cluster.append(one)
        end = max(end, one.end)
    if cluster:
        yield cluster


def _overlap(present: Sequence[Interval], starts: Sequence[int], start: int, end: int) -> list[Interval]:
    at = max(0, bisect_right(starts, start) - 1)
    out = []
    for low, high in present[at : bisect_left(starts, end)]:
        if high > start:
            out.append((max(low, start), min(high, end)))
    return out


class _Free:
    """Present intervals that nobody has claimed yet."""

    def __init__(self, intervals: list[Interval]) -> None:
        self._starts = [low for low, _ in intervals]
        self._ends = [high for _, high in intervals]

    def take(self, start: int, end: int, most: int) -> int:
        """Claims up to `most` bytes of [start, end), the lowest first; how many."""
        taken = 0
        at = bisect_right(self._ends, start)
        while taken < most and at < len(self._starts) and self._starts[at] < end:
            low, high = self._starts[at], self._ends[at]
            first = max(low, start)
            last = min(high, end, first + most - taken)
            taken += last - first
            rest = [(a, b) for a, b in ((low, first), (last, high)) if a < b]
            self._starts[at : at + 1] = [a for a, _ in rest]
            self._ends[at : at + 1] = [b for _, b in rest]
            at += sum(1 for _, b in rest if b <= first)
        return taken
