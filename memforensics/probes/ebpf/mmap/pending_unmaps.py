"""Removals that were sent to user space, kept until they were compared with the kernel's own table. Pure."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from memforensics.probes.ebpf.mmap.ledger import Block, Piece, union

_GRANULE = 16  # bits: removals are indexed by granules of 64 KiB of address space
_WIDE = 64  # granules; a wider removal is in a list that every search reads


@dataclass(slots=True, eq=False)
class Unmap:
    """One removal, recorded at the entry of its call. `pieces`: what it took from the ledger so far. `moved`: the
    address to which mremap moved it, where it is `block`."""

    tid: int
    t_ns: int
    start: int
    end: int
    pieces: list[Piece] = field(default_factory=list)
    moved: int | None = None
    moved_bytes: int = 0  # the length of the new place
    block: Block | None = None


class PendingUnmaps:
    """The removals since the reading of the kernel's table before the last one: mappings may not know of them yet."""

    def __init__(self) -> None:
        self._young: dict[int, Unmap] = {}
        self._old: dict[int, Unmap] = {}
        self._buckets: dict[int, list[Unmap]] = {}  # each by rising time, as the others are
        self._wide: list[Unmap] = []
        self._ordered: list[Unmap] = []

    def __bool__(self) -> bool:
        return bool(self._young)

    def __len__(self) -> int:
        return len(self._young)

    def add(self, unmap: Unmap) -> None:
        self._young[id(unmap)] = unmap
        self._index(unmap)

    def drop(self, unmap: Unmap) -> None:
        """The call failed."""
        self._young.pop(id(unmap), None)
        self._old.pop(id(unmap), None)

    def passed(self) -> None:
        """The kernel's table was read and compared with all of these. A mapping that was sent before that, and is
        handled after it, may still need them; so they stay for one more reading."""
        self._old, self._young = self._young, {}
        self._buckets.clear()
        self._wide.clear()
        self._ordered.clear()
        for unmap in self._old.values():
            self._index(unmap)

    def spans(self) -> list[tuple[int, int]]:
        """The addresses of all of them, rising and disjoint."""
        return union([(unmap.start, unmap.end) for unmap in self._all()])

    def overlapping(self, start: int, end: int, since_ns: int) -> list[Unmap]:
        """Those after `since_ns`, by time."""
        first, last = start >> _GRANULE, (end - 1) >> _GRANULE
        if last - first >= _WIDE:  # pragma: no mutate (either way finds the same)
            near = [self._ordered]
        else:
            granules = range(first, last + 1)  # pragma: no mutate (more granules find the same)
            near = [self._wide, *(bucket for granule in granules if (bucket := self._buckets.get(granule)))]
        here: dict[int, Unmap] = {}
        for some in near:
            for unmap in reversed(some):
                if unmap.t_ns <= since_ns:
                    break
                if unmap.start < end and unmap.end > start and (id(unmap) in self._young or id(unmap) in self._old):
                    here[id(unmap)] = unmap
        return sorted(here.values(), key=lambda unmap: unmap.t_ns)

    def _all(self) -> Iterator[Unmap]:
        yield from self._old.values()
        yield from self._young.values()

    def _index(self, unmap: Unmap) -> None:
        _insert(self._ordered, unmap)
        first, last = unmap.start >> _GRANULE, (unmap.end - 1) >> _GRANULE
        if last - first >= _WIDE:  # pragma: no mutate (either way it is found)
            _insert(self._wide, unmap)
            return
        for granule in range(first, last + 1):
            _insert(self._buckets.setdefault(granule, []), unmap)


def _insert(unmaps: list[Unmap], unmap: Unmap) -> None:
    """Sorts by time; equal times keep their order. The events of several CPUs are nearly in order, so the place is near
    the end."""
    at = len(unmaps)
    while at and unmaps[at - 1].t_ns > unmap.t_ns:
        at -= 1
    unmaps.insert(at, unmap)


class Overlap:
    """Searches spans, which rise and are disjoint, for one that overlaps a range."""

    def __init__(self, spans: list[tuple[int, int]]) -> None:
        self._spans = spans
        self._starts = [start for start, _ in spans]

    def any(self, start: int, end: int) -> bool:
        at = bisect_right(self._starts, start) - 1
        if at >= 0 and self._spans[at][1] > start:
            return True
        return at + 1 < len(self._spans) and self._spans[at + 1][0] < end
