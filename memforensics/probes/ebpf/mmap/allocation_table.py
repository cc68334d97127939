"""The allocations of one address space: its sites, and the ranges that the kernel handed over."""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from memforensics.case.model import AllocationSite, Cohort, SitePoint
from memforensics.probes.ebpf.loader.layout import EventType, LiveRange, RangeEvent, StackEvent
from memforensics.probes.ebpf.mmap.cohorts import CounterReading, OutstandingBlock, Slots, cohorts
from memforensics.probes.ebpf.mmap.ledger import Block, Ledger, Piece, freed_by_site, subtract, union
from memforensics.probes.ebpf.mmap.pending_unmaps import Overlap, PendingUnmaps, Unmap
from memforensics.probes.ebpf.stacks.sites import DecodedStack, Site, SiteTable, Traffic

MAX_PIECES = 1 << 18  # in the ledger of one address space
MAX_RECENT = 4096  # unmaps that may still fail or turn out to be moves


@dataclass(slots=True)
class Counts:
    """Traffic of one site."""

    allocated_bytes: int = 0
    allocated_count: int = 0
    freed_bytes: int = 0
    freed_count: int = 0
    first_ns: int = 0
    last_ns: int = 0
    squares: int = 0  # sum of the squared weights of the births

    def add(self, other: "Counts") -> None:
        self.allocated_bytes += other.allocated_bytes
        self.allocated_count += other.allocated_count
        self.freed_bytes += other.freed_bytes
        self.freed_count += other.freed_count
        if other.first_ns:
            self.first_ns = min(self.first_ns or other.first_ns, other.first_ns)
        self.last_ns = max(self.last_ns, other.last_ns)
        self.squares += other.squares


@dataclass(slots=True, eq=False)
class MmapSite(Site):
    """A site of mappings. `readings`: of the counter of births, at the ends of slots. `outstanding`: the blocks that
    are outstanding at the end. `resident_bytes`: of them; None where it was not read."""

    counts: Counts = field(default_factory=Counts)
    readings: list[CounterReading] = field(default_factory=list)
    outstanding: list[OutstandingBlock] | None = None
    resident_bytes: int | None = None

    @property
    def outstanding_bytes(self) -> int:
        return max(0, self.counts.allocated_bytes - self.counts.freed_bytes)

    @property
    def outstanding_count(self) -> int:
        return max(0, self.counts.allocated_count - self.counts.freed_count)

    def note(self, t_ns: int, max_points: int) -> bool:
        """Adds a point to the timeline; returns whether anything changed since the last."""
        point = SitePoint(t_ns=t_ns, outstanding_bytes=self.outstanding_bytes, outstanding_count=self.outstanding_count)
        return self.add_point(point, max_points)

    def end_slot(self, slots: Slots) -> None:
        """Reads the counter of births at the end of a slot."""
        if not self.readings or self.readings[-1].count != self.counts.allocated_count:
            self.readings.append(self._births(slots.bounds[-1]))
        if len(self.readings) > len(slots.bounds):
            self.readings = slots.kept(self.readings)

    def cohorts(self, slots: Slots, ended_ns: int, outstanding: list[OutstandingBlock]) -> tuple[Cohort, ...]:
        return cohorts(slots, ended_ns, self.readings, self._births(ended_ns), outstanding)

    def report(self, pid: int, ended_ns: int, slots: Slots) -> AllocationSite:
        now = self.counts
        traffic = Traffic(
            outstanding_bytes=self.outstanding_bytes,
            outstanding_count=self.outstanding_count,
            allocated_bytes=now.allocated_bytes,
            allocated_count=now.allocated_count,
            freed_bytes=now.freed_bytes,
            freed_count=now.freed_count,
            first_ns=now.first_ns,
            last_ns=now.last_ns,
        )
        born = self.cohorts(slots, ended_ns, self.outstanding) if self.outstanding is not None else ()
        # Kish's effective sample size, where births have weights
        effective = now.allocated_count**2 // now.squares if now.squares > now.allocated_count else None
        return self.allocation_site(pid, traffic, self.resident_bytes, born, effective)

    def _births(self, t_ns: int) -> CounterReading:
        return CounterReading(t_ns, self.counts.allocated_bytes, self.counts.allocated_count)


TakeLive = Callable[[int], LiveRange | None]
"""Removes the whole mapping that starts at an address from the kernel's table, and returns it."""


