"""Reading a target's memory with care, and keeping account of what is recognised: for the recognisers of `owners`."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from memforensics.case.model import Loss, Mapping, OwnerMark
from memforensics.errors import ProbeFailed
from memforensics.target.memory import Memory, Unreadable
from memforensics.target.pagemap import PAGE, Pagemap
from memforensics.units import GIB

# A read takes up to 8 us for the first page of a mapping, 2 us for others. In all 120 ms where 3.5 GiB were searched,
# 360 ms where 30,000 mappings were to be asked for their pages one by one (measured on Linux 6.18).
MAX_POOL_READS = 40_000
MAX_CHUNK_READS = 10_000
MAX_SEARCH_READS = 64_000
VAIN_TURNS = 8

Run = tuple[int, int]


def is_private_anonymous(mapping: Mapping) -> bool:
    """Private memory of no file, writable and without a name."""
    return mapping.path == "" and mapping.perms in ("rw-p", "rwxp")


@dataclass(slots=True)
class Ground:
    """Marks so far, ascending, none upon another."""

    marks: list[OwnerMark] = field(default_factory=list)

    def claim(self, marks: Iterable[OwnerMark]) -> None:
        for mark in marks:
            if self.is_free(mark.start, mark.end):
                self.marks.insert(bisect_right(self.marks, mark.start, key=lambda m: m.start), mark)

    def is_free(self, start: int, end: int) -> bool:
        index = bisect_right(self.marks, start, key=lambda m: m.end)
        return index == len(self.marks) or self.marks[index].start >= end

    def free_parts(self, start: int, end: int) -> Iterator[Run]:
        """What of a range has no mark yet."""
        if self.is_free(start, end):
            yield start, end
            return
        for first, last in self.taken_parts(start, end):
            if first > start:
                yield start, first
            start = last
        if start < end:
            yield start, end

    def taken_parts(self, start: int, end: int) -> Iterator[Run]:
        """What of a range has a mark."""
        index = bisect_right(self.marks, start, key=lambda m: m.end)
        while index < len(self.marks) and self.marks[index].start < end:
            yield max(start, self.marks[index].start), min(end, self.marks[index].end)
            index += 1


@dataclass(slots=True)
class Vain:
    """Where the last looks at a process found nothing: not looked at again for a few snapshots, as most of what a
    process maps belongs to no one, and asking costs a read a page. What was left unread stays counted."""

    modules: frozenset[str] | None = None  # mapped files, none of which has an allocator that keeps records
    heads: set[Run] = field(default_factory=set)  # that begin with no block
    searched: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # end -> start, reads used, left unread
    turn: int = 0

    def next_turn(self) -> None:
        """With each snapshot; in every eighth all is looked at."""
        self.turn = (self.turn + 1) % VAIN_TURNS
        if self.turn == 0:
            self.modules = None
            self.heads.clear()
            self.searched.clear()


@dataclass(slots=True)
class Look:
    """Reading with care: present pages only, and what was left unread counted."""

    memory: Memory
    pagemap: Pagemap
    can_scan: bool
    unread_pools: int = 0
    unread_chunks: int = 0
    unread_bytes: int = 0
    unread_records: int = 0
    _runs: dict[Run, list[Run]] = field(default_factory=dict)

    def present(self, start: int, end: int) -> list[Run]:
        """Runs of present pages of a range; without PAGEMAP_SCAN of its first GiB. None where the range, which may be
        what the target wrote, reaches beyond what a process has."""
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
            self.unread_bytes += max(0, end - start - GIB)
        self._runs[start, end] = runs
        return runs

    def read(self, address: int, size: int) -> bytes | None:
        """Bytes of a range whose pages are all present; else None."""
        first, last = address & -PAGE, (address + size - 1 & -PAGE) + PAGE
        try:
            if self.pagemap.present(first, last) != [(first, last)]:
                return None
            return self.memory.read(address, size)
        except (Unreadable, ProbeFailed):
            return None

    def read_present(self, address: int, size: int) -> bytes | None:
        """The same, where the caller knows that the pages are present."""
        try:
            return self.memory.read(address, size)
        except Unreadable:
            return None

    def losses(self) -> list[Loss]:
        return [
            Loss(
                probe="owners",
                what="Python pools not read: their ranges are told from samples",
                count=self.unread_pools,
                reduce=f"a smaller heap: {MAX_POOL_READS:,} pools a snapshot are read, to spare the target",
            ),
            Loss(
                probe="owners",
                what="mappings not searched to their end for malloc'ed blocks",
                count=self.unread_chunks,
                reduce=f"fewer merged mappings: {MAX_SEARCH_READS:,} pages a snapshot are read, to spare the target",
            ),
            Loss(
                probe="owners",
                what="extents of an allocator whose records were not read: their memory stays anonymous",
                count=self.unread_records,
                reduce="a smaller heap: 256 MiB of records a snapshot are read, to spare the target",
            ),
            Loss(
                probe="owners",
                what="bytes of large mappings not looked at",
                count=self.unread_bytes,
                reduce="a kernel with PAGEMAP_SCAN (6.7+)",
            ),
        ]
