"""Which touched pages are still resident, and by which site. Pure."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from memforensics.probes.ebpf.present import GAP_BYTES

PAGE = 4096
FAULT_AROUND_PAGES = (
    16  # that one fault on a file maps (fault_around_bytes, mm/memory.c); a larger folio is mapped whole
)

Interval = tuple[int, int]
Numbers = npt.NDArray[np.int64]
Touched = npt.NDArray[np.void]
"""An array of TOUCHED, by rising start: `pages` became resident somewhere in [start, end), by the stack of `site`.
`at`: the kernel's key of the entry."""

TOUCHED = np.dtype(
    [("start", "<i8"), ("end", "<i8"), ("pages", "<i8"), ("site", "<u8"), ("t_ns", "<i8"), ("at", "<u8")]
)
NOTHING_TOUCHED: Touched = np.zeros(0, dtype=TOUCHED)


@dataclass(slots=True)
class Resident:
    """What of one site's touches is still resident."""

    bytes: int = 0
    touches: int = 0  # that still have something resident


def touched(at: Any, pages: Any, window: Any, anonymous: Any, site: Any, t_ns: Any) -> Touched:
    """Touches, from one array for each column, with the range in which the pages of one fault at the address `at` can
    be. Anonymous folios are whole and aligned to their size. Of a file, the pages that the page cache has are mapped,
    anywhere in a window around the fault; the window begins where it is aligned, or later where the mapping begins
    (do_fault_around(), mm/memory.c). `window`: bytes from `at` on, when a system call named the range."""
    out = np.zeros(len(at), dtype=TOUCHED)
    out["pages"], out["site"], out["t_ns"], out["at"] = pages, site, t_ns, at
    count, length = out["pages"], np.asarray(window).astype(np.int64)
    around = PAGE * np.maximum(FAULT_AROUND_PAGES, 1 << np.ceil(np.log2(np.maximum(count, 1))).astype(np.int64))
    by_window = length > 0
    whole = by_window | np.asarray(anonymous, dtype=bool) | (count == 1)
    start = np.asarray(at).astype(np.int64)
    out["start"] = np.where(whole, start, start & ~(around - 1))
    size = np.where(by_window, length, np.where(whole, count * PAGE, around))
    out["end"] = np.where(whole, out["start"], np.asarray(at).astype(np.int64)) + size
    return out[np.argsort(out["start"], kind="stable")]


def spans(places: Touched) -> list[Interval]:
    """The address ranges that have touches, rising."""
    return [
        (int(places["start"][low]), int(places["end"][low:high].max()))
        for low, high in _groups(places, GAP_BYTES).tolist()
    ]


def resident_by_site(places: Touched, present: Sequence[Interval]) -> tuple[dict[int, Resident], Touched]:
    """Resident bytes by site, and the touches of which nothing is left. Each present page belongs to its last toucher.
    `present` rises and is disjoint. A fault that brought less than its window left out pages that were present before
    or locked; so touches whose pages are known exactly choose first."""
    size = np.zeros(len(places), dtype=np.int64)
    groups = _groups(places, 0)
    is_alone = groups[:, 1] - groups[:, 0] == 1
    alone = groups[is_alone, 0]
    below = _PresentBelow(present)
    size[alone] = below(places["end"][alone]) - below(places["start"][alone])
    size = np.minimum(size, places["pages"] * PAGE)
    for low, high in groups[~is_alone].tolist():
        group = places[low:high]
        left = _Unclaimed(_overlap(present, below.starts, int(group["start"][0]), int(group["end"].max())))
        is_vague = group["end"] - group["start"] > group["pages"] * PAGE  # it gets what is left of its window
        for index in np.lexsort((-group["t_ns"], is_vague)).tolist():
            start, end, pages, *_ = group[index].item()
            size[low + index] = left.take(start, end, pages * PAGE)
    there = size > 0
    sites, which = np.unique(places["site"][there], return_inverse=True)
    sums = np.bincount(which, weights=size[there], minlength=len(sites))  # exact below 2**53
    counts = np.bincount(which, minlength=len(sites))
    out = {int(site): Resident(int(total), int(count)) for site, total, count in zip(sites, sums, counts, strict=True)}
    return out, places[~there]


def _groups(places: Touched, gap: int) -> Numbers:
    """Indices [low, high) of touches whose ranges overlap, or with `gap` are no further apart than that."""
    if not len(places):
        return np.zeros((0, 2), dtype=np.int64)
    reach = np.maximum.accumulate(places["end"])
    apart = places["start"][1:] - reach[:-1]
    edges = np.concatenate([[0], np.flatnonzero(apart > gap if gap else apart >= 0) + 1, [len(places)]])
    return np.column_stack([edges[:-1], edges[1:]]).astype(np.int64)


class _PresentBelow:
    """Counts the present bytes below an address."""

    def __init__(self, present: Sequence[Interval]) -> None:
        runs = np.array(present, dtype=np.int64).reshape(-1, 2)
        self.starts, self._ends = runs[:, 0], runs[:, 1]
        self._before = np.concatenate([[0], np.cumsum(self._ends - self.starts)])

    def __call__(self, addresses: Numbers) -> Numbers:
        whole = np.searchsorted(self.starts, addresses, side="right")  # runs that begin at or below
        last = np.maximum(whole - 1, 0)
        if not len(self.starts):
            return np.zeros(len(addresses), dtype=np.int64)
        over = np.where(whole > 0, np.maximum(self._ends[last] - addresses, 0), 0)
        return np.asarray(self._before[whole] - over, dtype=np.int64)


def _overlap(present: Sequence[Interval], starts: Numbers, start: int, end: int) -> list[Interval]:
    at = max(0, int(np.searchsorted(starts, start, side="right")) - 1)
    until = int(np.searchsorted(starts, end))
    return [(max(low, start), min(high, end)) for low, high in present[at:until] if high > start]


class _Unclaimed:
    """Present intervals that no touch has claimed yet."""

    def __init__(self, intervals: list[Interval]) -> None:
        self._starts = [low for low, _ in intervals]
        self._ends = [high for _, high in intervals]

    def take(self, start: int, end: int, most: int) -> int:
        """Claims up to `most` bytes of [start, end), the lowest first; returns how many."""
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
