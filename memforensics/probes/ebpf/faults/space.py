"""One traced address space: who touched what in it, and what of that is still there."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

from memforensics.case.model import AllocationSite, SitePoint, Stack
from memforensics.probes.ebpf.faults.pages import Touched, spans, still_there
from memforensics.probes.ebpf.faults.programs import FaultPrograms, SiteCounts
from memforensics.probes.ebpf.loader.layout import NativePc, StackEvent
from memforensics.probes.ebpf.mmap.allocation_table import ALL_POINTS, MAX_KERNEL_SITES, MAX_POINTS
from memforensics.probes.ebpf.stacks.space import UnwoundSpace
from memforensics.target import Process
from memforensics.target.pagemap import Pagemap

KIND = "fault"
UNSCANNABLE_LIMIT = 8 << 30  # of address space, on kernels without PAGEMAP_SCAN
NOTHING = SiteCounts(0, 0, 0, 0)


@dataclass(slots=True)
class FaultSite:
    """One stack and kind of page. Several of the kernel's sites are one here: those completed from a miss."""

    number: int
    shared: bool
    file_backed: bool
    stack: Stack
    touched: SiteCounts = NOTHING
    resident_bytes: int = 0
    resident_touches: int = 0
    points: list[SitePoint] = field(default_factory=list)

    def note(self, began_ns: int, t_ns: int, most: int = MAX_POINTS) -> None:
        if not self.points:
            self.points.append(SitePoint(t_ns=began_ns, outstanding_bytes=0, outstanding_count=0))
        self.points.append(
            SitePoint(t_ns=t_ns, outstanding_bytes=self.resident_bytes, outstanding_count=self.resident_touches)
        )
        if len(self.points) > most:
            del self.points[1:-1:2]

    def site(self, pid: int) -> AllocationSite:
        """Outstanding is what it touched and is still resident."""
        return AllocationSite(
            pid=pid,
            site_id=self.number,
            kind=KIND,
            stack=self.stack,
            outstanding_bytes=self.resident_bytes,
            outstanding_count=self.resident_touches,
            allocated_bytes=self.touched.bytes,
            allocated_count=self.touched.faults,
            freed_bytes=max(0, self.touched.bytes - self.resident_bytes),
            freed_count=max(0, self.touched.faults - self.resident_touches),
            first_ns=self.touched.first_ns,
            last_ns=self.touched.last_ns,
            resident_bytes=self.resident_bytes,
            shared=self.shared,
            file_backed=self.file_backed,
            timeline=tuple(self.points),
        )


class FaultSpace(UnwoundSpace):
    """With who touched what in it, and what of that is still there."""

    def __init__(self, number: int, process: Process, programs: FaultPrograms, numbers: "itertools.count[int]") -> None:
        super().__init__(number, process, programs)
        self.sites: dict[object, FaultSite] = {}
        self._by_kernel: dict[int, FaultSite] = {}
        self._weights: dict[int, int] = {}  # of the kernel's sites
        self.dropped_sites = 0  # stacks, of too many
        self._numbers = numbers

    def stack(self, event: StackEvent) -> None:
        """A stack met for the first time: learned from, symbolized and noted."""
        if len(self._by_kernel) >= MAX_KERNEL_SITES and event.site not in self._by_kernel:
            self.dropped_sites += 1
            return
        native, complete = self.learned(event)
        frames = [(pc, self._symbolizer.frame_at(pc.pc, pc.guessed, is_return=pc.is_return)) for pc in native]
        spliced = self.python.spliced(frames, event.python, event.python_flags, complete)
        stack = self._symbolizer.expanded(spliced)
        key = (event.shared, event.file_backed, complete, _leaf(stack, native), native[1:], event.python)
        site = self.sites.get(key)
        if site is None:
            site = self.sites[key] = FaultSite(next(self._numbers), event.shared, event.file_backed, stack)
        elif site.stack.frames and site.stack.frames[0].line != stack.frames[0].line:
            leaf = replace(site.stack.frames[0], line=None, file=None)
            site.stack = replace(site.stack, frames=(leaf, *site.stack.frames[1:]))
        before = self._by_kernel.get(event.site)
        if before is None or not before.stack.complete:  # a copy of the stack may come after its first part
            self._by_kernel[event.site] = site

    @property
    def max_points(self) -> int:
        """That one site's timeline may have."""
        return max(16, min(MAX_POINTS, ALL_POINTS // max(1, len(self.sites))))

    def update(self, counts: Iterable[tuple[int, SiteCounts]]) -> None:
        """Takes the kernel's counters."""
        for site in self.sites.values():
            site.touched = NOTHING
        for number, more in counts:
            self._weights[number] = more.weight
            found = self._by_kernel.get(number)
            if found is not None:
                so_far = found.touched
                found.touched = SiteCounts(
                    so_far.bytes + more.bytes,
                    so_far.faults + more.faults,
                    min(so_far.first_ns or more.first_ns, more.first_ns),
                    max(so_far.last_ns, more.last_ns),
                )

    def look(self, touched: Touched) -> Touched:
        """Counts what is still resident; what is not. TargetGone, PermissionNeeded, ProbeFailed."""
        there, gone = still_there(touched, _present(self.process, touched))
        for site in self.sites.values():
            site.resident_bytes = site.resident_touches = 0
        for number, account in there.items():
            site_of = self._by_kernel.get(number)
            if site_of is not None:
                weight = self._weights.get(number, 1)
                site_of.resident_bytes += account.bytes * weight
                site_of.resident_touches += account.touches * weight
        return gone

    def gone(self) -> None:
        """Another program runs in the process: nothing of this space is there any more."""
        for site in self.sites.values():
            site.resident_bytes = site.resident_touches = 0


def _leaf(stack: Stack, native: Sequence[NativePc]) -> object:
    """What tells sites apart at the leaf, where many instructions touch: the line, and of a function of another library
    than its caller's (memcpy) nothing more than the function."""
    if not native or not stack.frames or stack.frames[0].function is None:
        return native[:1]
    leaf = stack.frames[0]
    called = stack.frames[1 + sum(1 for _ in takewhile(lambda f: f.inlined, stack.frames)) :]
    caller = next((f for f in called[:1] if f.kind == "native"), None)
    within = caller is None or caller.module == leaf.module
    return leaf.module, leaf.function, leaf.line if within else None


def _present(process: Process, touched: Touched) -> list[tuple[int, int]]:
    """What is resident where something was touched, the zero page left out."""
    with Pagemap(process.pid, process.proc) as pagemap:
        if pagemap.can_scan():
            return [(low, high) for span in spans(touched) for low, high, _ in pagemap.scan(*span)]
        runs: list[tuple[int, int]] = []
        for span in spans(touched):
            runs += pagemap.present(*span, limit_bytes=UNSCANNABLE_LIMIT)
        return runs