class AllocationTable:
    """The sites of one address space, and the ledger of mappings that are no longer whole. Pure: `take_live` alone
    touches the kernel's table.

    The kernel keeps whole mappings. It still lists a mapping that was cut as a whole one until `resolve_unmaps` finds
    it there, or until its address is used again (EVICT). So each removal is kept until both can have happened
    (pending_unmaps.py). A mapping that enters the ledger first loses what was removed since it was born. A removal
    never touches a mapping that was born after it, whatever the order in which the events arrive.
    """

    def __init__(self, take_live: TakeLive, site_numbers: "itertools.count[int]") -> None:
        self.ledger = Ledger()
        self.sites: SiteTable[MmapSite] = SiteTable(MmapSite, site_numbers)
        self.pending_unmaps = PendingUnmaps()
        self.max_pieces = MAX_PIECES
        self.dropped_ranges = 0  # outstanding, and in no sum: the ledger was full
        self.handlers: dict[EventType, Callable[[RangeEvent], None]] = {
            EventType.UNMAP: self._unmap,
            EventType.EVICT: self._evict,
            EventType.UNDO: self._undo_unmap,
            EventType.BRK: self._brk,
            EventType.REMAP: self._remap,
            EventType.DETACH: self._detach,
        }
        self._take_live = take_live
        self._local_counts: dict[int, Counts] = {}  # by the kernel's site: what user space counted
        self._recent_unmaps: OrderedDict[tuple[int, int, int], Unmap] = OrderedDict()  # by thread, start, end
        self._deferred: list[LiveRange] = []  # taken over before the events that preceded them
        self._attached: dict[int, tuple[int, Block]] = {}  # shmat: start -> end, block

    def add_site(self, event: StackEvent, decoded: DecodedStack) -> None:
        """A stack that the kernel reported for the first time."""
        flags = event.shared, event.file_backed, event.tmpfs, event.placed
        key = event.kind, *flags, decoded.complete, decoded.native, decoded.python
        self.sites.add(event, key, decoded)

    # --- events, in the order of the ring buffer

    def handle(self, event: RangeEvent) -> None:
        self.handlers[event.type](event)

    def _unmap(self, event: RangeEvent) -> None:
        unmap = Unmap(event.tid, event.t_ns, event.start, event.end)
        unmap.pieces = self.ledger.remove(event.start, event.end, born_before_ns=event.t_ns)
        self._count_freed(unmap.pieces)
        self.pending_unmaps.add(unmap)
        key = event.tid, event.start, event.end
        self._recent_unmaps[key] = unmap
        self._recent_unmaps.move_to_end(key)
        if len(self._recent_unmaps) > MAX_RECENT:
            self._recent_unmaps.popitem(last=False)

    def _undo_unmap(self, event: RangeEvent) -> None:
        unmap = self._recent_unmaps.pop((event.tid, event.start, event.end), None)
        if unmap is None:
            return
        self.pending_unmaps.drop(unmap)
        for freed in freed_by_site(unmap.pieces):
            self._counts(freed.site).add(Counts(freed_bytes=-freed.bytes, freed_count=-freed.blocks))
        self.ledger.restore(unmap.pieces)

    def _evict(self, event: RangeEvent) -> None:
        """The kernel hands over a whole mapping. `old`: its weight."""
        self._insert(event.start, event.end, Block(event.site, event.born_ns, weight=event.old))

    def _brk(self, event: RangeEvent) -> None:
        self._insert(event.start, event.end, Block(event.site, event.born_ns))

    def _remap(self, event: RangeEvent) -> None:
        """The new place gets the pieces that are known of the old one, and the growth. What was there before the trace
        began stays unknown."""
        unmap = self._recent_unmaps.pop((event.tid, event.old, event.old + event.old_length), None)
        block = Block(event.site, event.born_ns)
        length = event.end - event.start
        grown = [(event.old_length, length)] if length > event.old_length else []
        if unmap is not None:
            unmap.moved, unmap.moved_bytes, unmap.block = event.start, length, block
            grown += [(p.start - unmap.start, min(p.end - unmap.start, length)) for p in unmap.pieces]
        for low, high in union([(low, high) for low, high in grown if low < high]):
            self._allocate(event.start + low, event.start + high, block)

    def attach(self, event: RangeEvent, size: int) -> None:
        """shmat. The event does not have the size."""
        block = Block(event.site, event.born_ns)
        self._attached[event.start] = event.start + size, block
        self._allocate(event.start, event.start + size, block)

    def _detach(self, event: RangeEvent) -> None:
        end, block = self._attached.pop(event.start, (0, None))
        if block is not None:
            self._count_freed(self.ledger.remove(event.start, end, only=block))

    # --- the ledger

    def _allocate(self, start: int, end: int, block: Block) -> None:
        """[start, end) of a block that the kernel did not count."""
        count = block.weight if block.left == 0 else 0
        self._counts(block.site).add(
            Counts(allocated_bytes=(end - start) * block.weight, allocated_count=count, squares=count * block.weight)
        )
        self._insert(start, end, block)

    def _insert(self, start: int, end: int, block: Block) -> None:
        """Adds [start, end) of a block, without what was removed since the block was born."""
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
        kept = subtract(spans, younger) if younger else spans
        if younger:
            lost += [Piece(*span, block) for span in subtract(spans, kept)]
        for span in kept:
            if len(self.ledger) < self.max_pieces:
                self.ledger.add(*span, block)
            else:
                self.dropped_ranges += 1
                lost.append(Piece(*span, block))
        self._count_freed(lost)

    def _follow_move(self, unmap: Unmap, pieces: list[Piece]) -> None:
        """Pieces that an mremap removed are now at its new address."""
        if unmap.moved is None or unmap.block is None:
            return
        for piece in pieces:
            low, high = piece.start - unmap.start, min(piece.end - unmap.start, unmap.moved_bytes)
            if low < high:
                self._allocate(unmap.moved + low, unmap.moved + high, unmap.block)

    # --- the kernel's table

    def resolve_unmaps(self, live: Iterable[LiveRange], *, is_behind: bool = False) -> list[LiveRange]:
        """Takes over the kernel's whole mappings that were cut meanwhile, and returns the others. `live`: all of this
        space, read after the last event handled. `is_behind`: events sent before the reading before this one still
        wait, and may need the removals that are kept."""
        if not is_behind:
            deferred, self._deferred = self._deferred, []
            for entry in deferred:
                self._insert(entry.start, entry.end, Block(entry.site, entry.born_ns, weight=entry.weight))
        unmapped = Overlap(self.pending_unmaps.spans())
        kept: list[LiveRange] = []
        for entry in live:
            start, end = entry.start, entry.end
            if unmapped.any(start, end) and self.pending_unmaps.overlapping(start, end, entry.born_ns):
                self.take_over(entry)
            else:
                kept.append(entry)
        if not is_behind:
            self.pending_unmaps.passed()
        return kept

    def take_over(self, entry: LiveRange) -> None:
        """Moves a whole mapping from the kernel's table to the ledger. A younger mapping may be there by now, whose
        preceding events are not handled yet: then it waits for them."""
        now = self._take_live(entry.start)
        if now is not None and now.born_ns == entry.born_ns:
            self._insert(now.start, now.end, Block(now.site, now.born_ns, weight=now.weight))
        elif now is not None:
            self._deferred.append(now)

    def take_over_overlapping(self, live: Iterable[LiveRange]) -> Collection[LiveRange]:
        """Takes over and returns the kernel's whole mappings that share addresses with another or with the ledger:
        the event of a removal was dropped, and the younger mapping is the one that exists."""
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

    def remove_unmapped(self, start: int, end: int, before_ns: int) -> bool:
        """Removes what /proc does not show any more and is older than that; returns whether there was anything."""
        taken = self.ledger.remove(start, end, born_before_ns=before_ns)
        self._count_freed(taken)
        return bool(taken)

    def add_unknown(self, start: int, end: int, now_ns: int) -> None:
        """A mapping of unknown origin that /proc shows."""
        self._insert(start, end, Block(0, now_ns, weight=0))

    def outstanding(self, kernel: Iterable[tuple[int, Counts]]) -> dict[int, tuple[int, int]]:
        """Outstanding bytes and mappings by the kernel's site, from the counters."""
        sums: dict[int, tuple[int, int]] = {}
        for site, counts in (*kernel, *self._local_counts.items()):
            size, number = sums.get(site, (0, 0))
            size += counts.allocated_bytes - counts.freed_bytes
            sums[site] = size, number + counts.allocated_count - counts.freed_count
        return sums

    def correct_counts(self, kernel: Iterable[tuple[int, Counts]], live: Iterable[LiveRange]) -> None:
        """For the end of a trace that dropped events: what the counters of a site have beyond its ranges was freed at
        an unknown time."""
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

    def update_counts(self, kernel: Iterable[tuple[int, Counts]]) -> None:
        """Takes the kernel's counters of this space by its sites, and adds those of user space."""
        for site in self.sites:
            site.counts = Counts()
        for kernel_site, counts in (*kernel, *self._local_counts.items()):
            counted = self.sites.get(kernel_site)
            if counted is not None:
                counted.counts.add(counts)

    def release_all(self) -> None:
        """exec replaced the address space: nothing is outstanding any more. No `update` may follow."""
        for site in self.sites:
            site.counts.freed_bytes = site.counts.allocated_bytes
            site.counts.freed_count = site.counts.allocated_count
            site.outstanding = []
