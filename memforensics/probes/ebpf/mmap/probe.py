"""Outstanding mappings by hybrid stack: eBPF on the memory system calls, the ledger in the kernel, stacks learned.

`mmap.bpf.c` records each event. It sends what was cut or moved to `allocation_table.py`, and each new stack to
`space.py`, which at once reads what only the live process can tell.

What is outstanding is address space, by mmap, mremap, brk and shmat. mprotect changes none of it: a glibc arena is
outstanding as it was reserved, and that it grows shows in `resident_bytes`; so do madvise and process_madvise, which
give pages back and leave the mapping. Not followed: MREMAP_FIXED of a range with holes (Linux 6.17), MAP_FIXED over the
memory of another thread while that unmaps it; such things are found in /proc/PID/maps (`ebpf/reconcile.py`), counted
and repaired.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from memforensics.case.model import AllocationSite, Cohort, Cost, Releases, Sample, TraceSummary
from memforensics.errors import MemforensicsError, ProbeFailed, TargetError
from memforensics.probes.ebpf.loader.layout import EventType, RangeEvent
from memforensics.probes.ebpf.mmap.allocation_table import Counts, SiteRecord
from memforensics.probes.ebpf.mmap.cohorts import CounterReading, OutstandingBlock, Slots, cohorts
from memforensics.probes.ebpf.mmap.ledger import Span, union
from memforensics.probes.ebpf.mmap.programs import MmapPrograms
from memforensics.probes.ebpf.mmap.reconcile import Account, Corrected, heap_end, segment_at
from memforensics.probes.ebpf.mmap.residency import ResidentSummary, outstanding_blocks, summarize_resident
from memforensics.probes.ebpf.mmap.space import MmapSpace
from memforensics.probes.ebpf.trace_loop import CATCH_UP_S, LossRow, Totals, TreeTrace
from memforensics.probes.ebpf.traced_processes import Member
from memforensics.probes.heap.references import Block
from memforensics.target import Process
from memforensics.units import NS_PER_S

SYMBOLIZE_S = 0.3  # at most in one second of a trace: what is left comes later
RECONCILE_S = 10.0  # between two readings of /proc/PID/maps, and SPARING times what one takes
SPARING = 100.0
BEHIND = "fewer mappings a second, or fewer targets"  # events were waiting: the ledger was older than /proc


class SiteBlocks(NamedTuple):
    """The outstanding blocks of one site, and its cohorts so far."""

    site_id: int
    blocks: tuple[Block, ...]
    cohorts: tuple[Cohort, ...]


class MmapTrace(TreeTrace[MmapPrograms, MmapSpace]):
    """The probe. `open` takes one process or several; children of traced processes join by themselves.

    `files`: record file-backed mappings too (as sites of their own). `python`: look for Python frames.
    """

    name = "mmap-trace"

    def __init__(
        self, *, files: bool = False, python: bool = True, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        super().__init__(python=python, clock=clock)
        self._files = files
        self._accounts: dict[int, Account] = {}  # by the space's number
        self._resident: dict[int, ResidentSummary] = {}  # by PID, at the end
        self._untold: dict[SiteRecord, int] = {}  # what changed since it was told of last, and its PID
        self._slots: Slots | None = None
        self._releases: dict[
            int, list[CounterReading]
        ] = {}  # by PID: the counter of munmap at the ends of slots, and its last
        self._corrected: dict[int, Corrected | None] = {}  # by PID, at the end, after events were dropped
        self._not_compared: dict[str, int] = {}  # comparisons with /proc that failed, by what would have helped

    def outstanding(self, pid: int) -> list[Span]:
        """All addresses of a process that were mapped since the trace began and still are, rising and disjoint. Waits
        until all events that were told until now are handled."""
        while not self._take_in(CATCH_UP_S):
            pass
        space = self.members[pid].space
        live = space.resolve_unmaps(self.programs.live().get(space.number, []))
        return union([*((e.start, e.end) for e in live), *((p.start, p.end) for p in space.allocations.ledger)])

    def blocks(self, pid: int) -> list[SiteBlocks]:
        """The outstanding blocks of each site of a process, now; none after the end, or of a process that left."""
        if self._programs is None or pid not in self.members or self.members[pid].left_ns is not None:
            return []
        self._take_in(CATCH_UP_S)
        self._update_counts()
        space, now, slots = self.members[pid].space, self.clock(), self._slots
        found: dict[SiteRecord, tuple[list[Block], list[OutstandingBlock]]] = {}
        live = space.resolve_unmaps(self.programs.live().get(space.number, []))
        for record, spans, left in outstanding_blocks(space.allocations, live):
            blocks, lefts = found.setdefault(record, ([], []))
            blocks.append(Block(left.born_ns, tuple(spans)))
            lefts.append(left)
        return [
            SiteBlocks(record.number, tuple(blocks), record.cohorts(slots, now, lefts) if slots is not None else ())
            for record, (blocks, lefts) in found.items()
        ]

    # --- beginning

    def _load(self) -> MmapPrograms:
        return MmapPrograms(files=self._files, python=self.python)

    def _make_space(self, number: int, process: Process, numbers: "itertools.count[int]") -> MmapSpace:
        space = MmapSpace(number, process, self.programs, numbers)
        self._accounts[number] = Account(space, process)
        return space

    def _add_target(self, member: Member[MmapSpace]) -> bool:
        heap = heap_end(member.process.read_text("maps"))
        return self.programs.add_target(member.pid, member.space.number, heap)

    def _account_begins(self, member: Member[MmapSpace]) -> None:
        if self._began_ns and self._dropped:  # its first mappings may be among what was dropped
            return
        with self._comparing():
            self._accounts[member.space.number].begin()

    @contextlib.contextmanager
    def _comparing(self) -> Iterator[None]:
        """A comparison with /proc/PID/maps. A failed one is counted; a process that left has nothing to compare."""
        try:
            yield
        except TargetError:
            return
        except MemforensicsError as error:
            self._not_compared[error.enable] = self._not_compared.get(error.enable, 0) + 1

    # --- events

    def _told(self, space: MmapSpace, event: RangeEvent) -> None:
        if event.type is not EventType.ATTACH:
            space.allocations.handle(event)
            return
        with contextlib.suppress(MemforensicsError):
            size = segment_at(space.process.read_text("maps"), event.start)
            if size:
                space.allocations.attach(event, size)
                return
        self._lose("shared memory segments that were detached before their size was read")

    def _between_looks(self) -> None:
        began = time.monotonic()
        due = [member.space for member in self.members if member.space.unmaps_are_due(began)]
        live = self.programs.live() if due else {}
        for space in due:
            space.resolve_due_unmaps(live.get(space.number, []), began)

    def _release_all(self, space: MmapSpace) -> None:
        space.allocations.release_all()
        self._untold |= {record: space.pid for record in space.allocations.sites.values() if record.now.allocated_count}

    # --- looking

    def _counts(self) -> dict[int, list[tuple[int, Counts]]]:
        """The kernel's counters of each space."""
        counts: dict[int, list[tuple[int, Counts]]] = {}
        for number, site, value in self.programs.counts():
            counts.setdefault(number, []).append((site, value))
        return counts

    def _update_counts(self) -> None:
        counts = self._counts()
        for number, space in self.members.spaces.items():
            if not space.ended:
                space.allocations.update(counts.get(number, []))

    def _look(self, now: int) -> None:
        for member in self.members.alive:
            account = self._accounts[member.space.number]
            if now >= account.next_ns:
                if account.next_ns:
                    self._reconcile(member)
                took = self.clock() - now
                account.next_ns = now + max(int(RECONCILE_S * NS_PER_S), int(SPARING * took))
        self._end_slot(now)
        self.programs.sweep()

    def _end_slot(self, now: int) -> None:
        """Reads the counters of births and of munmap where a slot of time ends."""
        slots = self._slots = self._slots or Slots(self.began_ns)
        is_due = slots.due(now)
        if is_due:
            slots.close(now)
        for member in self.members.alive:
            count = self.programs.releases(member.pid)
            readings = self._releases.setdefault(member.pid, [])
            if count is not None:
                kept = slots.kept(readings) if len(readings) > 2 * len(slots.bounds) else readings
                self._releases[member.pid] = [*kept, CounterReading(now, 0, count)]
            if is_due:
                for record in member.space.allocations.sites.values():
                    record.end_slot(slots)

    def _reconcile(self, member: Member[MmapSpace]) -> None:
        with self._comparing():
            repaired = self._accounts[member.space.number].reconcile(self.programs, self._take_in)
            if repaired is None:
                self._not_compared[BEHIND] = self._not_compared.get(BEHIND, 0) + 1
                return
            self._lose("removals that were not seen (found in /proc/PID/maps, repaired)", repaired.gone)
            self._lose("mappings that were not seen (found in /proc/PID/maps, without a stack)", repaired.missing)

    def _news(self, now: int) -> Iterator[AllocationSite]:
        """Those that changed, most outstanding first: names of all of them may take longer than a look may."""
        for member in self.members.alive:
            for record in member.space.allocations.sites.values():
                if record.now.allocated_count and record.note(now, member.space.allocations.max_points):
                    self._untold[record] = member.pid
        until = time.monotonic() + SYMBOLIZE_S
        for record in sorted(self._untold, key=lambda record: -record.outstanding_bytes):
            if record.symbolized or time.monotonic() < until:
                yield record.site(self._untold.pop(record), now)

    def _saw_anything(self) -> bool:
        return any(space.allocations.sites for space in self.members.spaces.values())

    def _unseen_growth(self, began: Sample, last: Sample) -> int | None:
        return last.vm_size - began.vm_size if began.vm_size is not None and last.vm_size is not None else None

    def _blind(self, pid: int) -> ProbeFailed:
        return ProbeFailed(
            f"process {pid} maps memory, and its system calls are not seen",
            why="this /proc belongs to another PID namespace than the process does, or it uses io_uring or a "
            "32-bit system call table",
            enable="run memforensics on the host, or in a container with --pid=host",
        )

    # --- the end

    def _before_detaching(self) -> None:
        end = time.monotonic() + CATCH_UP_S
        if not self._dropped:
            for member in self.members.alive:
                if time.monotonic() < end:
                    self._reconcile(member)
                else:
                    self._not_compared[BEHIND] = self._not_compared.get(BEHIND, 0) + 1
        self.programs.set(exact=1)
        for member in self.members.alive:
            with self._comparing():
                self._accounts[member.space.number].read()

    def _last_look(self, ended_ns: int) -> None:
        if self._dropped:
            self._correct()
        whole = self.programs.live()
        for member in self.members.alive:
            space = member.space
            live = space.resolve_unmaps(whole.get(space.number, []))
            self._resident[member.pid] = summarize_resident(member.process, space.allocations, live)
            for record in space.allocations.sites.values():
                record.note(ended_ns, space.allocations.max_points)
            count = self.programs.releases(member.pid)
            if count is not None:
                self._releases.setdefault(member.pid, []).append(CounterReading(ended_ns, 0, count))

    def _correct(self) -> None:
        """After events were dropped: the sums against what stands in /proc/PID/maps."""
        whole = self.programs.live()
        for member in self.members.alive:
            self._accounts[member.space.number].hold(whole.get(member.space.number, []))
        whole, counts = self.programs.live(), self._counts()
        for member in self.members.alive:
            number = member.space.number
            with self._comparing():
                account = self._accounts[number]
                self._corrected[member.pid] = account.correct(counts.get(number, []), whole.get(number, []))
        self._update_counts()

    def _sites(self, member: Member[MmapSpace], ended_ns: int) -> Iterator[AllocationSite]:
        slots = self._slots or Slots(self.began_ns)
        return (site for space in member.spaces for site in space.sites(ended_ns, slots))

    def _summary(self, member: Member[MmapSpace], ended_ns: int, cost: Cost) -> TraceSummary:
        summary = super()._summary(member, ended_ns, cost)
        corrected = self._corrected.get(member.pid)
        if corrected is not None:
            summary = replace(summary, unknown_bytes=corrected.unknown_bytes)
        slots, readings = self._slots or Slots(self.began_ns), self._releases.get(member.pid, [])
        if not readings:
            return summary
        counted = cohorts(slots, ended_ns, readings, readings[-1], [])
        releases = tuple(
            Releases(from_ns=slot.born_from_ns, to_ns=slot.born_to_ns, count=slot.born_count) for slot in counted
        )
        return replace(summary, releases=releases)

    def _totals(self, member: Member[MmapSpace]) -> Totals:
        records = [record for space in member.spaces for record in space.allocations.sites.values()]
        now = [record for record in member.space.allocations.sites.values() if not record.file_backed]
        return Totals(
            events=sum(record.now.allocated_count + record.now.freed_count for record in records),
            outstanding_bytes=sum(record.outstanding_bytes for record in now),
            resident_bytes=self._resident.get(member.pid, ResidentSummary()).resident_bytes,
        )

    def _own_losses(self) -> Iterator[LossRow]:
        tables = [space.allocations for member in self.members for space in member.spaces]
        cut_short = sum(r.now.allocated_count for table in tables for r in table.sites.values() if not r.complete)
        yield "mappings whose stack could not be followed to its end", "a longer trace", cut_short
        stacks_skipped = sum(one.stacks_skipped for one in self._resident.values())
        yield (
            "stacks not told apart: too many different ones",
            "a shorter trace",
            sum(table.dropped_sites for table in tables),
        )
        dropped_ranges = sum(table.dropped_ranges for table in tables)
        yield "outstanding ranges left out of the sums: too many mappings were cut", "a shorter trace", dropped_ranges
        found = [one for one in self._corrected.values() if one is not None]
        sites, fewer = sum(one.sites for one in found), "fewer mappings a second, or a shorter trace"
        yield (
            f"bytes of {sites} sites corrected by /proc/PID/maps after events were dropped",
            fewer,
            sum(one.bytes for one in found),
        )
        unknown = sum(one.unknown_bytes or 0 for one in found)
        yield "bytes mapped by code that is not known: events were dropped", fewer, unknown
        checked = sum(one.unknown_bytes is not None for one in found)
        left = len(self.members) - checked if self._dropped else 0
        yield "processes whose sums could not be checked after events were dropped", fewer, left
        for enable, count in self._not_compared.items():
            yield "comparisons of the ledger with /proc/PID/maps that failed", enable, count
        yield self._why_skipped(), "a higher --overhead" if self.is_sampling_reduced else "", stacks_skipped

    def _why_skipped(self) -> str:
        of = "to keep --overhead" if self.is_sampling_reduced else "of busy sizes that came and went"
        return f"outstanding mappings without a stack: {of}, one of {self.sampled_one_in} was looked at"
