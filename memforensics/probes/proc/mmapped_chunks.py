"""Blocks that malloc gave a mapping of their own.

Trusts malloc/malloc.c, sysmalloc_mmap: prev_size 0, then the size, whole pages, with IS_MMAPPED (2) as its only flag.
Mappings merge: new ones of others come directly below, so a block is often not where its mapping begins. It is looked
for where it was before, then along the chain of blocks from the mapping's start, then page by page.
"""

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from memforensics.case.model import Mapping, OwnerMark
from memforensics.probes.proc.claimed_ranges import MAX_CHUNK_READS, MAX_SEARCH_READS, Ground, Look, Run, Vain
from memforensics.target.pagemap import PAGE
from memforensics.target.realtime_priority import urgent
from memforensics.units import KIB

KIND = "malloc-mmapped"
_LEAST = 64 * KIB  # in the midst of data, a small one would mean little
_NEAR_STEPS = 1024  # pages looked at upward from where a chain broke
_MAX_MISSES = 64
_PART_COST = 16  # in reads: what asking for the present pages of a part takes


class Spans:
    """Private anonymous memory, mappings that touch as one: madvise (numpy's, for huge pages) and mlock divide a
    block's mapping, and most often cut its header off."""

    def __init__(self, anonymous: Sequence[Mapping]) -> None:
        self._starts = [mapping.start for mapping in anonymous]
        self._ends = [mapping.end for mapping in anonymous]  # of the span that each belongs to
        for index in range(len(anonymous) - 2, -1, -1):
            if self._ends[index] == self._starts[index + 1]:
                self._ends[index] = self._ends[index + 1]

    def end_of(self, address: int) -> int:
        """Where the span that holds the address ends."""
        index = bisect_right(self._starts, address) - 1
        return self._ends[index] if index >= 0 else 0

    def has_border(self, at: int) -> bool:
        """Whether a mapping begins there."""
        index = bisect_right(self._starts, at) - 1
        return index >= 0 and self._starts[index] == at


def remembered_chunks(look: Look, spans: Spans, known: Iterable[OwnerMark]) -> Iterator[OwnerMark]:
    """The blocks of an earlier snapshot whose headers still stand there: a header does not outlive its mapping."""
    for mark in known:
        end = spans.end_of(mark.start)
        size = mmapped_size(look.read(mark.start, 16)) if mark.kind == KIND and mark.start + PAGE <= end else 0
        if size and mark.start + size <= end:
            yield _mark(mark.start, size)


def chained_chunks(
    look: Look, private: Sequence[Mapping], spans: Spans, ground: Ground, vain: Vain
) -> tuple[list[OwnerMark], list[Run]]:
    """The blocks that begin where a mapping does, or where the block below ends; and where such chains broke."""
    marks: list[OwnerMark] = []
    broken: list[Run] = []
    reads = MAX_CHUNK_READS
    top = 0
    for start, end in [part for mapping in private for part in ground.free_parts(mapping.start, mapping.end)]:
        at = max(start, top)
        if not reads:
            look.unread_chunks += at + _LEAST <= end
            continue
        if at == start and (start, end) in vain.heads:
            reads -= 1
            broken.append((at + PAGE, end))
            continue
        free = next(ground.free_parts(start, spans.end_of(start)))[1] if at < end else end
        while at + PAGE <= end and at + 2 * PAGE <= free and reads:
            reads -= 1
            size = mmapped_size(look.read(at, 16))
            if not size or at + size > free:
                broken.append((at + PAGE, end))
                if at == start:
                    vain.heads.add((start, end))
                break
            marks.append(_mark(at, size))
            top = at = at + size
        look.unread_chunks += at + _LEAST <= end and not reads
    return marks, broken


def searched_chunks(look: Look, broken: Iterable[Run], spans: Spans, ground: Ground, vain: Vain) -> Iterator[OwnerMark]:
    """The blocks in the midst of what no one claimed yet; the largest parts first, each with half of what is left of
    the reads."""
    reads = MAX_SEARCH_READS
    parts = [part for run in broken for part in ground.free_parts(*run)]
    for part in sorted(parts, key=lambda part: part[0] - part[1]):
        for start, end in list(ground.free_parts(*part)):  # a block that was found may reach into it
            free = next(ground.free_parts(start, spans.end_of(start)))[1]
            if free - start < _LEAST:
                continue
            known_start, used, unread = vain.searched.get(end, (end, 0, 0))
            if known_start < end:  # memory grows downward: only what is below is new
                look.unread_chunks += unread
                reads = max(0, reads - used - _PART_COST)
            if start >= known_start:
                continue
            look.unread_chunks += not reads
            if reads:
                before = look.unread_chunks
                part = start, min(known_start, end)
                found, used_now = _search(look, spans, part, free, max(reads // 2, min(reads, _NEAR_STEPS)))
                yield from found
                reads = max(0, reads - used_now - _PART_COST)
                used, unread = used + used_now, unread + look.unread_chunks - before
                for first, last in Ground(found).free_parts(start, end):
                    vain.searched[last] = first, used, unread
                    used = unread = 0


def _search(look: Look, spans: Spans, part: Run, top: int, reads: int) -> tuple[list[OwnerMark], int]:
    """Blocks in the midst of other data: from its end downward and, for the first pages, from its start upward. None
    reaches beyond `top`.

    A block that ends where a mapping, or the block above it, begins is believed. Any other only where the data
    holds next to nothing that is as much of a header but for its flags: of such, 1 in 4096 has them by chance.
    """
    runs, ends = look.present(*part), {top}
    total = sum(last - first for first, last in runs) // PAGE
    near = min(_NEAR_STEPS, reads // 2) if total > reads else 0
    upward = islice((at for first, last in runs for at in range(first, last, PAGE)), near)
    downward = islice(
        (at for first, last in reversed(runs) for at in range(last - PAGE, first - 1, -PAGE)), reads - near
    )
    look.unread_chunks += total > reads
    anchored, loose, misses = set[Run](), set[Run](), 0
    places = (*downward, *upward)
    with urgent:
        for at in places:
            before, word = struct.unpack("<2Q", look.read_present(at, 16) or bytes(16))
            if before or not PAGE < word <= top - at + 2:
                continue
            size = mmapped_size(struct.pack("<2Q", before, word))
            if size and (at + size in ends or spans.has_border(at + size)):
                ends.add(at)
                anchored.add((at, size))
            elif size >= _LEAST:
                loose.add((at, size))
            elif word >= _LEAST:
                misses += 1
    ground = Ground()
    ground.claim(_mark(at, size) for at, size in sorted(anchored))
    if misses <= _MAX_MISSES:
        ground.claim(_mark(at, size) for at, size in sorted(loose))
    return ground.marks, min(total, reads)


def _mark(start: int, size: int) -> OwnerMark:
    return OwnerMark(start=start, end=start + size, kind=KIND, detail=f"chunk header at {start:#x}")


def mmapped_size(header: bytes | None) -> int:
    """The size of such a block, 0 for anything else."""
    if header is None:
        return 0
    before, size = struct.unpack("<2Q", header)
    return size - 2 if before == 0 and size % PAGE == 2 and size > PAGE else 0
