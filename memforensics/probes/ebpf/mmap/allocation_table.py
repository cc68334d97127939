"""The account of one address space: its sites with their stacks, and the intervals that the kernel handed over."""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from memforensics.case.model import AllocationSite, Cohort, SitePoint, Stack
from memforensics.probes.ebpf.loader.layout import EventType, Kind, LiveRange, RangeEvent
from memforensics.probes.ebpf.mmap.cohorts import CounterReading, OutstandingBlock, Slots, cohorts
from memforensics.probes.ebpf.mmap.ledger import Block, Ledger, Piece, freed_by_site, subtract, union
from memforensics.probes.ebpf.mmap.pending_unmaps import Overlap, PendingUnmaps, Unmap

MAX_POINTS = 1200  # of one site's timeline; beyond, every second one goes
ALL_POINTS = 1 << 19  # of all sites of a process together
MAX_KERNEL_SITES = 1 << 15  # that are told apart: twice what the kernel keeps, for stacks that were completed later
MAX_PIECES = 1 << 18  # of mappings that were cut, in one address space
MAX_RECENT = 4096  # removals that are remembered, should they fail or be moves


@dataclass(slots=True)
class Counts:
    """Traffic of one site."""

    allocated_bytes: int = 0
    allocated_count: int = 0
    freed_bytes: int = 0
    freed_count: int = 0
    first_ns: int = 0
    last_ns: int = 0
    squares: int = 0  # of the weights of the births

    def add(self, other: "Counts") -> None:
        self.allocated_bytes += other.allocated_bytes
        self.allocated_count += other.allocated_count
        self.freed_bytes += other.freed_bytes
        self.freed_count += other.freed_count
        if other.first_ns:
            self.first_ns = min(self.first_ns or other.first_ns, other.first_ns)
        self.last_ns = max(self.last_ns, other.last_ns)
        self.squares += other.squares


SiteKey = tuple[object, ...]  # kind, flags, native pcs, python frames


@dataclass(slots=True, eq=False)
class SiteRecord:
    """One stack and kind. Several of the kernel's sites are one here: those completed from a miss among them."""

    number: int
    kind: Kind
    shared: bool
    file_backed: bool
    complete: bool
    make_stack: Callable[[], Stack]
    now: Counts = field(default_factory=Counts)
    points: list[SitePoint] = field(default_factory=list)
    readings: list[CounterReading] = field(default_factory=list)  # of the counter of births, at the ends of slots
    left: list[OutstandingBlock] | None = None  # the outstanding blocks, at the end
    resident_bytes: int | None = None
    tmpfs: bool = False
    placed: bool = False
    _stack: Stack | None = None

    @property
    def stack(self) -> Stack:
        """Symbolized when it is first asked for: that may take a while."""
        if self._stack is None:
            self._stack = self.make_stack()
        return self._stack

    @property
    def symbolized(self) -> bool:
        return self._stack is not None

    @property
    def outstanding_bytes(self) -> int:
        return max(0, self.now.allocated_bytes - self.now.freed_bytes)

    @property
    def outstanding_count(self) -> int:
        return max(0, self.now.allocated_count - self.now.freed_count)

    def note(self, t_ns: int, most: int = MAX_POINTS) -> bool:
        """Adds a point to the timeline, of `most` points; whether anything changed since the last."""
        last = self.points[-1] if self.points else None
        here = (self.outstanding_bytes, self.outstanding_count)
        changed = last is None or (last.outstanding_bytes, last.outstanding_count) != here
        self.points.append(SitePoint(t_ns=t_ns, outstanding_bytes=here[0], outstanding_count=here[1]))
        if len(self.points) > most:
            del self.points[1:-1:2]
        return changed

    def end_slot(self, slots: Slots) -> None:
        """Reads the counter of births at the end of a slot."""
        if not self.readings or self.readings[-1].count != self.now.allocated_count:
            self.readings.append(CounterReading(slots.bounds[-1], self.now.allocated_bytes, self.now.allocated_count))
        if len(self.readings) > len(slots.bounds):
            self.readings = slots.kept(self.readings)

    def cohorts(self, slots: Slots, ended_ns: int, left: list[OutstandingBlock]) -> tuple[Cohort, ...]:
        """`left`: the site's outstanding blocks."""
        born = CounterReading(ended_ns, self.now.allocated_bytes, self.now.allocated_count)
        return cohorts(slots, ended_ns, self.readings, born, left)

    @property
    def _effective_births(self) -> int | None:
        """Kish's effective sample size, where births have weights."""
        count, squares = self.now.allocated_count, self.now.squares
        return count * count // squares if squares > count else None

    def site(self, pid: int, ended_ns: int, slots: Slots | None = None) -> AllocationSite:
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
            tmpfs=self.tmpfs,
            placed=self.placed,
            timeline=tuple(self.points),
            cohorts=self.cohorts(slots, ended_ns, self.left) if slots is not None and self.left is not None else (),
            effective_births=self._effective_births,
        )


