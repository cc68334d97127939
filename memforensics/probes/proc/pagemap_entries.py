"""Resident pages by the entries of /proc/PID/pagemap, for kernels without PAGEMAP_SCAN (before 6.7).

There is one word for each page of address space, present or not (Documentation/admin-guide/mm/pagemap.rst). Reading
takes 2 ms a GiB, too much for large reservations. The kernel releases the target's mmap lock every 2 MiB; smaps holds
it for a whole mapping.
"""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from memforensics.errors import TargetGone
from memforensics.target.pagemap import ENTRIES_BYTES, FRAME, IS_FILE, IS_PRESENT, PAGE, Pagemap, zero_frames

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

_PRESENT, _FILE, _EXCLUSIVE = 0x80, 0x20, 0x01  # of an entry's highest byte


class Entries:
    """The entries of one process. Where frame numbers are hidden (CAP_SYS_ADMIN), memory that was only ever read counts
    as resident: only the number distinguishes the zero page from a page shared after a fork."""

    def __init__(self, pagemap: Pagemap) -> None:
        self._pagemap, self._zero = pagemap, cache(zero_frames)

    def present(self, at: int, end: int) -> list[Ints]:
        """As `records`. TargetGone, ProbeFailed."""
        return [self._records(base, min(end, base + ENTRIES_BYTES)) for base in range(at, end, ENTRIES_BYTES)]

    def _records(self, at: int, end: int) -> Ints:
        words = np.frombuffer(self._pagemap.entries(at, end), "<u8")
        if len(words) < (end - at) // PAGE:  # pagemap_read() returns nothing, without an error, once the process exits
            raise TargetGone(self._pagemap.pid, "its address space is gone (exit or exec)")
        return records(words, at, self._zero)


def records(words: Words, at: int, zero: Callable[[], Sequence[range]]) -> Ints:
    """Entries from the address `at` on, as the records of PAGEMAP_SCAN: runs of start, end and categories (present,
    file). `zero`: the frames of zero pages; called only if a page is shared."""
    tops = words.view(np.uint8)[7::8]  # little-endian: all flags that are needed
    kinds = (tops & (_PRESENT | _FILE)) * (tops >= _PRESENT)
    shared = np.flatnonzero((tops & (_PRESENT | _EXCLUSIVE)) == _PRESENT)
    if len(shared):  # the huge zero page is marked as a file's page
        frames = words[shared] & FRAME
        for some in zero():
            kinds[shared[frames - some.start < len(some)]] = (
                0  # unsigned: a number below the range wraps to a large one
            )
    edges = np.concatenate(([0], np.flatnonzero(kinds[1:] != kinds[:-1]) + 1, [len(words)]))
    of_run = kinds[edges[:-1]]
    runs = np.flatnonzero(of_run)
    categories = IS_PRESENT + (of_run[runs] & _FILE != 0) * IS_FILE
    return np.stack((at + edges[runs] * PAGE, at + edges[runs + 1] * PAGE, categories), axis=1).ravel()
