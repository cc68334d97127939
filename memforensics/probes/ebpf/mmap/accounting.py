"""Outstanding mappings by stack: the accounting of a trace of the memory system calls."""

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from memforensics.case.model import AllocationSite, Cohort, Releases
from memforensics.errors import MemforensicsError, ProbeFailed, TargetError
from memforensics.probes.ebpf.accounting import Totals
from memforensics.probes.ebpf.loader.layout import TARGET
from memforensics.probes.ebpf.loader.program_set import LossRow, Sizes
from memforensics.probes.ebpf.mmap.allocation_table import MmapSite
from memforensics.probes.ebpf.mmap.cohorts import CounterReading, OutstandingBlock, Slots, cohorts
from memforensics.probes.ebpf.mmap.ledger import Span, union
from memforensics.probes.ebpf.mmap.proc_maps import heap_end
from memforensics.probes.ebpf.mmap.programs import MmapPrograms
from memforensics.probes.ebpf.mmap.reconcile import Correction, Reconciler
from memforensics.probes.ebpf.mmap.residency import ResidentSummary, outstanding_blocks, summarize_resident
from memforensics.probes.ebpf.mmap.space import MmapSpace
from memforensics.probes.ebpf.trace_loop import BLIND_GROWTH, CATCH_UP_S, TraceLoop
from memforensics.probes.ebpf.traced_processes import TracedProcess
from memforensics.probes.heap.references import Block
from memforensics.target import Process
from memforensics.units import NS_PER_S

NAMES_S = 0.3  # the most time that one sample spends on names; the next one goes on
RECONCILE_INTERVAL_S = 10.0  # between two readings of /proc/PID/maps ...
RECONCILE_INTERVAL_RATIO = 100.0  # ... and at least this many times what one takes
BEHIND = "fewer mappings a second, or fewer targets"  # events were waiting: the ledger was older than /proc
FEWER = "fewer mappings a second, or a shorter trace"


class SiteBlocks(NamedTuple):
    """The outstanding blocks of one site, and its cohorts so far."""

    site_id: int
    blocks: tuple[Block, ...]
    cohorts: tuple[Cohort, ...]


