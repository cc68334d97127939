"""The writable static data of each module, .bss included, and the pointers in it: where an allocator's tables begin."""

import contextlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from memforensics.case.model import Mapping
from memforensics.errors import MemforensicsError
from memforensics.runtimes.reading import Reading, Run
from memforensics.symbols.elf.reader import ElfFile
from memforensics.target import Process
from memforensics.target.pagemap import PAGE
from memforensics.units import KIB

USER_END = 1 << 47
_MAX_STATIC_PAGES = 4096  # of one module
_MIN_TABLE = 512 * KIB  # the smallest leaf of any allocator's trie
_MIN_BSS = 64 * KIB  # a Go program has at least as much .bss, an allocator with a trie has more
_NUMPY_BYTES = 64 * KIB  # with less data, importing numpy costs more than it saves


@dataclass(frozen=True, slots=True)
class Static:
    """The writable data of one module, .bss included."""

    mapping: Mapping  # of the writable part of its file
    bss_start: int  # the first page that may be .bss; `end` if there is none
    end: int
    pointers: tuple[Run, ...] = ()  # (address, word): words in .bss that may be addresses of tables

    @property
    def start(self) -> int:
        return self.mapping.start


def is_private_anonymous(mapping: Mapping) -> bool:
    """Private writable memory without a file and a name."""
    return mapping.path == "" and mapping.perms in ("rw-p", "rwxp")


def static_data(mappings: Sequence[Mapping]) -> list[Static]:
    """For each module its writable mapping and the anonymous mapping right behind it."""
    out: list[Static] = []
    last: Mapping | None = None
    for mapping in mappings:
        if mapping.path.startswith("/") and mapping.inode != 0 and mapping.perms == "rw-p":
            out.append(Static(mapping, max(mapping.start, mapping.end - PAGE), mapping.end))
        elif out and last is not None and last.path and out[-1].end == mapping.start and is_private_anonymous(mapping):
            out[-1] = replace(out[-1], end=mapping.end)
        last = mapping
    return out


def with_pointers(reading: Reading, process: Process, statics: Sequence[Static], memory: Sequence[Run]) -> list[Static]:
    """The statics with a large .bss, each with its words that could point to a table: into large runs of `memory`."""
    large = [run for run in memory if run[1] - run[0] >= _MIN_TABLE]
    if not large:
        return []
    statics = [static for static in statics if static.end - static.bss_start > _MIN_BSS]
    return [with_table_pointers(reading, one, large) for static in statics for one in _up_to_bss_end(process, static)]


def with_table_pointers(reading: Reading, static: Static, large: Sequence[Run]) -> Static:
    return replace(static, pointers=tuple(_pointers_to(reading, static, large)))


def _up_to_bss_end(process: Process, static: Static) -> Iterator[Static]:
    """The static data up to the end of .bss according to the program headers, because other anonymous memory may follow
    directly. Nothing if the file cannot be read."""
    with contextlib.suppress(OSError, MemforensicsError), process.open_mapped(static.mapping) as stream:
        start, offset = static.start, static.mapping.offset
        for segment in ElfFile(stream).load_segments:
            if segment.offset & -PAGE <= offset < segment.offset + segment.filesz:
                end = start + segment.offset - offset + segment.memsz
                yield replace(static, end=min(static.end, -(-end // PAGE) * PAGE))


def _pointers_to(reading: Reading, static: Static, large: Sequence[Run]) -> Iterator[Run]:
    lowest, highest = large[0][0], large[-1][1]
    seen: set[int] = set()
    for slot, word in pointers_in(reading, static.bss_start, static.end, (lowest, highest - _MIN_TABLE)):
        if word not in seen:
            seen.add(word)
            if lies_in(large, word, _MIN_TABLE):
                yield slot, word


def lies_in(memory: Sequence[Run], start: int, size: int) -> bool:
    index = bisect_right(memory, (start, USER_END)) - 1
    return index >= 0 and start + size <= memory[index][1]


def pointers_in(reading: Reading, start: int, end: int, among: Run = (PAGE, USER_END)) -> Iterator[Run]:
    """(address, word) of the words in present pages that are a multiple of 16 in the range `among`."""
    pages_left = _MAX_STATIC_PAGES
    for first, last in reading.present(start & -PAGE, end) if start < end else ():
        last = min(last, first + pages_left * PAGE)
        pages_left -= (last - first) // PAGE
        first, last = max(first, start), min(last, end)
        data = reading.read(first, last - first & -8) or b""
        for index, word in _between(data, among) if len(data) > _NUMPY_BYTES else enumerate(memoryview(data).cast("Q")):
            if among[0] <= word < among[1] and not word & 15:
                yield first + 8 * index, word
        if not pages_left:
            return


def _between(data: bytes, among: Run) -> Iterator[Run]:
    import numpy as np

    words = np.frombuffer(data, "<u8")
    at = np.flatnonzero((words >= among[0]) & (words < among[1]) & (words & np.uint64(15) == 0))
    yield from zip(at.tolist(), words[at].tolist(), strict=True)
