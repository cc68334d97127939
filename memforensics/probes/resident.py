"""Resident bytes of every mapping by PAGEMAP_SCAN: a fifth of what smaps costs, and the target's mmap lock let go after
each bounded call.

How much must be asked differs. Pages of private file mappings may be copies (anonymous) or the file's, which takes a
look at each page; a device's own pages are no memory of the kernel's count, and have no kind; for the rest the mapping
tells it all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memforensics.target.columns import Columns
from memforensics.target.pagemap import IS_FILE, IS_HUGE, IS_PRESENT, Pagemap

Ints = npt.NDArray[np.int64]

_CALL_MAPPINGS = 2000  # looked at in one call at most: 0.7 ms
_GAP = 64 << 20  # between mappings that one call looks at
_TOP = (1 << 63) - 1

_NONE, _PLAIN, _KINDS = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Resident:
    """Bytes by mapping."""

    rss: list[int]
    anonymous: list[int]
    anon_huge: list[int]


def count_resident(pagemap: Pagemap, columns: Columns) -> Resident:
    """Of all these mappings. TargetGone, ProbeFailed (no PAGEMAP_SCAN)."""
    start, end = _addresses(columns.start), _addresses(columns.end)
    kinds = np.full(len(columns), _PLAIN)
    shared = np.zeros(len(columns), bool)
    for place, (path, perms) in enumerate(zip(columns.path, columns.perms, strict=True)):
        if path:
            shared[place] = perms[3:4] == "s"
            kinds[place] = _kind(path, shared=bool(shared[place]))
    found = _scanned(pagemap, start, end, kinds)
    first, last, categories = found[:, 0], found[:, 1], found[:, 2]
    is_file = categories & IS_FILE != 0
    present = _within(first, last, start, end)
    of_file = _within(first[is_file], last[is_file], start, end)
    is_huge = (categories & IS_HUGE != 0) & ~is_file
    huge = _within(first[is_huge], last[is_huge], start, end)
    of_device = (kinds == _KINDS) & shared
    rss = np.where(of_device, of_file, present)
    return Resident(
        rss=rss.tolist(),
        anonymous=np.where(shared, 0, present - of_file).tolist(),
        anon_huge=np.where(shared, 0, huge).tolist(),
    )


def _kind(path: str, *, shared: bool) -> int:
    if path.startswith(("[vvar", "[vsyscall", "/anon_hugepage")):
        return _NONE
    if path.startswith("/dev/") and not path.startswith(("/dev/zero", "/dev/shm/")):
        return _KINDS
    if path == "[vdso]" or (path.startswith("/") and not shared and not path.startswith("/dev/zero")):
        return _KINDS
    return _PLAIN


def _addresses(values: Sequence[int]) -> Ints:
    """[vsyscall] stands above what is looked at."""
    try:
        return np.array(values, np.int64)
    except OverflowError:
        return np.array([min(value, _TOP) for value in values], np.int64)


def _scanned(pagemap: Pagemap, start: Ints, end: Ints, kinds: Ints) -> Ints:
    """Records (start, end, categories) of all mappings but those of kind none, ascending."""
    parts: list[Ints] = []
    for first, last in _spans(start, end, kinds):
        returned = IS_PRESENT | IS_HUGE | (IS_FILE if kinds[first] == _KINDS else 0)
        parts += (
            np.frombuffer(found, np.int64).copy()
            for found in pagemap.regions(int(start[first]), int(end[last - 1]), returned)
        )
    return np.concatenate(parts).reshape(-1, 3) if parts else np.empty((0, 3), np.int64)


def _spans(start: Ints, end: Ints, kinds: Ints) -> Iterator[tuple[int, int]]:
    """Places (first, one past the last) of consecutive mappings that are looked at together."""
    cuts = np.flatnonzero((kinds[1:] != kinds[:-1]) | (start[1:] - end[:-1] > _GAP)) + 1
    for first, last in zip([0, *cuts.tolist()], [*cuts.tolist(), len(kinds)], strict=True):
        if first < last and kinds[first] != _NONE:
            for place in range(first, last, _CALL_MAPPINGS):
                yield place, min(place + _CALL_MAPPINGS, last)


def _within(first: Ints, last: Ints, start: Ints, end: Ints) -> Ints:
    """Bytes of the runs in each mapping."""
    if not len(first):
        return np.zeros(len(start), np.int64)
    return _below(first, last, end) - _below(first, last, start)


def _below(first: Ints, last: Ints, edges: Ints) -> Ints:
    """Bytes of the runs, which are ascending and apart, below each edge."""
    so_far = np.concatenate(([0], np.cumsum(last - first)))
    runs = np.searchsorted(first, edges, side="right")
    beyond = np.maximum(last[np.maximum(runs - 1, 0)] - edges, 0)
    return np.asarray(so_far[runs] - np.where(runs > 0, beyond, 0))
