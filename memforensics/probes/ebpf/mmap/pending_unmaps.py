"""Removals that user space was told of, kept until they were held against the kernel's own table. Pure."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from memforensics.probes.ebpf.mmap.ledger import Block, Piece, union

_GRANULE = 16  # bits: removals are found by pieces of 64 KiB of address space
_WIDE = 64  # such pieces; what is wider is looked at each time


@dataclass(slots=True, eq=False)
class Unmap:
    """One removal, booked at the entry of its call, and what it took so far. `moved`: by mremap, to that address,
    where it is `block`."""

    tid: int
    t_ns: int
    start: int
    end: int
    pieces: list[Piece] = field(default_factory=list)
    moved: int | None = None
    moved_bytes: int = 0  # the length of the new place
    block: Block | None = None


class PendingUnmaps:
    """Those that a mapping may not know of yet: since the last pass through the kernel's table but one."""

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
        """It did not happen."""
        self._young.pop(id(unmap), None)
        self._old.pop(id(unmap), None)

    def passed(self) -> None:
        """The kernel's table was read and held against all of these. A mapping that was told of before that, and is
        read after, may still need those of this time."""
        self._old, self._young = self._young, {}
        self._buckets.clear()
        self._wide.clear()
        self._ordered.clear()
        for unmap in self._old.values():
            self._index(unmap)

    def spans(self) -> list[tuple[int, int]]:
        """Where any of them is, rising and disjoint."""
        return union([(unmap.start, unmap.end) for unmap in self._all()])

    def overlapping(self, start: int, end: int, since_ns: int) -> list[Unmap]:
        """Those after `since_ns`, in the order of time."""
        first, last = start >> _GRANULE, (end - 1) >> _GRANULE
        if last - first >= _WIDE:  # pragma: no mutate (either way finds the same)
            near = [self._ordered]
        else:
            granules = range(first, last + 1)  # pragma: no mutate (more of them find the same)
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


def _insert(cuts: list[Unmap], unmap: Unmap) -> None:
    """By time, behind those of the same time. CPUs tell nearly in the order of time: so its place is near the end."""
    at = len(cuts)
    while at and cuts[at - 1].t_ns > unmap.t_ns:
        at -= 1
    cuts.insert(at, unmap)


class Overlap:
    """Whether a range overlaps any of some that are rising and disjoint."""

    def __init__(self, spans: list[tuple[int, int]]) -> None:
        self._spans = spans
        self._starts = [start for start, _ in spans]

    def any(self, start: int, end: int) -> bool:
        at = bisect_right(self._starts, start) - 1
        if at >= 0 and self._spans[at][1] > start:
            return True
        return at + 1 < len(self._spans) and self._spans[at + 1][0] < end
