"""Blocks that malloc allocated by mmap.

Their header (malloc/malloc.c, sysmalloc_mmap) is prev_size 0 and a size of whole pages whose only flag is
IS_MMAPPED (2). The kernel merges neighbouring mappings, so a block often does not begin where its mapping begins. Three
recognisers find blocks: where the snapshot before had one, along the chain of blocks from a mapping's start, and page
by page.
"""

import struct
from collections.abc import Iterator
from itertools import islice

from memforensics.case.model import OwnerMark
from memforensics.runtimes.reading import MAX_CHUNK_READS, MAX_SEARCH_READS, PageReader, Run
from memforensics.runtimes.scene import ClaimedRanges, Scene, Spans
from memforensics.target.pagemap import PAGE
from memforensics.target.realtime_priority import realtime_priority
from memforensics.units import KIB

KIND = "malloc-mmapped"
_MIN_SIZE = 64 * KIB  # amid other data, a smaller size is weak evidence
_UPWARD_PAGES = 1024  # pages read upward from where a chain broke
_MAX_MISSES = 64
_PART_COST = 16  # cost of querying the present pages of a part, in reads


def recognise_known(scene: Scene) -> Iterator[OwnerMark]:
    """The blocks of the previous snapshot whose headers are still there: a header does not outlive its mapping."""
    spans = scene.spans
    with realtime_priority:
        for mark in scene.known:
            end = spans.end_of(mark.start)
            if mark.kind == KIND and mark.start + PAGE <= end:
                size = mmapped_size(scene.reader.read(mark.start, 16))
                if size and mark.start + size <= end:
                    yield _mark(mark.start, size)


def recognise_chained(scene: Scene) -> list[OwnerMark]:
    """The blocks that begin where a mapping begins or the block below ends. The rest of each mapping whose chain broke
    is appended to `scene.broken_chains`."""
    reader, claimed, spans = scene.reader, scene.claimed, scene.spans
    marks: list[OwnerMark] = []
    reads = MAX_CHUNK_READS
    top = unread = 0
    for start, end in [part for mapping in scene.resident for part in claimed.free_parts(mapping.start, mapping.end)]:
        at = max(start, top)
        if not reads:
            unread += at + _MIN_SIZE <= end
            continue
        if at == start and (start, end) in scene.cache.heads:
            reads -= 1
            scene.broken_chains.append((at + PAGE, end))
            continue
        free = next(claimed.free_parts(start, spans.end_of(start)))[1] if at < end else end
        while at + PAGE <= end and at + 2 * PAGE <= free and reads:
            reads -= 1
            size = mmapped_size(reader.read(at, 16))
            if not size or at + size > free:
                scene.broken_chains.append((at + PAGE, end))
                if at == start:
                    scene.cache.heads.add((start, end))
                break
            marks.append(_mark(at, size))
            top = at = at + size
        unread += at + _MIN_SIZE <= end and not reads
    reader.unread["chunks"] += unread
    return marks


def recognise_searched(scene: Scene) -> Iterator[OwnerMark]:
    """The blocks amid memory that no recogniser has claimed. The largest parts come first; each may use half of the
    remaining reads."""
    reader, claimed, spans = scene.reader, scene.claimed, scene.spans
    reads = MAX_SEARCH_READS
    parts = [part for run in scene.broken_chains for part in claimed.free_parts(*run)]
    for part in sorted(parts, key=lambda part: part[0] - part[1]):
        for start, end in list(claimed.free_parts(*part)):  # a block that was just found may reach into it
            free = next(claimed.free_parts(start, spans.end_of(start)))[1]
            if free - start < _MIN_SIZE:
                continue
            known_start, used, unread = scene.cache.searched.get(end, (end, 0, 0))
            if known_start < end:  # memory grows downward: only the part below is new
                reader.unread["chunks"] += unread
                reads = max(0, reads - used - _PART_COST)
            if start >= known_start:
                continue
            reader.unread["chunks"] += not reads
            if reads:
                before = reader.unread["chunks"]
                part = start, min(known_start, end)
                found, used_now = _search(reader, spans, part, free, max(reads // 2, min(reads, _UPWARD_PAGES)))
                yield from found
                reads = max(0, reads - used_now - _PART_COST)
                used, unread = used + used_now, unread + reader.unread["chunks"] - before
                for first, last in ClaimedRanges(found).free_parts(start, end):
                    scene.cache.searched[last] = first, used, unread
                    used = unread = 0


def _search(reader: PageReader, spans: Spans, part: Run, top: int, reads: int) -> tuple[list[OwnerMark], int]:
    """Blocks amid other data up to `top`, and the number of reads. Searches from the part's end downward and, for the
    first pages, from its start upward.

    A block that ends where a mapping or the block above begins is accepted. Any other block is accepted only if few
    words of the data differ from a header in their flags alone: one in 4096 of these has the right flags by chance.
    """
    runs, ends = reader.present(*part), {top}
    total = sum(last - first for first, last in runs) // PAGE
    upward_pages = min(_UPWARD_PAGES, reads // 2) if total > reads else 0
    upward = islice((at for first, last in runs for at in range(first, last, PAGE)), upward_pages)
    downward = islice(
        (at for first, last in reversed(runs) for at in range(last - PAGE, first - 1, -PAGE)), reads - upward_pages
    )
    reader.unread["chunks"] += total > reads
    anchored, unanchored, misses = set[Run](), set[Run](), 0
    places = (*downward, *upward)
    with realtime_priority:
        for at in places:
            before, word = struct.unpack("<2Q", reader.read_present(at, 16) or bytes(16))
            if before or not PAGE < word <= top - at + 2:
                continue
            size = mmapped_size(struct.pack("<2Q", before, word))
            if size and (at + size in ends or spans.starts_mapping(at + size)):
                ends.add(at)
                anchored.add((at, size))
            elif size >= _MIN_SIZE:
                unanchored.add((at, size))
            elif word >= _MIN_SIZE:
                misses += 1
    claimed = ClaimedRanges()
    claimed.claim(_mark(at, size) for at, size in sorted(anchored))
    if misses <= _MAX_MISSES:
        claimed.claim(_mark(at, size) for at, size in sorted(unanchored))
    return claimed.marks, min(total, reads)


def _mark(start: int, size: int) -> OwnerMark:
    return OwnerMark(start=start, end=start + size, kind=KIND, detail=f"chunk header at {start:#x}")


def mmapped_size(header: bytes | None) -> int:
    """The size of the block with that header; 0 if it is not such a header."""
    if header is None:
        return 0
    before, size = struct.unpack("<2Q", header)
    return size - 2 if before == 0 and size % PAGE == 2 and size > PAGE else 0
