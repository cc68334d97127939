"""Whose pages are still there: what was touched, latest first, against what is resident. Pure."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from memforensics.probes.ebpf.present import GAP_BYTES

PAGE = 4096
FAULT_AROUND_PAGES = 16  # of a file, by one fault (fault_around_bytes, mm/memory.c); a bigger folio comes whole

Interval = tuple[int, int]
Numbers = npt.NDArray[np.int64]
Touched = npt.NDArray[np.void]
"""Of TOUCHED, by rising start: `pages` became resident somewhere in [start, end), by the stack of `site`. `at`: the
kernel's key of it."""

TOUCHED = np.dtype(
    [("start", "<i8"), ("end", "<i8"), ("pages", "<i8"), ("site", "<u8"), ("t_ns", "<i8"), ("at", "<u8")]
)
NOTHING_TOUCHED: Touched = np.zeros(0, dtype=TOUCHED)


@dataclass(slots=True)
class Resident:
    """Of one site."""

    bytes: int = 0
    touches: int = 0  # of which something is still resident


def touched(at: Any, pages: Any, window: Any, anonymous: Any, site: Any, t_ns: Any) -> Touched:
    """Touches, from an array of each, with the place where the pages that one fault at the address `at` brought can be.
    Anonymous folios are aligned to their size and whole; of a file, those that were in the page cache come, anywhere in
    a window around the fault, which begins where it is aligned or, later, where the mapping begins (do_fault_around(),
    mm/memory.c). `window`: bytes from `at` on, where a system call named the range."""
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
    """The address ranges to look at, rising."""
    return [
        (int(places["start"][low]), int(places["end"][low:high].max()))
        for low, high in _groups(places, GAP_BYTES).tolist()
    ]


def resident_by_site(places: Touched, present: Sequence[Interval]) -> tuple[dict[int, Resident], Touched]:
    """Resident bytes by site, each present page to who touched it last; and the touches of which nothing is left.
    `present` by rising start, disjoint. A fault that brought less than its window holds left out what was there before,
    or was locked: so those come first whose pages are known."""
    size = np.zeros(len(places), dtype=np.int64)
    groups = _groups(places, 0)
    is_alone = groups[:, 1] - groups[:, 0] == 1
    alone = groups[is_alone, 0]
    below = _Below(present)
    size[alone] = below(places["end"][alone]) - below(places["start"][alone])
    size = np.minimum(size, places["pages"] * PAGE)
    for low, high in groups[~is_alone].tolist():
        group = places[low:high]
        left = _Free(_overlap(present, below.starts, int(group["start"][0]), int(group["end"].max())))
        is_vague = group["end"] - group["start"] > group["pages"] * PAGE  # it takes what is left of its window
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
    """Indices [low, high) of touches whose places overlap or (with `gap`) are no further apart."""
    if not len(places):
        return np.zeros((0, 2), dtype=np.int64)
    reach = np.maximum.accumulate(places["end"])
    apart = places["start"][1:] - reach[:-1]
    edges = np.concatenate([[0], np.flatnonzero(apart > gap if gap else apart >= 0) + 1, [len(places)]])
    return np.column_stack([edges[:-1], edges[1:]]).astype(np.int64)


class _Below:
    """How many bytes are present below an address."""

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
