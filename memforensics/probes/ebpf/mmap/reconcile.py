"""Compares the ledger with /proc/PID/maps: finds, counts and repairs what the events did not show (a full ring buffer,
an operation that is not followed).

Not every difference is an error, because the process goes on while its maps are read. Only what is older than the
reading can be found gone. Only what two readings show, and neither the ledger nor the beginning had, can be found
missing.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from memforensics.probes.ebpf.loader.layout import LiveRange
from memforensics.probes.ebpf.mmap.allocation_table import Counts
from memforensics.probes.ebpf.mmap.ledger import Span, subtract, union
from memforensics.probes.ebpf.mmap.proc_maps import Mapped, mapped
from memforensics.probes.ebpf.mmap.programs import MmapPrograms
from memforensics.probes.ebpf.mmap.space import MmapSpace


@dataclass(frozen=True, slots=True)
class Repairs:
    gone: int = 0  # ranges of the ledger that are not mapped
    missing: int = 0  # mapped ranges that the ledger did not have


@dataclass(frozen=True, slots=True)
class Correction:
    """At the end, after events were dropped. `bytes`: that `sites` had too many or too few. `unknown_bytes`: mapped
    since recording started, by unknown code; None: what was mapped then is not known."""

    bytes: int
    sites: int
    unknown_bytes: int | None


class Reconciler:
    """Of one address space."""

    def __init__(self, space: MmapSpace) -> None:
        self._space, self._process = space, space.process
        self._mapped_before: list[Span] | None = None  # when recording started
        self._mapped_last: tuple[int, Mapped] | None = None  # when the trace ended, and what was mapped
        self.next_ns = 0

    def start(self) -> None:
        """Call it once recording has started: what is mapped now is not searched for. TargetGone, PermissionNeeded."""
        self._mapped_before = self._read_maps().anonymous

    def reconcile(self, programs: MmapPrograms, handle_events: Callable[[], bool]) -> Repairs | None:
        """`handle_events` handles all events until now, or returns False: then nothing can be found (None). TargetGone,
        PermissionNeeded."""
        with programs.exact_births():
            return self._reconcile(programs, handle_events)

    def _reconcile(self, programs: MmapPrograms, handle_events: Callable[[], bool]) -> Repairs | None:
        before_ns = time.monotonic_ns()  # the clock of bpf_ktime_get_ns()
        first = self._read_maps()
        if not handle_events():
            return None
        if programs.dropped():
            self._space.allocations.take_over_overlapping(self._live(programs))
        live = self._live(programs)
        gone = self._remove_unmapped(first, live, before_ns)
        missing = self._unknown(first.anonymous, live)
        if missing:
            second = self._read_maps().anonymous
            if not handle_events():
                return Repairs(gone)
            missing = self._unknown(_common(missing, second), self._live(programs))
            for start, end in missing:
                self._space.allocations.add_unknown(start, end, before_ns)
        return Repairs(gone, len(missing))

    def note_mapped(self) -> None:
        """Notes what is mapped, for `correct`. Call it just before the programs are detached, with exact births.
        TargetGone, PermissionNeeded."""
        self._mapped_last = time.monotonic_ns(), self._read_maps()

    def check_ranges(self, live: list[LiveRange]) -> None:
        """After events were dropped and the programs detached: removes what was not mapped just before. `live`: the
        kernel's table of this space."""
        live = self._space.resolve_unmaps(live)
        taken = self._space.allocations.take_over_overlapping(live)
        if self._mapped_last is not None:
            before_ns, first = self._mapped_last
            self._remove_unmapped(first, [entry for entry in live if entry not in taken], before_ns)

    def correct(self, kernel: list[tuple[int, Counts]], live: list[LiveRange]) -> Correction | None:
        """After `check_ranges`: makes the counters (`kernel`: the kernel's) agree with the ranges. What was mapped just
        before the end, still is, and is in no range, has an unknown origin; it may have been unmapped and mapped again
        in between. None: nothing was read. TargetGone, PermissionNeeded."""
        if self._mapped_last is None:
            return None
        before_ns, first = self._mapped_last
        after = self._read_maps().anonymous
        table = self._space.allocations
        before = table.outstanding(kernel)
        table.correct_counts(kernel, live)
        changes = [size - before.get(site, (0, 0))[0] for site, (size, _) in table.outstanding(kernel).items()]
        missing = self._unknown(_common(first.anonymous, after), live)
        for start, end in missing:
            table.add_unknown(start, end, before_ns)
        unknown = sum(end - start for start, end in missing) if self._mapped_before is not None else None
        return Correction(sum(map(abs, changes)), sum(map(bool, changes)), unknown)

    def _read_maps(self) -> Mapped:
        return mapped(self._process.read_text("maps"))

    def _live(self, programs: MmapPrograms) -> list[LiveRange]:
        return self._space.resolve_unmaps(programs.live().get(self._space.number, []))

    def _remove_unmapped(self, now: Mapped, live: list[LiveRange], before_ns: int) -> int:
        table = self._space.allocations
        spans = sorted((entry.start, entry.end) for entry in live if entry.born_ns < before_ns)
        holes = subtract(union(spans), now.all)
        if holes:
            for entry in live:
                if entry.born_ns < before_ns and any(entry.start < end and entry.end > start for start, end in holes):
                    table.take_over(entry)
        holes += subtract([(p.start, p.end) for p in table.ledger if p.block.born_ns < before_ns], now.all)
        return sum(table.remove_unmapped(start, end, before_ns) for start, end in union(holes))

    def _unknown(self, spans: list[Span], live: list[LiveRange]) -> list[Span]:
        """What of the spans is in no range and was not mapped before."""
        if self._mapped_before is None:
            return []
        known = [*((e.start, e.end) for e in live), *((p.start, p.end) for p in self._space.allocations.ledger)]
        return subtract(subtract(spans, self._mapped_before), union(known))


def _common(first: list[Span], second: list[Span]) -> list[Span]:
    return subtract(first, subtract(first, second))
