"""mimalloc 1.6 to 3.x, wherever its code is (its own library, a program, CPython 3.13's free-threaded build).

Its memory consists of segments, aligned to 32 MiB (2.x) or 4 MiB (1.x), each with a header (mi_segment_t, in
include/mimalloc/types.h). The header is recognised by its cookie: the segment's address XOR a random word in the static
data of the module that contains mimalloc (`_mi_heap_main.cookie`, src/segment.c). The fields next to it give the size.
3.x has arenas instead, whose headers begin with their own address and size (mi_arena_t) and which that module's static
data lists. No symbols and no names are needed.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from memforensics.case.model import OwnerMark
from memforensics.runtimes.reading import Reading, Run
from memforensics.runtimes.scene import Scene
from memforensics.units import GIB, KIB, MIB

HEADER = 1024  # contains the fields up to the cookie: 2 masks of 128 bytes and some words
SLICE = 64 * KIB
_MAX_TRIED = 512  # places that are read first, evenly spaced among all
_LIKELY_RANDOM = 1 << 48  # 1 in 65,536 cookies is below it


@dataclass(frozen=True, slots=True)
class _Layout:
    """The layout of the header of one version."""

    align: int
    read_size: Callable[[tuple[int, ...], int], int]  # 0 if it is no such header
    reach: int  # words that must follow the cookie


def _size_v2(words: tuple[int, ...], at: int) -> int:
    """segment_slices, segment_info_slices, kind and slice_entries follow the cookie; from 2.2, after two pointers."""
    for first in (at + 1, at + 3):
        slices, info, kind, entries = words[first : first + 4]
        whole = 32 * MIB // SLICE
        is_kind = kind & 0xFFFFFFFF == (0 if slices == whole else 1) or (slices == whole and kind & 0xFFFFFFFF == 1)
        if 0 < info <= slices <= GIB * 64 // SLICE and info < 64 and is_kind and 0 < entries <= min(slices, whole) + 1:
            return slices * SLICE
    return 0


def _size_v1(words: tuple[int, ...], at: int) -> int:
    """segment_size and segment_info_size precede the cookie; page_shift follows it."""
    size, info, shift = words[at - 2], words[at - 1], words[at + 1]
    fits = 0 < info < size <= 64 * GIB and size % 4096 == 0 and info % 16 == 0 and 12 <= shift & 0xFFFFFFFF <= 63
    return size if fits else 0


_LAYOUTS = (_Layout(32 * MIB, _size_v2, 7), _Layout(4 * MIB, _size_v1, 2))


@dataclass(frozen=True, slots=True)
class _Candidate:
    start: int
    size: int
    key: int  # what _mi_heap_main.cookie must be


def recognise(scene: Scene) -> Iterator[OwnerMark]:
    """Segments and arenas of mimalloc."""

    def static_bytes() -> Iterator[bytes]:
        for static in scene.statics:
            for start, end in scene.reader.present(static.start, static.end):
                data = scene.reader.read_present(start, end - start)
                if data is not None:
                    yield data

    found = segments(scene.reader, scene.heap_runs, static_bytes)
    yield from scene.marks(found, "mimalloc", "segments by their cookies")


def segments(reading: Reading, memory: Iterable[Run], statics: Callable[[], Iterator[bytes]]) -> list[Run]:
    """The segments or arenas in `memory` (ranges of private anonymous memory). `statics` reads the writable static data
    of the modules; it is called only if something looks like a segment or an arena."""
    runs = list(memory)
    for layout in _LAYOUTS:
        bases = [at for start, end in runs for at in range(-(-start // layout.align) * layout.align, end, layout.align)]
        sample = bases[:: -(-len(bases) // _MAX_TRIED) or 1]
        keys = {candidate.key for at in sample for candidate in _candidates(reading, layout, at)}
        cookie = _find_in_statics(keys, statics) if keys else None
        if cookie is not None:
            found = [candidate for at in bases for candidate in _candidates(reading, layout, at)]
            return sorted({(each.start, each.start + each.size) for each in found if each.key == cookie})
    return list(_arenas(reading, runs, statics))


def _arenas(reading: Reading, runs: Iterable[Run], statics: Callable[[], Iterator[bytes]]) -> Iterator[Run]:
    """The arenas of 3.x: memid {base, size, ...}, subproc, ..., slice_count. Each is in the list of its subprocess too.
    They are searched at the start of each range and after each arena found."""
    for at, end in runs:
        while at < end and (size := _arena_size(reading, at)) and _find_in_statics({at}, statics) is not None:
            yield at, at + size
            at += size


def _arena_size(reading: Reading, at: int) -> int:
    """The size of the arena at this address; 0 if there is none."""
    head = reading.read(at, 64) if at % SLICE == 0 else None
    base, size, *_, fourth, fifth, sixth, seventh = struct.unpack("<8Q", head or bytes(64))
    fits = base == at and size % SLICE == 0 and 0 < size < 1 << 47
    return size if fits and size // SLICE in (fourth, fifth, sixth, seventh) else 0


def _candidates(reading: Reading, layout: _Layout, start: int) -> Iterator[_Candidate]:
    data = reading.read(start, HEADER)
    words = struct.unpack(f"<{HEADER // 8}Q", data) if data is not None else ()
    for at in range(2, len(words) - layout.reach):
        key = words[at] ^ start
        size = layout.read_size(words, at) if key >= _LIKELY_RANDOM else 0
        if size:
            yield _Candidate(start, size, key)


def _find_in_statics(keys: set[int], statics: Callable[[], Iterator[bytes]]) -> int | None:
    patterns = [(key, struct.pack("<Q", key)) for key in keys]
    for data in statics():
        for key, pattern in patterns:
            at = data.find(pattern)
            while at >= 0 and at % 8:
                at = data.find(pattern, at + 1)
            if at >= 0:
                return key
    return None
