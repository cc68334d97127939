"""The account of one address space: its sites with their stacks, and the intervals that the kernel handed over."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from memforensics.case.model import AllocationSite, SitePoint, Stack
from memforensics.probes.ebpf.layout import EventType, Kind, RangeEvent
from memforensics.probes.ebpf.ledger import Ledger, Piece, freed_by_site

MAX_POINTS = 1200  # of one site's timeline; beyond, every second one goes
RECENT_UNMAPS = 4096


@dataclass(slots=True)
class Counts:
    """Traffic of one site."""

    allocated_bytes: int = 0
    allocated_count: int = 0
    freed_bytes: int = 0
    freed_count: int = 0
    first_ns: int = 0
    last_ns: int = 0

    def add(self, other: "Counts") -> None:
        self.allocated_bytes += other.allocated_bytes
        self.allocated_count += other.allocated_count
        self.freed_bytes += other.freed_bytes
        self.freed_count += other.freed_count
        if other.first_ns:
            self.first_ns = min(self.first_ns or other.first_ns, other.first_ns)
        self.last_ns = max(self.last_ns, other.last_ns)


SiteKey = tuple[object, ...]  # kind, flags, native pcs, python frames


@dataclass(slots=True)
class SiteRecord:
    """One stack and kind. Several of the kernel's sites are one here: those completed from a miss among them."""

    number: int
    kind: Kind
    shared: bool
    file_backed: bool
    stack: Stack
    now: Counts = field(default_factory=Counts)
    points: list[SitePoint] = field(default_factory=list)
    births: list[int] = field(default_factory=list)  # of the outstanding blocks, at the end
    resident_bytes: int | None = None

    @property
    def outstanding_bytes(self) -> int:
        return max(0, self.now.allocated_bytes - self.now.freed_bytes)

    @property
    def outstanding_count(self) -> int:
        return max(0, self.now.allocated_count - self.now.freed_count)

    def note(self, t_ns: int) -> bool:
        """Adds a point to the timeline; whether anything changed since the last."""
        last = self.points[-1] if self.points else None
        here = (self.outstanding_bytes, self.outstanding_count)
        changed = last is None or (last.outstanding_bytes, last.outstanding_count) != here
        self.points.append(SitePoint(t_ns=t_ns, outstanding_bytes=here[0], outstanding_count=here[1]))
        if len(self.points) > MAX_POINTS:
            del self.points[1:-1:2]
        return changed

    def site(self, pid: int, ended_ns: int) -> AllocationSite:
        return AllocationSite(
            pid=pid,
            site_id=self.number,
            kind=self.kind.name,
            stack=self.stack,
            outstanding_bytes=self.outstanding_bytes,
            outstanding_count=self.outstanding_count,
            allocated_bytes=self.now.allocated_bytes,
            allocated_count=self.now.allocated_count,
            freed_bytes=self.now.freed_bytes,
            freed_count=self.now.freed_count,
            first_ns=self.now.first_ns,
            last_ns=self.now.last_ns,
            resident_bytes=self.resident_bytes,
            shared=self.shared,
            file_backed=self.file_backed,
            timeline=tuple(self.points),
            age_quantiles_s=self._ages(ended_ns),
        )

    def _ages(self, ended_ns: int) -> tuple[float, float, float] | None:
        if not self.births:
            return None
        ages = sorted((ended_ns - born) / 1e9 for born in self.births)
        low, middle, high = (ages[round(q * (len(ages) - 1))] for q in (0.1, 0.5, 0.9))
        return low, middle, high


Take = Callable[[int, int, int], Iterable[tuple[int, int, int, int]]]
"""(start, end, born before) -> the kernel's live mappings there, taken over: (start, end, kernel site, born)."""