Take = Callable[[int], LiveRange | None]
"""The kernel's whole mapping that starts there, taken out of its hands."""


class AllocationTable:
    """The sites of one address space, and the ledger of mappings that are no longer whole. Pure: `take` alone reads
    the kernel's table.

    The kernel keeps whole mappings. It still lists a mapping that was cut as a whole one until `resolve_unmaps` finds
    it there, or until its address is used again (EVICT). So each removal is kept until both can have happened
    (pending_unmaps.py). A mapping that enters the ledger first loses what was removed since it was born. A removal
    never touches a mapping that was born after it, whatever the order in which the events arrive.
    """

    def __init__(self, take: Take, numbers: "itertools.count[int]") -> None:
        self.ledger = Ledger()
        self.sites: dict[SiteKey, SiteRecord] = {}
        self.pending_unmaps = PendingUnmaps()
        self._by_kernel: dict[int, SiteRecord] = {}
        self._local_counts: dict[int, Counts] = {}  # kernel site -> what was booked in user space
        self._take_live, self._numbers = take, numbers
        self._recent_unmaps: OrderedDict[tuple[int, int, int], Unmap] = (
            OrderedDict()
        )  # tid, start, end -> its last removal
        self._deferred: list[LiveRange] = []
        self.dropped_sites = 0  # stacks, of too many
        self.max_pieces = MAX_PIECES
        self.dropped_ranges = 0  # pieces, of too many: outstanding, and not in any sum
        self._attached: dict[int, tuple[int, Block]] = {}  # start -> end, block: shmat

    def add_site(
        self,
        kernel_site: int,
        key: SiteKey,
        kind: Kind,
        shared: bool,
        file_backed: bool,
        complete: bool,
        stack: Callable[[], Stack],
        *,
        tmpfs: bool = False,
        placed: bool = False,
    ) -> None:
        """Notes which stack a site of the kernel has. `stack` is called when it was not met before and is asked for."""
        if len(self._by_kernel) >= MAX_KERNEL_SITES and kernel_site not in self._by_kernel:
            self.dropped_sites += 1
            return
        record = self.sites.get(key)
        if record is None:
            record = SiteRecord(
                next(self._numbers), kind, shared, file_backed, complete, stack, tmpfs=tmpfs, placed=placed
            )
            self.sites[key] = record
        before = self._by_kernel.get(kernel_site)
        if before is None or not before.complete:  # a copy of the stack may come after its first part
            self._by_kernel[kernel_site] = record

    @property
    def max_points(self) -> int:
        """That one site's timeline may have."""
        return max(16, min(MAX_POINTS, ALL_POINTS // max(1, len(self.sites))))

    # --- events, in the order of the ring buffer

    def handle(self, event: RangeEvent) -> None:
        if event.type is EventType.UNMAP:
            self._remove(event)
        elif event.type is EventType.EVICT:
            self._insert(event.start, event.end, Block(event.site, event.born_ns, weight=event.old))
        elif event.type is EventType.UNDO:
            self._restore(event)
        elif event.type is EventType.BRK:
            self._insert(event.start, event.end, Block(event.site, event.born_ns))
        elif event.type is EventType.REMAP:
            self._remap(event)
        elif event.type is EventType.DETACH:
            self._detach(event)

    def _remove(self, event: RangeEvent) -> None:
        unmap = Unmap(event.tid, event.t_ns, event.start, event.end)
        unmap.pieces = self.ledger.remove(event.start, event.end, born_before_ns=event.t_ns)
        self._count_freed(unmap.pieces)
        self.pending_unmaps.add(unmap)
        key = event.tid, event.start, event.end
        self._recent_unmaps[key] = unmap
        self._recent_unmaps.move_to_end(key)
        if len(self._recent_unmaps) > MAX_RECENT:
            self._recent_unmaps.popitem(last=False)

    def _restore(self, event: RangeEvent) -> None:
        unmap = self._recent_unmaps.pop((event.tid, event.start, event.end), None)
        if unmap is None:
            return
        self.pending_unmaps.drop(unmap)
        for freed in freed_by_site(unmap.pieces):
            self._counts(freed.site).add(Counts(freed_bytes=-freed.bytes, freed_count=-freed.blocks))
        self.ledger.restore(unmap.pieces)

    def _remap(self, event: RangeEvent) -> None:
        """What we know of the old place comes to the new one, and the growth; what was there before the trace not."""
        unmap = self._recent_unmaps.pop((event.tid, event.old, event.old + event.old_length), None)
        block = Block(event.site, event.born_ns)
        length = event.end - event.start
        grown = [(event.old_length, length)] if length > event.old_length else []
        if unmap is not None:
            unmap.moved, unmap.moved_bytes, unmap.block = event.start, length, block
            grown += [(p.start - unmap.start, min(p.end - unmap.start, length)) for p in unmap.pieces]
        for low, high in union([(low, high) for low, high in grown if low < high]):
            self._insert(event.start + low, event.start + high, block, made=True)

    def attach(self, event: RangeEvent, size: int) -> None:
        """shmat. Its size was not in the event."""
        block = Block(event.site, event.born_ns)
        self._attached[event.start] = event.start + size, block
        self._insert(event.start, event.start + size, block, made=True)

    def _detach(self, event: RangeEvent) -> None:
        end, block = self._attached.pop(event.start, (0, None))
        if block is not None:
            self._count_freed(self.ledger.remove(event.start, end, only=block))

    def _insert(self, start: int, end: int, block: Block, *, made: bool = False) -> None:
        """[start, end) of a block comes to stand, less what was removed since the block was born. `made`: it is booked
        as allocated here, not by the kernel."""
        if made:
            count = block.weight if block.left == 0 else 0
            self._counts(block.site).add(
                Counts(
                    allocated_bytes=(end - start) * block.weight, allocated_count=count, squares=count * block.weight
                )
            )
        self._count_freed(self.ledger.remove(start, end, born_before_ns=block.born_ns))
        younger = union([(p.start, p.end) for p in self.ledger.overlapping(start, end)])
        spans = [(start, end)]
        lost: list[Piece] = []
        for unmap in self.pending_unmaps.overlapping(start, end, block.born_ns):
            hole = [(unmap.start, unmap.end)]
            pieces = [Piece(*span, block) for span in subtract(spans, subtract(spans, hole))]
            spans = subtract(spans, hole)
            unmap.pieces += pieces
            lost += pieces
            self._follow_move(unmap, pieces)
        left = subtract(spans, younger) if younger else spans
        if younger:
            lost += [Piece(*span, block) for span in subtract(spans, left)]
        for span in left:
            if len(self.ledger) < self.max_pieces:
                self.ledger.add(*span, block)
            else:
                self.dropped_ranges += 1
                lost.append(Piece(*span, block))
        self._count_freed(lost)

    def _follow_move(self, unmap: Unmap, pieces: list[Piece]) -> None:
        """What a removal took that was an mremap's, is where that moved it."""
        if unmap.moved is None or unmap.block is None:
            return
        for piece in pieces:
            low, high = piece.start - unmap.start, min(piece.end - unmap.start, unmap.moved_bytes)
            if low < high:
                self._insert(unmap.moved + low, unmap.moved + high, unmap.block, made=True)

    # --- the kernel's table

    def resolve_unmaps(self, live: Iterable[LiveRange], *, is_behind: bool = False) -> list[LiveRange]:
        """Takes over the kernel's whole mappings (all of this space, read after the last event handled) that were cut
        meanwhile; the others. `is_behind`: events that were told before the reading before this one still wait, and
        may need the removals that are kept."""
        if not is_behind:
            late, self._deferred = self._deferred, []
            for entry in late:
                self._insert(entry.start, entry.end, Block(entry.site, entry.born_ns, weight=entry.weight))
        where = Overlap(self.pending_unmaps.spans())
        left: list[LiveRange] = []
        for entry in live:
            if where.any(entry.start, entry.end) and self.pending_unmaps.overlapping(
                entry.start, entry.end, entry.born_ns
            ):
                self.take_over(entry)
            else:
                left.append(entry)
        if not is_behind:
            self.pending_unmaps.passed()
        return left

    def take_over(self, entry: LiveRange) -> None:
        """A whole mapping from the kernel's hands into the ledger. It may be a younger one by now, that came after
        events which we have not yet handled: then it has to wait for them."""
        now = self._take_live(entry.start)
        if now is not None and now.born_ns == entry.born_ns:
            self._insert(now.start, now.end, Block(now.site, now.born_ns, weight=now.weight))
        elif now is not None:
            self._deferred.append(now)

    def take_over_overlapping(self, live: Iterable[LiveRange]) -> Collection[LiveRange]:
        """Takes over those of the kernel's whole mappings that share addresses with another or with the ledger: a
        removal was not told. The younger one stands there. Those that were taken over."""
        known = Overlap(union([(piece.start, piece.end) for piece in self.ledger]))
        found: dict[LiveRange, None] = {}
        furthest: LiveRange | None = None
        for entry in sorted(live):
            if furthest is not None and entry.start < furthest.end:
                found |= {furthest: None, entry: None}
            if known.any(entry.start, entry.end):
                found[entry] = None
            if furthest is None or entry.end > furthest.end:
                furthest = entry
        for entry in found:
            self.take_over(entry)
        return found.keys()

    def repair(self, start: int, end: int, before_ns: int) -> bool:
        """Takes off the ledger what does not stand any more by /proc, of that age; whether there was anything."""
        taken = self.ledger.remove(start, end, born_before_ns=before_ns)
        self._count_freed(taken)
        return bool(taken)

    def adopt(self, start: int, end: int, now_ns: int) -> None:
        """A mapping of unknown origin, found in /proc."""
        self._insert(start, end, Block(0, now_ns, weight=0))

    def outstanding(self, kernel: Iterable[tuple[int, Counts]]) -> dict[int, tuple[int, int]]:
        """Bytes and mappings by the kernel's site, as the counters have them."""
        sums: dict[int, tuple[int, int]] = {}
        for site, counts in (*kernel, *self._local_counts.items()):
            size, number = sums.get(site, (0, 0))
            size += counts.allocated_bytes - counts.freed_bytes
            sums[site] = size, number + counts.allocated_count - counts.freed_count
        return sums

    def correct(self, kernel: Iterable[tuple[int, Counts]], live: Iterable[LiveRange]) -> None:
        """After events were dropped, and when nothing changes any more: what the counters of a site have beyond its
        ranges was freed at an unknown time."""
        blocks = {piece.block: 0 for piece in self.ledger}
        for piece in self.ledger:
            blocks[piece.block] += piece.size
        ranges = [(entry.site, entry.end - entry.start, entry.weight) for entry in live]
        ranges += [(block.site, size, block.weight) for block, size in blocks.items()]
        surplus = self.outstanding(kernel)
        for site, size, weight in ranges:
            size_of, number = surplus.get(site, (0, 0))
            surplus[site] = size_of - size * weight, number - weight
        for site, (size, number) in surplus.items():
            if size or number:
                self._counts(site).add(Counts(freed_bytes=size, freed_count=number))

    def _count_freed(self, taken: list[Piece]) -> None:
        if not taken:
            return
        for freed in freed_by_site(taken):
            self._counts(freed.site).add(Counts(freed_bytes=freed.bytes, freed_count=freed.blocks))

    def _counts(self, kernel_site: int) -> Counts:
        return self._local_counts.setdefault(kernel_site, Counts())

    def update(self, kernel: Iterable[tuple[int, Counts]]) -> None:
        """Takes the kernel's counters of this space: (kernel site, counts)."""
        for record in self.sites.values():
            record.now = Counts()
        for kernel_site, counts in (*kernel, *self._local_counts.items()):
            record_of = self._by_kernel.get(kernel_site)
            if record_of is not None:
                record_of.now.add(counts)

    def release_all(self) -> None:
        """The address space was replaced by exec: nothing is outstanding any more. No update may follow."""
        for record in self.sites.values():
            record.now.freed_bytes = record.now.allocated_bytes
            record.now.freed_count = record.now.allocated_count
            record.left = []

    def record(self, kernel_site: int) -> SiteRecord | None:
        return self._by_kernel.get(kernel_site)