class MmapAccounting:
    """`files`: record file-backed mappings too, as sites of their own. `python`: walk Python frames. `sizes`,
    `max_live`: the most that the kernel keeps."""

    name = "mmap-trace"

    def __init__(
        self, *, files: bool = False, python: bool = True, sizes: Sizes | None = None, max_live: int | None = None
    ) -> None:
        self._files, self._python, self._sizes, self._max_live = files, python, sizes, max_live
        self._slots = Slots(0)
        self._reconcilers: dict[int, Reconciler] = {}  # by the space's number
        self._resident: dict[int, ResidentSummary] = {}  # by PID, at the end
        self._releases: dict[int, list[CounterReading]] = {}  # by PID: the counter of munmap at the ends of slots
        self._corrections: dict[int, Correction | None] = {}  # by PID, at the end, after events were dropped
        self._failed_comparisons: Counter[str] = Counter()  # with /proc, by what would have helped

    # --- what callers ask of it while the trace runs

    def outstanding(self, pid: int) -> list[Span]:
        """All addresses of a process that were mapped since the trace began and still are, rising and disjoint. Waits
        until all events until now are handled."""
        while not self._trace.handle_events(CATCH_UP_S):
            pass
        space = self._trace.processes[pid].space
        live = self._unresolved(space)
        return union([*((e.start, e.end) for e in live), *((p.start, p.end) for p in space.allocations.ledger)])

    def blocks(self, pid: int) -> list[SiteBlocks]:
        """The outstanding blocks of each site of a process; none after the trace, or of a process that exited."""
        trace = self._trace
        if not trace.is_open or pid not in trace.processes or trace.processes[pid].exited_ns is not None:
            return []
        trace.handle_events(CATCH_UP_S)
        trace.read_counts()
        space, now = trace.processes[pid].space, trace.clock()
        found: dict[MmapSite, tuple[list[Block], list[OutstandingBlock]]] = {}
        for site, spans, block in outstanding_blocks(space.allocations, self._unresolved(space)):
            blocks, outstanding = found.setdefault(site, ([], []))
            blocks.append(Block(block.born_ns, tuple(spans)))
            outstanding.append(block)
        return [
            SiteBlocks(site.number, tuple(blocks), site.cohorts(self._slots, now, outstanding))
            for site, (blocks, outstanding) in found.items()
        ]

    # --- the trace

    def unsupported(self) -> str | None:
        return None

    def load(self, trace: TraceLoop[MmapSpace, Any], *, bounded: bool) -> MmapPrograms:
        self._trace = trace
        self._programs = MmapPrograms(
            files=self._files, python=self._python, sizes=self._sizes, max_live=self._max_live
        )
        return self._programs

    def open_space(self, number: int, process: Process, site_numbers: "itertools.count[int]") -> MmapSpace:
        space = MmapSpace(number, process, self._programs, site_numbers, self._slots)
        self._reconcilers[number] = Reconciler(space)
        return space

    def target(self, traced: TracedProcess[MmapSpace]) -> bytes:
        return TARGET.pack(traced.space.number, heap_end(traced.process.read_text("maps")), 0, 0, 0, 0)

    def start(self, traced: TracedProcess[MmapSpace]) -> None:
        if self._trace.began_ns and self._trace.dropped:  # events of its first mappings may be among the dropped
            return
        with self._comparing():
            self._reconcilers[traced.space.number].start()

    def poll(self) -> None:
        """Resolves the pending unmaps of the spaces that are due."""
        began = time.monotonic()
        due = [traced.space for traced in self._trace.processes if traced.space.unmaps_are_due(began)]
        live = self._programs.live() if due else {}
        for space in due:
            space.resolve_due_unmaps(live.get(space.number, []), began)

    def sample(self, now: int) -> Iterator[AllocationSite]:
        for traced in self._trace.processes.alive:
            self._reconcile_when_due(traced, now)
        self._end_slot(now)
        self._programs.sweep()
        for traced in self._trace.processes.alive:
            traced.space.note_changes(now)
        return self._changed_sites(now)

    def _changed_sites(self, now: int) -> Iterator[AllocationSite]:
        """The largest first: to find the names of all may take longer than a sample may."""
        changed = [(site, space) for space in self._trace.processes.spaces.values() for site in space.changed]
        end = time.monotonic() + NAMES_S
        for site, space in sorted(changed, key=lambda one: -one[0].outstanding_bytes):
            if site.decoded.is_named or time.monotonic() < end:
                yield space.report(site, now)

    def _end_slot(self, now: int) -> None:
        """Reads the counter of munmap, and the counters of births where a slot of time ends."""
        slots = self._slots
        slots.began_ns = self._trace.began_ns
        is_due = slots.due(now)
        if is_due:
            slots.close(now)
        for traced in self._trace.processes.alive:
            count = self._programs.releases(traced.pid)
            readings = self._releases.setdefault(traced.pid, [])
            if count is not None:
                kept = slots.kept(readings) if len(readings) > 2 * len(slots.bounds) else readings
                self._releases[traced.pid] = [*kept, CounterReading(now, 0, count)]
            if is_due:
                for site in traced.space.allocations.sites:
                    site.end_slot(slots)

    def blind(self, traced: TracedProcess[MmapSpace]) -> ProbeFailed | None:
        first, last = traced.first, traced.last
        if first is None or last is None or first.vm_size is None or last.vm_size is None:
            return None
        if last.vm_size - first.vm_size < BLIND_GROWTH:
            return None
        return ProbeFailed(
            f"process {traced.pid} maps memory, but its system calls are not seen",
            why="this /proc belongs to another PID namespace than the process does, or it uses io_uring or a "
            "32-bit system call table",
            enable="run memforensics on the host, or in a container with --pid=host",
        )

    # --- the ledger and /proc

    @contextlib.contextmanager
    def _comparing(self) -> Iterator[None]:
        """A comparison with /proc/PID/maps. A failure is counted; a process that exited has nothing to compare."""
        try:
            yield
        except TargetError:
            return
        except MemforensicsError as error:
            self._failed_comparisons[error.enable] += 1

    def _reconcile_when_due(self, traced: TracedProcess[MmapSpace], now: int) -> None:
        reconciler = self._reconcilers[traced.space.number]
        if now < reconciler.next_ns:
            return
        if reconciler.next_ns:
            self._reconcile(traced)
        took = self._trace.clock() - now
        reconciler.next_ns = now + max(int(RECONCILE_INTERVAL_S * NS_PER_S), int(RECONCILE_INTERVAL_RATIO * took))

    def _reconcile(self, traced: TracedProcess[MmapSpace]) -> None:
        with self._comparing():
            repairs = self._reconcilers[traced.space.number].reconcile(self._programs, self._trace.handle_events)
            if repairs is None:
                self._failed_comparisons[BEHIND] += 1
                return
            count_loss = self._trace.count_loss
            count_loss("removals that were not seen (found in /proc/PID/maps, repaired)", repairs.gone)
            count_loss("mappings that were not seen (found in /proc/PID/maps, without a stack)", repairs.missing)

    def _unresolved(self, space: MmapSpace) -> list[Any]:
        """The kernel's whole mappings of a space, after pending unmaps were resolved."""
        return space.resolve_unmaps(self._programs.live().get(space.number, []))

    # --- the end

    def before_detach(self) -> None:
        end = time.monotonic() + CATCH_UP_S
        if not self._trace.dropped:
            for traced in self._trace.processes.alive:
                if time.monotonic() < end:
                    self._reconcile(traced)
                else:
                    self._failed_comparisons[BEHIND] += 1
        self._programs.update_settings(exact=1)
        for traced in self._trace.processes.alive:
            with self._comparing():
                self._reconcilers[traced.space.number].note_mapped()

    def finish(self, ended_ns: int) -> None:
        self._slots.began_ns = self._trace.began_ns
        if self._trace.dropped:
            self._correct()
        whole = self._programs.live()
        for traced in self._trace.processes.alive:
            space = traced.space
            live = space.resolve_unmaps(whole.get(space.number, []))
            self._resident[traced.pid] = summarize_resident(traced.process, space.allocations, live)
            for site in space.allocations.sites:
                site.note(ended_ns, space.allocations.sites.max_points)
            count = self._programs.releases(traced.pid)
            if count is not None:
                self._releases.setdefault(traced.pid, []).append(CounterReading(ended_ns, 0, count))

    def _correct(self) -> None:
        """After events were dropped: makes the sums agree with /proc/PID/maps."""
        alive = [(traced.pid, traced.space.number) for traced in self._trace.processes.alive]
        live = self._programs.live()
        for _, number in alive:
            self._reconcilers[number].check_ranges(live.get(number, []))
        live, counts = self._programs.live(), self._programs.counts()
        for pid, number in alive:
            with self._comparing():
                correction = self._reconcilers[number].correct(counts.get(number, []), live.get(number, []))
                self._corrections[pid] = correction
        self._trace.read_counts()

    def totals(self, traced: TracedProcess[MmapSpace], ended_ns: int) -> Totals:
        now = [site for site in traced.space.allocations.sites if not site.file_backed]
        every = [site.counts for space in traced.spaces for site in space.allocations.sites]
        correction = self._corrections.get(traced.pid)
        return Totals(
            events=sum(counts.allocated_count + counts.freed_count for counts in every),
            outstanding_bytes=sum(site.outstanding_bytes for site in now),
            resident_bytes=self._resident.get(traced.pid, ResidentSummary()).resident_bytes,
            unknown_bytes=correction.unknown_bytes if correction is not None else None,
            releases=self._releases_by_slot(traced.pid, ended_ns),
        )

    def _releases_by_slot(self, pid: int, ended_ns: int) -> tuple[Releases, ...]:
        readings = self._releases.get(pid, [])
        if not readings:
            return ()
        slots = cohorts(self._slots, ended_ns, readings, readings[-1], [])
        return tuple(
            Releases(from_ns=slot.born_from_ns, to_ns=slot.born_to_ns, count=slot.born_count) for slot in slots
        )

    def losses(self) -> Iterator[LossRow]:
        spaces = [space for traced in self._trace.processes for space in traced.spaces]
        tables = [space.allocations for space in spaces]
        incomplete = sum(s.counts.allocated_count for t in tables for s in t.sites if not s.decoded.complete)
        yield "mappings whose stack could not be followed to its end", "a longer trace", incomplete
        dropped_sites = sum(table.sites.dropped for table in tables)
        yield "stacks dropped: the table of stacks is full", "a shorter trace", dropped_sites
        dropped_ranges = sum(table.dropped_ranges for table in tables)
        yield "outstanding ranges missing from the sums: too many mappings were cut", "a shorter trace", dropped_ranges
        unsized = sum(space.unsized_segments for space in spaces)
        yield "shared memory segments detached before their size was read", "", unsized
        corrections = [one for one in self._corrections.values() if one is not None]
        yield (
            f"bytes of {sum(one.sites for one in corrections)} sites corrected by /proc/PID/maps after events were "
            "dropped",
            FEWER,
            sum(one.bytes for one in corrections),
        )
        unknown = sum(one.unknown_bytes or 0 for one in corrections)
        yield "bytes mapped by unknown code: events were dropped", FEWER, unknown
        checked = sum(one.unknown_bytes is not None for one in corrections)
        unchecked = len(self._trace.processes) - checked if self._trace.dropped else 0
        yield "processes whose sums could not be checked after events were dropped", FEWER, unchecked
        for enable, count in self._failed_comparisons.items():
            yield "comparisons of the ledger with /proc/PID/maps that failed", enable, count
        yield self._skipped_loss()

    def _skipped_loss(self) -> LossRow:
        skipped = sum(one.stacks_skipped for one in self._resident.values())
        is_reduced, period = self._trace.meter.governor.is_reduced, self._trace.meter.sample_period
        why = "to keep --overhead" if is_reduced else "of busy sizes that came and went"
        reduce = "a higher --overhead" if is_reduced else ""
        return f"outstanding mappings without a stack: {why}, 1 of {period} was sampled", reduce, skipped