class Book:
    """Kernel sites -> site records; and the ledger of what is no longer whole. Pure: `take` reaches into the kernel."""

    def __init__(self, take: Take, numbers: "itertools.count[int]") -> None:
        self.ledger = Ledger()
        self.sites: dict[SiteKey, SiteRecord] = {}
        self._by_kernel: dict[int, SiteRecord] = {}
        self._here: dict[int, Counts] = {}  # kernel site -> what was booked in user space
        self._take, self._numbers = take, numbers
        self._undo: dict[int, list[Piece]] = {}  # tid -> its last removal
        self._unmapped: deque[tuple[int, int, int]] = deque(maxlen=RECENT_UNMAPS)  # t_ns, start, end

    def new_site(
        self, kernel_site: int, key: SiteKey, kind: Kind, shared: bool, file_backed: bool, stack: Callable[[], Stack]
    ) -> None:
        """Notes which stack a site of the kernel has. `stack` is called when it was not met before."""
        record = self.sites.get(key)
        if record is None:
            record = self.sites[key] = SiteRecord(next(self._numbers), kind, shared, file_backed, stack())
        before = self._by_kernel.get(kernel_site)
        if before is None or not before.stack.complete:  # a copy of the stack may come after its first part
            self._by_kernel[kernel_site] = record

    def handle(self, event: RangeEvent) -> None:
        """One event, in the order of the ring buffer."""
        if event.type is EventType.UNMAP:
            self._remove(event)
        elif event.type is EventType.EVICT:
            self._evict(event)
        elif event.type is EventType.UNDO:
            self._restore(event)
        elif event.type is EventType.BRK:
            self._book(self.ledger.remove(event.start, event.end))
            self.ledger.add(event.start, event.end, event.site, event.born_ns)
        elif event.type is EventType.REMAP:
            self._remap(event)

    def _remove(self, event: RangeEvent) -> None:
        for start, end, site, born_ns in self._take(event.start, event.end, event.t_ns):
            self._book(self.ledger.remove(start, end))
            self.ledger.add(start, end, site, born_ns)
        taken = self.ledger.remove(event.start, event.end)
        self._book(taken)
        self._undo[event.tid] = taken
        self._unmapped.append((event.t_ns, event.start, event.end))

    def _evict(self, event: RangeEvent) -> None:
        """A whole mapping comes over. What was unmapped of it before we got to know goes at once."""
        self._book(self.ledger.remove(event.start, event.end))
        self.ledger.add(event.start, event.end, event.site, event.born_ns)
        for t_ns, start, end in self._unmapped:
            if t_ns > event.born_ns and start < event.end and end > event.start:
                self._book(self.ledger.remove(start, end))

    def _restore(self, event: RangeEvent) -> None:
        pieces = self._undo.pop(event.tid, [])
        for freed in freed_by_site(pieces):
            self._counts(freed.site).add(Counts(freed_bytes=-freed.bytes, freed_count=-freed.blocks))
        self.ledger.restore(pieces)
        if self._unmapped and self._unmapped[-1][1:] == (event.start, event.end):
            self._unmapped.pop()

    def _remap(self, event: RangeEvent) -> None:
        """What we know of the old place comes to the new one, and the growth; what was there before the trace not."""
        length = event.end - event.start
        self._book(self.ledger.remove(event.start, event.end))
        places = [
            (piece.start - event.old, min(piece.end - event.old, length))
            for piece in self._undo.pop(event.tid, [])
            if piece.start - event.old < length
        ]
        if length > event.old_length:
            places.append((event.old_length, length))
        for low, high in _joined(places):
            self.ledger.add(event.start + low, event.start + high, event.site, event.born_ns)
            self._counts(event.site).add(Counts(allocated_bytes=high - low, allocated_count=1))

    def _book(self, taken: list[Piece]) -> None:
        for freed in freed_by_site(taken):
            self._counts(freed.site).add(Counts(freed_bytes=freed.bytes, freed_count=freed.blocks))

    def _counts(self, kernel_site: int) -> Counts:
        return self._here.setdefault(kernel_site, Counts())

    def update(self, kernel: Iterable[tuple[int, Counts]]) -> None:
        """Takes the kernel's counters of this space: (kernel site, counts)."""
        for record in self.sites.values():
            record.now = Counts()
        for kernel_site, counts in (*kernel, *self._here.items()):
            record_of = self._by_kernel.get(kernel_site)
            if record_of is not None:
                record_of.now.add(counts)

    def all_gone(self) -> None:
        """The address space was replaced by exec: nothing is outstanding any more. No update may follow."""
        for record in self.sites.values():
            record.now.freed_bytes = record.now.allocated_bytes
            record.now.freed_count = record.now.allocated_count

    def forget_stale(self, start: int, end: int) -> bool:
        """Takes off the ledger what cannot stand any more, because a whole mapping stands there now; whether there
        was anything."""
        taken = self.ledger.remove(start, end)
        self._book(taken)
        return bool(taken)

    def record(self, kernel_site: int) -> SiteRecord | None:
        return self._by_kernel.get(kernel_site)


def _joined(places: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Intervals, rising and disjoint, with those that touch made one."""
    out: list[tuple[int, int]] = []
    for low, high in places:
        if out and out[-1][1] == low:
            out[-1] = (out[-1][0], high)
        else:
            out.append((low, high))
    return out
