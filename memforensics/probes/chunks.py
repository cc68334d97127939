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
from memforensics.probes.looking import MAX_CHUNK_READS, MAX_SEARCH_READS, Ground, Look, Run
from memforensics.target.pagemap import PAGE
from memforensics.units import KIB

KIND = "malloc-mmapped"
_LEAST = 64 * KIB  # in the midst of data, a small one would mean little
_NEAR_STEPS = 1024  # pages looked at upward from where a chain broke
_MAX_MISSES = 64


def remembered_chunks(look: Look, private: Sequence[Mapping], known: Iterable[OwnerMark]) -> Iterator[OwnerMark]:
    """The blocks of an earlier snapshot whose headers still stand there: a header does not outlive its mapping."""
    starts = [mapping.start for mapping in private]
    for mark in known:
        index = bisect_right(starts, mark.start) - 1
        if mark.kind != KIND or index < 0:
            continue
        size = mmapped_size(look.read(mark.start, 16)) if mark.start + PAGE <= private[index].end else 0
        if size and mark.start + size <= private[index].end:
            yield _mark(mark.start, size)


def mmapped_chunks(look: Look, private: Sequence[Mapping], ground: Ground) -> list[OwnerMark]:
    """The blocks in what no one claimed yet."""
    marks: list[OwnerMark] = []
    broken: list[Run] = []
    reads = MAX_CHUNK_READS
    for start, end in [part for mapping in private for part in ground.free_parts(mapping.start, mapping.end)]:
        at = start
        while at + 2 * PAGE <= end and reads:
            reads -= 1
            size = mmapped_size(look.read(at, 16))
            if not size or at + size > end:
                broken.append((at + PAGE, end))
                break
            marks.append(_mark(at, size))
            at += size
        look.unread_chunks += at + _LEAST <= end and not reads
    reads = MAX_SEARCH_READS
    for start, end in sorted(
        (part for part in broken if part[1] - part[0] >= _LEAST), key=lambda part: part[0] - part[1]
    ):
        found, used = _search(look, start, end, max(reads // 2, min(reads, _NEAR_STEPS)))
        marks += found
        reads -= used
    return marks


def _search(look: Look, start: int, end: int, reads: int) -> tuple[list[OwnerMark], int]:
    """Blocks in the midst of other data: from its end downward and, for the first pages, from its start upward.

    A block that ends where the range, or the block above it, ends is believed. Any other only where the data holds next
    to nothing that is as much of a header but for its flags, of which 1 in 4096 would pass for one by chance.
    """
    runs = look.present(start, end)
    total = sum(last - first for first, last in runs) // PAGE
    near = min(_NEAR_STEPS, reads // 2) if total > reads else 0
    upward = islice((at for first, last in runs for at in range(first, last, PAGE)), near)
    downward = islice(
        (at for first, last in reversed(runs) for at in range(last - PAGE, first - 1, -PAGE)), reads - near
    )
    look.unread_chunks += total > reads
    ends, anchored, loose, misses = {end}, set[Run](), set[Run](), 0
    for at in (*downward, *upward):
        before, word = struct.unpack("<2Q", look.read_present(at, 16) or bytes(16))
        if before or not PAGE < word <= end - at + 2:
            continue
        size = mmapped_size(struct.pack("<2Q", before, word))
        if size and at + size in ends:
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
