"""One address space whose page faults are traced."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from memforensics.case.model import AllocationSite, SitePoint, Stack
from memforensics.probes.ebpf.faults.pages import Touched, resident_by_site, spans
from memforensics.probes.ebpf.faults.programs import FaultCounts, FaultPrograms
from memforensics.probes.ebpf.loader.layout import NativePc, RangeEvent, StackEvent
from memforensics.probes.ebpf.present import present_runs
from memforensics.probes.ebpf.stacks.decoder import StackDecoder
from memforensics.probes.ebpf.stacks.sites import Site, SiteTable, Traffic
from memforensics.target import Process

NOTHING = FaultCounts(0, 0, 0, 0)


@dataclass(slots=True, eq=False)
class FaultSite(Site):
    """A site of faults. `resident_bytes` and `resident_touches`: what of it is still resident."""

    counts: FaultCounts = NOTHING
    resident_bytes: int = 0
    resident_touches: int = 0

    def note(self, began_ns: int, t_ns: int, max_points: int) -> None:
        """Adds a point to the timeline, which begins with nothing."""
        if not self.timeline:
            self.add_point(SitePoint(t_ns=began_ns, outstanding_bytes=0, outstanding_count=0))
        point = SitePoint(t_ns=t_ns, outstanding_bytes=self.resident_bytes, outstanding_count=self.resident_touches)
        self.add_point(point, max_points)

    def report(self, pid: int) -> AllocationSite:
        """Outstanding is what it touched and is still resident."""
        traffic = Traffic(
            outstanding_bytes=self.resident_bytes,
            outstanding_count=self.resident_touches,
            allocated_bytes=self.counts.bytes,
            allocated_count=self.counts.faults,
            freed_bytes=max(0, self.counts.bytes - self.resident_bytes),
            freed_count=max(0, self.counts.faults - self.resident_touches),
            first_ns=self.counts.first_ns,
            last_ns=self.counts.last_ns,
        )
        return self.allocation_site(pid, traffic, self.resident_bytes)


class FaultSpace:
    """Made while the process lives."""

    def __init__(
        self, number: int, process: Process, programs: FaultPrograms, site_numbers: "itertools.count[int]"
    ) -> None:
        self.number, self.process = number, process
        self.stacks = StackDecoder(number, process, programs)
        self.sites: SiteTable[FaultSite] = SiteTable(FaultSite, site_numbers)
        self._weights: dict[int, int] = {}  # of the kernel's sites

    @property
    def has_sites(self) -> bool:
        return bool(self.sites)

    @property
    def used_sites(self) -> list[FaultSite]:
        """Without the first parts of stacks that were completed later."""
        return [site for site in self.sites if site.counts.faults]

    def add_stack(self, event: StackEvent) -> None:
        decoded = self.stacks.decode(event)
        leaf = _leaf(decoded.stack, decoded.native)
        key = event.shared, event.file_backed, decoded.complete, leaf, decoded.native[1:], decoded.python
        site = self.sites.add(event, key, decoded)
        if site is None or not decoded.stack.frames:
            return
        if site.decoded.stack.frames[0].line != decoded.stack.frames[0].line:
            site.decoded.drop_leaf_line()

    def handle(self, event: RangeEvent) -> None:
        """The programs send no other events than stacks, code and processes."""

    def update_counts(self, counts: Iterable[tuple[int, FaultCounts]]) -> None:
        """Takes the kernel's counters."""
        for site in self.sites:
            site.counts = NOTHING
        for number, more in counts:
            self._weights[number] = more.weight
            counted = self.sites.get(number)
            if counted is not None:
                before = counted.counts
                counted.counts = FaultCounts(
                    before.bytes + more.bytes,
                    before.faults + more.faults,
                    min(before.first_ns or more.first_ns, more.first_ns),
                    max(before.last_ns, more.last_ns),
                )

    def update_resident(self, touched: Touched) -> Touched:
        """Counts what is still resident; returns what is not. TargetGone, PermissionNeeded, ProbeFailed."""
        resident, gone = resident_by_site(touched, present_runs(self.process, spans(touched)))
        self.release_all()
        for number, found in resident.items():
            site = self.sites.get(number)
            if site is not None:
                weight = self._weights.get(number, 1)
                site.resident_bytes += found.bytes * weight
                site.resident_touches += found.touches * weight
        return gone

    def release_all(self) -> None:
        for site in self.sites:
            site.resident_bytes = site.resident_touches = 0

    def reports(self, ended_ns: int) -> Iterator[AllocationSite]:
        return (site.report(self.process.pid) for site in self.used_sites)

    def end(self) -> None:
        self.stacks.end()


def _leaf(stack: Stack, native: Sequence[NativePc]) -> object:
    """What tells sites apart at the leaf, where many instructions touch memory: the line. In a function of another
    library than its caller's (memcpy): only the function."""
    if not native or not stack.frames or stack.frames[0].function is None:
        return native[:1]
    leaf = stack.frames[0]
    called = stack.frames[1 + sum(1 for _ in takewhile(lambda f: f.inlined, stack.frames)) :]
    caller = next((f for f in called[:1] if f.kind == "native"), None)
    within = caller is None or caller.module == leaf.module
    return leaf.module, leaf.function, leaf.line if within else None
