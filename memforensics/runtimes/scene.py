"""The input and output of recognisers.

A recogniser is a function in a module of its own. It takes a Scene and yields an OwnerMark for each range whose owner
it recognises by the content of the memory, never by a library's name or by alignment alone. In doubt it yields nothing,
and the memory stays anonymous. `probes/proc/owners.py` lists the recognisers in the order in which they run.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from memforensics.case.model import Mapping, OwnerMark, Snapshot
from memforensics.runtimes.reading import PageReader, Run, joined
from memforensics.runtimes.static_data import Static, is_private_anonymous, static_data, with_pointers
from memforensics.target import Process

FORGET_AFTER = 8  # snapshots


@dataclass(slots=True)
class ClaimedRanges:
    """The marks so far, ascending and without overlap: the first claim of a range wins."""

    marks: list[OwnerMark] = field(default_factory=list)

    def claim(self, marks: Iterable[OwnerMark]) -> None:
        for mark in marks:
            if self.is_free(mark.start, mark.end):
                self.marks.insert(bisect_right(self.marks, mark.start, key=lambda m: m.start), mark)

    def is_free(self, start: int, end: int) -> bool:
        index = bisect_right(self.marks, start, key=lambda m: m.end)
        return index == len(self.marks) or self.marks[index].start >= end

    def free_parts(self, start: int, end: int) -> Iterator[Run]:
        """The parts of a range that have no mark."""
        if self.is_free(start, end):
            yield start, end
            return
        for first, last in self.claimed_parts(start, end):
            if first > start:
                yield start, first
            start = last
        if start < end:
            yield start, end

    def claimed_parts(self, start: int, end: int) -> Iterator[Run]:
        """The parts of a range that have a mark."""
        index = bisect_right(self.marks, start, key=lambda m: m.end)
        while index < len(self.marks) and self.marks[index].start < end:
            yield max(start, self.marks[index].start), min(end, self.marks[index].end)
            index += 1


@dataclass(slots=True)
class NegativeCache:
    """Where the last snapshots of a process found nothing. These places are skipped for a few snapshots, because each
    costs a read and most memory of a process has no recognisable owner. Unread pages stay counted."""

    modules: dict["Recogniser", frozenset[str]] = field(default_factory=dict)  # mapped files when it found nothing
    heads: set[Run] = field(default_factory=set)  # mappings that begin with no malloc'ed block
    searched: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # end -> start, reads used, left unread
    snapshots: int = 0

    def next_snapshot(self) -> None:
        """Call it after each snapshot. Every FORGET_AFTER snapshots everything is read again."""
        self.snapshots = (self.snapshots + 1) % FORGET_AFTER
        if self.snapshots == 0:
            self.modules.clear()
            self.heads.clear()
            self.searched.clear()


class Spans:
    """Private anonymous memory with adjacent mappings as one span: madvise (numpy's, for huge pages) and mlock split a
    block's mapping, usually after its header."""

    def __init__(self, anonymous: Sequence[Mapping]) -> None:
        self._starts = [mapping.start for mapping in anonymous]
        self._ends = [mapping.end for mapping in anonymous]  # of the span of each mapping
        for index in range(len(anonymous) - 2, -1, -1):
            if self._ends[index] == self._starts[index + 1]:
                self._ends[index] = self._ends[index + 1]

    def end_of(self, address: int) -> int:
        """The end of the span that holds the address."""
        index = bisect_right(self._starts, address) - 1
        return self._ends[index] if index >= 0 else 0

    def starts_mapping(self, address: int) -> bool:
        index = bisect_right(self._starts, address) - 1
        return index >= 0 and self._starts[index] == address


@dataclass
class Scene:
    """One snapshot of a process, as recognisers see it. `known`: the marks of the snapshot before, as hints that must
    be verified. `claimed`: the marks of the recognisers that ran before."""

    process: Process
    snapshot: Snapshot
    reader: PageReader
    known: Sequence[OwnerMark] = ()
    cache: NegativeCache = field(default_factory=NegativeCache)
    claimed: ClaimedRanges = field(default_factory=ClaimedRanges)
    broken_chains: list[Run] = field(default_factory=list)  # for glibc.mmapped_chunks

    @cached_property
    def anonymous(self) -> list[Mapping]:
        """Private anonymous mappings."""
        return [mapping for mapping in self.snapshot.mappings if is_private_anonymous(mapping)]

    @cached_property
    def spans(self) -> Spans:
        return Spans(self.anonymous)

    @cached_property
    def resident(self) -> list[Mapping]:
        """Private anonymous mappings with resident pages."""
        return [mapping for mapping in self.anonymous if mapping.rss != 0]

    @cached_property
    def heap_mappings(self) -> list[Mapping]:
        """Mappings that an allocator can own: resident anonymous memory and [heap]."""
        return [m for m in self.snapshot.mappings if (is_private_anonymous(m) or m.path == "[heap]") and m.rss != 0]

    @cached_property
    def heap_runs(self) -> list[Run]:
        """The ranges of `heap_mappings`; adjacent mappings are one range."""
        return joined((mapping.start, mapping.end) for mapping in self.heap_mappings)

    @cached_property
    def modules(self) -> frozenset[str]:
        return frozenset(mapping.path for mapping in self.snapshot.mappings)

    @cached_property
    def statics(self) -> list[Static]:
        return static_data(self.snapshot.mappings)

    @cached_property
    def statics_with_tables(self) -> list[Static]:
        """Static data large enough for the tables of an allocator, with its pointers to where a table could be."""
        return with_pointers(self.reader, self.process, self.statics, self.heap_runs)

    def marks(self, runs: Iterable[Run], kind: str, detail: str) -> Iterator[OwnerMark]:
        """A mark for each part of `runs` that an allocator can own."""
        for start, end in runs:
            index = bisect_right(self.heap_runs, start, key=lambda run: run[1])
            while index < len(self.heap_runs) and self.heap_runs[index][0] < end:
                first, last = self.heap_runs[index]
                yield OwnerMark(start=max(first, start), end=min(last, end), kind=kind, detail=detail)
                index += 1


Recogniser = Callable[[Scene], Iterable[OwnerMark]]
