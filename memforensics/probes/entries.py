"""Which pages are resident by the entries of /proc/PID/pagemap: what a kernel without PAGEMAP_SCAN has (before 6.7).

A word a page of address space, whether anything is there or not (Documentation/admin-guide/mm/pagemap.rst): 2 ms a GiB,
so not for large reservations. The target's mmap lock is let go every 2 MiB; smaps holds it for a whole mapping.
"""

import numpy as np

from memforensics.errors import TargetGone
from memforensics.target.columns import Bools, Ints, Words
from memforensics.target.pagemap import ENTRIES_BYTES, IS_FILE, IS_PRESENT, PAGE, Pagemap, zero_frames

_PRESENT, _FILE, _EXCLUSIVE, _FRAME = 1 << 63, 1 << 61, 1 << 56, (1 << 55) - 1


class Entries:
    """Of one process. Where page numbers are hidden from us (CAP_SYS_ADMIN) memory that was only ever read counts as
    resident: nothing else tells the zero page from one that is shared after a fork."""

    def __init__(self, pagemap: Pagemap) -> None:
        self._pagemap = pagemap
        self._zero: list[range] | None = None  # asked for once needed

    def present(self, at: int, end: int) -> list[Ints]:
        """Records as PAGEMAP_SCAN gives them: start, end and categories (present, file). TargetGone, ProbeFailed."""
        return [self._records(base, min(end, base + ENTRIES_BYTES)) for base in range(at, end, ENTRIES_BYTES)]

    def _records(self, at: int, end: int) -> Ints:
        words: Words = np.frombuffer(self._pagemap.entries(at, end), "<u8")
        if len(words) < (end - at) // PAGE:  # pagemap_read() gives nothing, and no error, once it exits
            raise TargetGone(self._pagemap.pid, "its address space is gone (exit or exec)")
        is_there, is_file = words >= _PRESENT, words & _FILE != 0
        shared = np.flatnonzero(is_there & (words & _EXCLUSIVE == 0))  # the huge one counts as a file's
        if len(shared):
            is_there[shared[self._is_zero(words[shared])]] = False
        categories = is_there * (IS_PRESENT + is_file * IS_FILE)
        edges = np.concatenate(([0], np.flatnonzero(categories[1:] != categories[:-1]) + 1))
        ends = np.append(edges[1:], len(words))
        records = np.stack((at + edges * PAGE, at + ends * PAGE, categories[edges]), axis=1)
        return records[is_there[edges]].ravel()

    def _is_zero(self, words: Words) -> Bools:
        if self._zero is None:
            self._zero = zero_frames()
        found = np.zeros(len(words), bool)
        for frames in self._zero:
            found |= (words & _FRAME) - frames.start < len(frames)  # unsigned: below is far above
        return found
