"""Heaps of glibc's arenas, recognised by their headers at multiples of 64 MiB."""

import struct
from collections.abc import Iterator, Sequence

from memforensics.case.model import Mapping, OwnerMark
from memforensics.runtimes.reading import Reading
from memforensics.runtimes.scene import Scene
from memforensics.target.pagemap import PAGE
from memforensics.units import MIB

ARENA_ALIGN = 64 * MIB  # glibc malloc/arena.c: HEAP_MAX_SIZE = 2 * DEFAULT_MMAP_THRESHOLD_MAX, on 64-bit


def recognise(scene: Scene) -> Iterator[OwnerMark]:
    """Heaps of all arenas but the main one."""
    return glibc_arenas(scene.reader, scene.resident)


def glibc_arenas(reading: Reading, private: Sequence[Mapping]) -> Iterator[OwnerMark]:
    """Heaps by their heap_info (malloc/arena.c) at 64 MiB alignment: {ar_ptr, prev, size, mprotect_size}. The arena's
    own struct follows the header of its first heap (at 0x30 since glibc 2.35, which added pagesize)."""
    heaps: dict[int, tuple[int, int, int, int, Mapping]] = {}
    for mapping in private:
        for address in range(-(-mapping.start // ARENA_ALIGN) * ARENA_ALIGN, mapping.end, ARENA_ALIGN):
            data = reading.read(address, 32)
            if data is None:
                continue
            arena, previous, size, writable = struct.unpack("<4Q", data)
            plausible = 0 < size <= writable <= ARENA_ALIGN and size % PAGE == 0 and writable % PAGE == 0
            if plausible:  # it may have grown since the mappings were read
                heaps[address] = (arena, previous, size, writable, mapping)
    for address, (arena, previous, _, writable, mapping) in heaps.items():
        first_heap = arena & -ARENA_ALIGN
        is_first = first_heap == address and previous == 0 and arena - address in (0x20, 0x30, 0x40)
        is_further = first_heap != address and previous != address and first_heap in heaps and previous in heaps
        if is_first or is_further:
            yield OwnerMark(
                start=address,
                end=min(address + writable, mapping.end),
                kind="glibc-arena",
                detail=f"heap_info at {address:#x}, arena at {arena:#x}",
            )
