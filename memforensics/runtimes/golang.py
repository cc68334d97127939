"""The heap of programs and libraries built by Go's standard compiler (gc, 64-bit).

runtime/mheap.go: the heap consists of arenas of 64 MiB, aligned to their size. `mheap_.arenas`, in the module's static
data, points to a table of 4 M pointers by arena number. These point to the arenas' `heapArena`, whose `spans` point to
the mspan of each 8 KiB page, which has the span's start and length. The table is recognised by a lookup in it that
gives the right span, so no symbols are needed. The offset of `spans` in heapArena changed in Go 1.20 and 1.22.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from memforensics.case.model import OwnerMark
from memforensics.runtimes.reading import Reading, Run, joined
from memforensics.runtimes.scene import Scene
from memforensics.runtimes.static_data import Static, pointers_in
from memforensics.units import KIB, MIB

ARENA = 64 * MIB
_BASE = 1 << 47  # -arenaBaseOffset, on amd64: arena number = (address + _BASE) / ARENA
_TABLE = 8 << 22  # 1 << arenaL2Bits pointers; arenaL1Bits is 0
_PAGE = 8 * KIB
# From 1.22; to 1.19, after a bitmap; 1.20 and 1.21, after a bitmap and noMorePtrs.
_SPANS = (0, 2 * MIB, MIB + 16 * KIB)
_SPANS_BYTES = 8 * (ARENA // _PAGE)
_MSPAN = struct.Struct("<24x2Q")  # next, prev, list; startAddr, npages
_TRIED_ARENAS = 256  # the lowest: Go's begin at 0xc000000000
_TRIED_PAGES = 64  # of an arena, from its start
_MAX_INVALID = 64  # table entries without an arena; a real table has none
_MAX_ARENAS = 4096  # 256 GiB per snapshot
_NEAR = 16 * KIB  # mspans come from chunks of that size (runtime/mfixalloc.go)


@dataclass(frozen=True, slots=True)
class GoHeap:
    """`arenas`: the Go heap with the stacks of goroutines. `records`: the tables above and the mspans. `unread`: number
    of arenas beyond _MAX_ARENAS."""

    module: str
    arenas: list[Run]
    records: list[Run]
    unread: int


def recognise(scene: Scene) -> Iterator[OwnerMark]:
    """The Go heap, and the memory that holds its records."""
    for heap in find_go_heaps(scene.reader, scene.statics_with_tables, scene.heap_runs):
        scene.reader.unread["records"] += heap.unread
        yield from scene.marks(heap.arenas, "go-heap", f"arenas known to {heap.module}")
        yield from scene.marks(heap.records, "go-runtime", f"records of the heap of {heap.module}")


def find_go_heaps(reading: Reading, statics: Sequence[Static], memory: Sequence[Run]) -> Iterator[GoHeap]:
    """The heap of each module whose static data leads to an arena that begins in `memory` (ranges of private anonymous
    memory)."""
    starts = [at for start, end in memory for at in range(-(-start // ARENA) * ARENA, end, ARENA)][:_TRIED_ARENAS]
    large_runs = [run for run in memory if run[1] - run[0] >= _TABLE]
    for static in statics if starts and large_runs else ():
        table = _find_table(reading, static, starts, large_runs)
        if table is not None:
            yield _read_heap(reading, static.mapping.path, table)


def _find_table(reading: Reading, static: Static, starts: Sequence[int], large_runs: Sequence[Run]) -> int | None:
    tables = {word for _, word in static.pointers if word % 4096 == 0}
    for table in sorted(tables):
        is_possible = any(start <= table <= end - _TABLE for start, end in large_runs)
        if is_possible and any(_spans_of(reading, _entry(reading, table, at), at) for at in starts):
            return table
    return None


def _entry(reading: Reading, table: int, arena: int) -> int:
    data = reading.read(table + (arena + _BASE) // ARENA * 8, 8)
    return int.from_bytes(data or b"", "little")


def _spans_of(reading: Reading, heap_arena: int, arena: int) -> int | None:
    """The address of the arena's `spans`; None if they do not describe this arena."""
    if not 4096 < heap_arena < _BASE or heap_arena % 8:
        return None
    for offset in _SPANS:
        data = reading.read(heap_arena + offset, 8 * _TRIED_PAGES)
        for page, (span,) in enumerate(struct.iter_unpack("<Q", data or b"")):
            record = reading.read(span, _MSPAN.size) if 4096 < span < _BASE and not span % 8 else None
            if record is not None:
                start, pages = _MSPAN.unpack(record)
                if start <= arena + page * _PAGE < start + pages * _PAGE <= arena + ARENA * 1024 and not start % _PAGE:
                    return int(heap_arena + offset)
    return None


def _read_heap(reading: Reading, module: str, table: int) -> GoHeap:
    arenas: list[Run] = []
    records: list[Run] = [(table, table + _TABLE)]
    mspans: set[int] = set()
    invalid = unread = 0
    for slot, heap_arena in pointers_in(reading, table, table + _TABLE):
        start = (slot - table) // 8 * ARENA - _BASE
        if invalid > _MAX_INVALID or len(arenas) >= _MAX_ARENAS:
            unread += 1
            continue
        spans = _spans_of(reading, heap_arena, start) if start > 0 else None
        if spans is None:
            invalid += 1
            continue
        arenas.append((start, start + ARENA))
        records.append((heap_arena & -4096, -(-(spans + _SPANS_BYTES) // 4096) * 4096))
        mspans.update(_pages_pointed_to(reading, spans, spans + _SPANS_BYTES))
    near = joined([(page, page + 4096) for page in mspans], _NEAR)
    return GoHeap(module, joined(arenas), joined([*records, *near]), unread)


def _pages_pointed_to(reading: Reading, start: int, end: int) -> list[int]:
    """Addresses of the pages that the words in the range point to."""
    import numpy as np

    pages: list[int] = []
    for first, last in reading.present(start & -4096, end):
        first, last = max(first, start), min(last, end)
        words = np.frombuffer(reading.read(first, last - first & -8) or b"", "<u8")
        pages += np.unique(words[(words > 4096) & (words < _BASE)] & np.uint64((1 << 64) - 4096)).tolist()
    return pages
