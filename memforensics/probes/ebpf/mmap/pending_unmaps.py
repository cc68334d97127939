"""Removals that user space was told of, kept until they were held against the kernel's own table. Pure."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from memforensics.probes.ebpf.mmap.ledger import Block, Piece, union

_GRANULE = 16  # bits: removals are found by pieces of 64 KiB of address space
_WIDE = 64  # such pieces; what is wider is looked at each time


@dataclass(slots=True, eq=False)
class Cut:
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


class Cuts:
    """Those that a mapping may not know of yet: since the last pass through the kernel's table but one."""

    def __init__(self) -> None:
        self._young: dict[int, Cut] = {}
        self._old: dict[int, Cut] = {}
        self._buckets: dict[int, list[Cut]] = {}  # each by rising time, as the others are
        self._wide: list[Cut] = []
        self._ordered: list[Cut] = []

    def __bool__(self) -> bool:
        return bool(self._young)

    def __len__(self) -> int:
        return len(self._young)

    def add(self, cut: Cut) -> None:
        self._young[id(cut)] = cut
        self._index(cut)

    def drop(self, cut: Cut) -> None:
        """It did not happen."""
        self._young.pop(id(cut), None)
        self._old.pop(id(cut), None)

    def passed(self) -> None:
        """The kernel's table was read and held against all of these. A mapping that was told of before that, and is
        read after, may still need those of this time."""
        self._old, self._young = self._young, {}
        self._buckets.clear()
        self._wide.clear()
        self._ordered.clear()
        for cut in self._old.values():
            self._index(cut)

    def spans(self) -> list[tuple[int, int]]:
        """Where any of them is, rising and disjoint."""
        return union([(cut.start, cut.end) for cut in self._all()])

    def overlapping(self, start: int, end: int, since_ns: int) -> list[Cut]:
        """Those after `since_ns`, in the order of time."""
        first, last = start >> _GRANULE, (end - 1) >> _GRANULE
        if last - first >= _WIDE:  # pragma: no mutate (either way finds the same)
            near = [self._ordered]
        else:
            granules = range(first, last + 1)  # pragma: no mutate (more of them find the same)
            near = [self._wide, *(bucket for granule in granules if (bucket := self._buckets.get(granule)))]
        here: dict[int, Cut] = {}
        for some in near:
            for cut in reversed(some):
                if cut.t_ns <= since_ns:
                    break
                if cut.start < end and cut.end > start and (id(cut) in self._young or id(cut) in self._old):
                    here[id(cut)] = cut
        return sorted(here.values(), key=lambda cut: cut.t_ns)

    def _all(self) -> Iterator[Cut]:
        yield from self._old.values()
        yield from self._young.values()

    def _index(self, cut: Cut) -> None:
        _insert(self._ordered, cut)
        first, last = cut.start >> _GRANULE, (cut.end - 1) >> _GRANULE
        if last - first >= _WIDE:  # pragma: no mutate (either way it is found)
            _insert(self._wide, cut)
            return
        for granule in range(first, last + 1):
            _insert(self._buckets.setdefault(granule, []), cut)


def _insert(cuts: list[Cut], cut: Cut) -> None:
    """By time, behind those of the same time. CPUs tell nearly in the order of time: so its place is near the end."""
    at = len(cuts)
    while at and cuts[at - 1].t_ns > cut.t_ns:
        at -= 1
    cuts.insert(at, cut)


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
