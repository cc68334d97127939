"""musl's malloc ("mallocng", musl 1.2.1 and newer): Alpine's C library, as its own file or in a static program.

musl describes its heap in pages of records (src/malloc/mallocng/meta.h). Each page (struct meta_area) begins with a
random 64-bit word that the static data of musl (struct malloc_context) holds too. This word makes the pages certain. A
record (struct meta) with a `maplen` is a group of blocks in a mapping of its own. Other groups lie within such groups.
musl also hands out the unused ends of the data pages of libraries; these pages stay the libraries'. No symbols are
needed. The allocator of musl 1.2.0 and older has no records and is not recognised.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from memforensics.case.model import OwnerMark
from memforensics.runtimes.reading import Reading, Run, joined
from memforensics.runtimes.scene import Scene
from memforensics.runtimes.static_data import USER_END, pointers_in
from memforensics.target.pagemap import PAGE
from memforensics.text import basename

# struct malloc_context: from `secret` to `meta_area_head`. Machines whose page size is not fixed have a `pagesize` too.
_SECRET_TO_HEAD = (56, 64)
_AREA = struct.Struct("<QQi4x")  # struct meta_area: check, next, nslots
_META = struct.Struct("<2Q3Q")  # struct meta: prev, next, mem, two masks, a word of bit fields
_MAX_SLOTS = (PAGE - _AREA.size) // _META.size
_MAPLEN_SHIFT = 12  # after last_idx (5 bits), freeable (1) and sizeclass (6)
_MIN_SECRET = 1 << 32  # 1 in 4 billion secrets is below it; counters and flags are
# Bounds on the reads if static data or records are hostile.
_MAX_HEADS = 4096  # pointers to pages in the static data of one module
_MAX_UNCONFIRMED = 8  # pages of records
MAX_AREAS = 16_384  # 64 MiB of records


@dataclass(frozen=True, slots=True)
class Heap:
    """`groups`: mappings that hold blocks. `records`: the pages that describe them. `is_whole`: all were read."""

    groups: list[Run]
    records: list[Run]
    is_whole: bool


def recognise(scene: Scene) -> Iterator[OwnerMark]:
    """The heap of musl. A process has one C library: with glibc mapped there is nothing to search."""
    if any(basename(path) == "libc.so.6" for path in scene.modules):
        return
    for static in scene.statics:
        heap = read_heap(scene.reader, static.start, static.end)
        if heap is not None:
            scene.reader.unread["records"] += not heap.is_whole
            where = f"its records begin in {basename(static.mapping.path)}"
            yield from scene.marks(heap.groups, "musl", where)
            yield from scene.marks(heap.records, "musl", f"{where}: the records themselves")
            return


def read_heap(reading: Reading, start: int, end: int) -> Heap | None:
    """The heap whose malloc_context lies in this static data. None if there is none."""
    pointers = ((slot, word) for slot, word in pointers_in(reading, start, end) if word % PAGE == 0)
    for slot, head in islice(pointers, _MAX_HEADS):
        check = reading.read(head, 8)
        if check is None or int.from_bytes(check, "little") < _MIN_SECRET:
            continue
        secrets = [reading.read(slot - distance, 8) for distance in _SECRET_TO_HEAD if slot - distance >= start]
        heap = _walk(reading, head, check) if check in secrets else None
        if heap is not None:
            return heap
    return None


def _walk(reading: Reading, head: int, check: bytes) -> Heap | None:
    """All groups, from the first page of records on. None if no group points back to its record."""
    groups: list[Run] = []
    areas: set[int] = set()
    confirmed = False
    address = head
    while address and address not in areas and len(areas) < (MAX_AREAS if confirmed else _MAX_UNCONFIRMED):
        page = reading.read(address, PAGE) if address % PAGE == 0 else None
        if page is None or page[:8] != check:
            break
        areas.add(address)
        _, following, slots = _AREA.unpack_from(page)
        for at in range(_AREA.size, _AREA.size + min(max(slots, 0), _MAX_SLOTS) * _META.size, _META.size):
            _, _, memory, _, fields = _META.unpack_from(page, at)
            size = (fields >> _MAPLEN_SHIFT) * PAGE
            if size and memory % PAGE == 0 and 0 < memory < memory + size <= USER_END:
                groups.append((memory, memory + size))
                confirmed = confirmed or reading.read(memory, 8) == (address + at).to_bytes(8, "little")
        address = following
    if not confirmed:
        return None
    return Heap(joined(groups), joined((area, area + PAGE) for area in areas), is_whole=not address)
