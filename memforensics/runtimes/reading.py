"""Reads present pages of the target's memory, and counts what is left unread."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from memforensics.case.model import Loss
from memforensics.errors import ProbeFailed
from memforensics.target.memory import Memory, Unreadable
from memforensics.target.pagemap import PAGE, Pagemap
from memforensics.units import GIB

Run = tuple[int, int]

# A read takes up to 8 us for the first page of a mapping and 2 us for others. All reads together take 120 ms for a
# search of 3.5 GiB, and 360 ms if the present pages of 30,000 mappings are queried one by one (measured on Linux 6.18).
MAX_POOL_READS = 40_000
MAX_CHUNK_READS = 10_000
MAX_SEARCH_READS = 64_000


class Reading(Protocol):
    """Reads present pages only: reading an untouched page would map it into the target."""

    def read(self, address: int, size: int) -> bytes | None:
        """Exactly those bytes; None if one of their pages is not present or not mapped."""
        ...

    def present(self, start: int, end: int) -> list[Run]:
        """Runs of present pages in a range, ascending."""
        ...


@dataclass(slots=True)
class PageReader:
    """The Reading of a live process. `unread`: amounts left unread by kind, for `losses`."""

    memory: Memory
    pagemap: Pagemap
    can_scan: bool
    unread: Counter[str] = field(default_factory=Counter)
    _runs: dict[Run, list[Run]] = field(default_factory=dict)

    def present(self, start: int, end: int) -> list[Run]:
        """As Reading. Without PAGEMAP_SCAN only the first GiB of the range is read. Empty if the range, which may come
        from the target's memory, is impossible."""
        known = self._runs.get((start, end))
        if known is not None:
            return known
        if not 0 <= start <= end < 1 << 63:
            return []
        if self.can_scan:
            try:
                runs = [(first, last) for first, last, _ in self.pagemap.scan(start, end)]
            except ProbeFailed:  # EFAULT
                runs = []
        else:
            runs = self.pagemap.present(start, end, limit_bytes=GIB)
            self.unread["bytes"] += max(0, end - start - GIB)
        self._runs[start, end] = runs
        return runs

    def read(self, address: int, size: int) -> bytes | None:
        first, last = address & -PAGE, (address + size - 1 & -PAGE) + PAGE
        try:
            if self.pagemap.present(first, last) != [(first, last)]:
                return None
            return self.memory.read(address, size)
        except (Unreadable, ProbeFailed):
            return None

    def read_present(self, address: int, size: int) -> bytes | None:
        """As read, if the caller knows that the pages are present."""
        try:
            return self.memory.read(address, size)
        except Unreadable:
            return None

    def losses(self) -> list[Loss]:
        return [
            Loss(probe="owners", what=what, count=self.unread[key], reduce=reduce)
            for key, (what, reduce) in _LOSSES.items()
            if self.unread[key]
        ]


_LOSSES = {
    "pools": (
        "Python pools not read: their ranges are known from a sample",
        f"a smaller heap: at most {MAX_POOL_READS:,} pools are read in a snapshot, to spare the target",
    ),
    "chunks": (
        "mappings not searched to their end for malloc'ed blocks",
        f"fewer merged mappings: at most {MAX_SEARCH_READS:,} pages are read in a snapshot, to spare the target",
    ),
    "records": (
        "allocator extents whose records were not read: their memory stays anonymous",
        "a smaller heap: at most 256 MiB of records are read in a snapshot, to spare the target",
    ),
    "bytes": ("bytes of large mappings not read", "a kernel with PAGEMAP_SCAN (6.7+)"),
}


def joined(runs: Iterable[Run], reach: int = 0) -> list[Run]:
    """The runs, ascending; runs that touch, or are at most `reach` bytes apart, become one."""
    out: list[Run] = []
    for start, end in sorted(runs):
        if out and start <= out[-1][1] + reach:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out
