"""One address space whose mappings are traced."""

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator

from memforensics.case.model import AllocationSite
from memforensics.errors import MemforensicsError
from memforensics.probes.ebpf.loader.layout import EventType, LiveRange, RangeEvent, StackEvent
from memforensics.probes.ebpf.mmap.allocation_table import AllocationTable, Counts, MmapSite
from memforensics.probes.ebpf.mmap.cohorts import Slots
from memforensics.probes.ebpf.mmap.proc_maps import segment_at
from memforensics.probes.ebpf.mmap.programs import MmapPrograms
from memforensics.probes.ebpf.stacks.decoder import StackDecoder
from memforensics.target import Process

RESOLVE_INTERVAL_S = 1.0  # between two readings of the kernel's table, to resolve unmaps ...
RESOLVE_INTERVAL_RATIO = 50.0  # ... and at least this many times what one reading takes ...
MANY_UNMAPS = 4096  # ... but when this many wait ...
MANY_UNMAPS_FACTOR = 0.1  # ... this part of that


class MmapSpace:
    """Made while the process lives. `changed`: sites that changed since they were last reported."""

    def __init__(
        self,
        number: int,
        process: Process,
        programs: MmapPrograms,
        site_numbers: "itertools.count[int]",
        slots: Slots,
    ) -> None:
        self.number, self.process = number, process
        self.stacks = StackDecoder(number, process, programs)
        self.allocations = AllocationTable(lambda start: programs.take_live(number, start), site_numbers)
        self.changed: set[MmapSite] = set()
        self.unsized_segments = 0  # of shared memory: detached before their size was read
        self._handlers = {**self.allocations.handlers, EventType.ATTACH: self._attach}
        self._programs, self._slots = programs, slots
        self._resolved_at = self._resolve_interval = 0.0
        self._read_until: list[int] | None = None

    @property
    def has_sites(self) -> bool:
        return bool(self.allocations.sites)

    def add_stack(self, event: StackEvent) -> None:
        self.allocations.add_site(event, self.stacks.decode(event))

    def handle(self, event: RangeEvent) -> None:
        self._handlers[event.type](event)

    def update_counts(self, counts: Iterable[tuple[int, Counts]]) -> None:
        self.allocations.update_counts(counts)

    def release_all(self) -> None:
        self.allocations.release_all()
        self.changed.update(self._used_sites())

    def note_changes(self, now_ns: int) -> None:
        """Adds a point to each site's timeline."""
        for site in self._used_sites():
            if site.note(now_ns, self.allocations.sites.max_points):
                self.changed.add(site)

    def report(self, site: MmapSite, now_ns: int) -> AllocationSite:
        self.changed.discard(site)
        return site.report(self.process.pid, now_ns, self._slots)

    def reports(self, ended_ns: int) -> Iterator[AllocationSite]:
        return (self.report(site, ended_ns) for site in self._used_sites())

    def end(self) -> None:
        if not self.stacks.ended:
            self.stacks.end()
            self._programs.drop_space(self.number)

    # --- unmaps that the kernel's table may not show yet

    def unmaps_are_due(self, now: float) -> bool:
        """Whether to resolve the pending unmaps. That reads the whole table, so not too often."""
        pending = len(self.allocations.pending_unmaps)
        interval = self._resolve_interval * (MANY_UNMAPS_FACTOR if pending >= MANY_UNMAPS else 1.0)
        return pending > 0 and not self.stacks.ended and now >= self._resolved_at + interval and self._has_read()

    def resolve_due_unmaps(self, live: list[LiveRange], began: float) -> None:
        """`live`: the kernel's table of this space, read at `began` or later, once for all spaces that are due."""
        self.resolve_unmaps(live)
        self._resolved_at = time.monotonic()
        self._resolve_interval = max(RESOLVE_INTERVAL_S, RESOLVE_INTERVAL_RATIO * (self._resolved_at - began))

    def resolve_unmaps(self, live: list[LiveRange]) -> list[LiveRange]:
        """Returns what the kernel keeps of its table of this space."""
        is_behind = not self._has_read()
        if not is_behind:
            self._read_until = self._programs.engine.written_until()
        return self.allocations.resolve_unmaps(live, is_behind=is_behind)

    def _has_read(self) -> bool:
        """Whether the events that precede the last reading of the table were handled."""
        return self._read_until is None or self._programs.engine.has_read(self._read_until)

    def _attach(self, event: RangeEvent) -> None:
        """shmat. Only /proc has the size of the segment."""
        size = None
        with contextlib.suppress(MemforensicsError):
            size = segment_at(self.process.read_text("maps"), event.start)
        if size:
            self.allocations.attach(event, size)
        else:
            self.unsized_segments += 1

    def _used_sites(self) -> Iterator[MmapSite]:
        """Without the first parts of stacks that were completed later."""
        return (site for site in self.allocations.sites if site.counts.allocated_count)
