"""Memory of allocators and heaps that keep records of it which can be read: jemalloc, tcmalloc, mimalloc, Go, V8."""

import contextlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from heapq import nlargest
from itertools import islice, zip_longest

from memforensics.case.model import Mapping, OwnerMark, Snapshot
from memforensics.errors import MemforensicsError
from memforensics.probes.proc.claimed_ranges import Look, is_private_anonymous
from memforensics.runtimes.golang import find_go_heaps
from memforensics.runtimes.mimalloc import segments
from memforensics.runtimes.page_tries import PAGE, Static, find_tries, owned, with_pointers
from memforensics.runtimes.reading import Run, joined
from memforensics.runtimes.v8 import chunks
from memforensics.symbols.elf.reader import ElfFile
from memforensics.target import Process
from memforensics.units import KIB, MIB

_MAX_SAMPLES = 64  # mappings whose pages an allocator's records are asked for, those with most resident bytes first
_SAMPLE_STEP = 2 * MIB  # where extents like to begin, behind the allocator's own records
_STEPS = 16  # of one mapping
_LEAST_TABLES = 64 * KIB  # of .bss: that of a Go program is at least as large, that of an allocator with a trie larger


def allocators(look: Look, process: Process, snapshot: Snapshot) -> Iterator[OwnerMark]:
    """What their own records say that they own, those records included."""
    private = [m for m in snapshot.mappings if (is_private_anonymous(m) or m.path == "[heap]") and m.rss != 0]
    memory = _spans(private)
    statics = static_data(snapshot.mappings)
    large = [
        exactly for each in statics if each.end - each.zeros > _LEAST_TABLES for exactly in _bounded(process, each)
    ]
    pointing = with_pointers(look, large, memory)
    for found in find_tries(look, pointing, memory, _samples(private) if pointing else ()):
        its = owned(look, found)
        look.unread_records += its.unread
        where = f"its records are in {found.module}"
        yield from _marks(memory, its.heap, found.trie.kind, where)
        yield from _marks(memory, its.records, found.trie.kind, f"{where}: the records themselves")
    for heap in find_go_heaps(look, pointing, memory):
        look.unread_records += heap.unread
        yield from _marks(memory, heap.arenas, "go-heap", f"arenas known to {heap.module}")
        yield from _marks(memory, heap.records, "go-runtime", f"records of the heap of {heap.module}")
    of_v8 = chunks(look, [(mapping.start, mapping.end) for mapping in private])
    yield from _marks(memory, of_v8, "v8-heap", "a chunk by its header")
    found_segments = segments(look, memory, lambda: _contents(look, statics))
    yield from _marks(memory, found_segments, "mimalloc", "segments by their cookies")


def _samples(private: Sequence[Mapping]) -> list[int]:
    """Pages at which an extent may well begin or end."""
    fullest = nlargest(_MAX_SAMPLES, private, key=lambda mapping: mapping.rss or 0)
    edges = [page for mapping in fullest for page in (mapping.start, mapping.end - PAGE)]
    steps = [
        page
        for mapping in fullest
        for page in range(-(-mapping.start // _SAMPLE_STEP) * _SAMPLE_STEP, mapping.end, _SAMPLE_STEP)[:_STEPS]
    ]
    return [page for pair in zip_longest(edges, steps) for page in pair if page is not None]


def static_data(mappings: Sequence[Mapping]) -> list[Static]:
    """Writable data of each module: its writable mapping, and the .bss that follows directly."""
    out: list[Static] = []
    last: Mapping | None = None
    for mapping in mappings:
        if mapping.path.startswith("/") and mapping.inode != 0 and mapping.perms == "rw-p":
            out.append(Static(mapping, max(mapping.start, mapping.end - PAGE), mapping.end))
        elif out and last is not None and last.path and out[-1].end == mapping.start and is_private_anonymous(mapping):
            out[-1] = replace(out[-1], end=mapping.end)  # its .bss; what comes behind that is another's
        last = mapping
    return out


def _bounded(process: Process, static: Static) -> Iterator[Static]:
    """To where its .bss ends by its program headers: any anonymous memory may follow directly. Nothing where its file
    cannot be had."""
    with contextlib.suppress(OSError, MemforensicsError), process.open_mapped(static.mapping) as stream:
        start, offset = static.start, static.mapping.offset
        for segment in ElfFile(stream).load_segments:
            if segment.offset & -PAGE <= offset < segment.offset + segment.filesz:
                end = start + segment.offset - offset + segment.memsz
                yield replace(static, end=min(static.end, -(-end // PAGE) * PAGE))


def _contents(look: Look, statics: Sequence[Static]) -> Iterator[bytes]:
    for static in statics:
        for start, end in look.present(static.start, static.end):
            data = look.read_present(start, end - start)
            if data is not None:
                yield data


def _marks(memory: Sequence[Run], runs: Sequence[Run], kind: str, detail: str) -> Iterator[OwnerMark]:
    """A mark for what of each run is anonymous memory."""
    for start, end in runs:
        for first, last in islice(memory, bisect_right(memory, start, key=lambda run: run[1]), None):
            if first >= end:
                break
            yield OwnerMark(start=max(first, start), end=min(last, end), kind=kind, detail=detail)


def _spans(mappings: Sequence[Mapping]) -> list[Run]:
    """Mappings that touch as one."""
    return joined([(mapping.start, mapping.end) for mapping in mappings])
