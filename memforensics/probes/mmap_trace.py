"""Outstanding mappings by hybrid stack: eBPF on the memory system calls, the ledger in the kernel, stacks learned.

The way of an event: `ebpf/mmap.bpf.c` books it; what was cut or moved is told to `ebpf/book.py`; a stack that is met
for the first time comes to `ebpf/space.py`, where what only the living process tells is read at once.

What is outstanding is address space, by mmap, mremap, brk and shmat. mprotect changes none of it: a glibc arena is
outstanding as it was reserved, and that it grows shows in `resident_bytes`; so do madvise and process_madvise, which
give pages back and leave the mapping. Not followed: MREMAP_FIXED of a range with holes (Linux 6.17), MAP_FIXED over the
memory of another thread while that unmaps it; such things are found in /proc/PID/maps (`ebpf/reconcile.py`), counted
and repaired.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from memforensics.case.model import Cost, Loss, Sample, TraceSummary
from memforensics.errors import MemforensicsError, PermissionNeeded, ProbeFailed, TargetError, ToolMissing
from memforensics.probes.base import Availability, Budget, Evidence
from memforensics.probes.ebpf.book import Counts, SiteRecord
from memforensics.probes.ebpf.engine import RunStats, import_bcc, tracefs
from memforensics.probes.ebpf.layout import Ended, EventType, RangeEvent, StackEvent
from memforensics.probes.ebpf.ledger import Span, union
from memforensics.probes.ebpf.programs import RARITY, MmapPrograms
from memforensics.probes.ebpf.reconcile import Account, heap_end, segment_at
from memforensics.probes.ebpf.residency import resident_by_site
from memforensics.probes.ebpf.space import TracedSpace
from memforensics.target import Process, open_process
from memforensics.target.tree import descendants
from memforensics.units import MIB, NS_PER_S

UNWALKED = f"outstanding mappings without a stack: of busy sizes that came and went, one of {RARITY} was looked at"
UNWALKED_SHARE = 0.01  # of what is outstanding, below which that is no loss
SYMBOLIZE_S = 0.3  # at most in one second of a trace: what is left comes later
RECONCILE_S = 10.0  # between two readings of /proc/PID/maps, and SPARING times what one takes
SPARING = 100.0
POINT_NS = NS_PER_S  # between two points of a timeline
WARM_UP_S = 1.5  # at most: stacks are learned before anything is booked
WARM_UP_QUIET_S = 0.2  # ... and until no stack was unknown for this long
SMALLEST_GROWTH = 1 * MIB  # of RSS, below which a coverage would mean nothing
BLIND_GROWTH = 8 * MIB  # of VmSize without a single event
_FIRST_SPACE = 1 << 63  # numbers of address spaces that user space gives; the kernel's own are below


@dataclass(slots=True)
class _Member:
    """One process of the trace. `process` was opened by us: the caller may close his."""

    process: Process
    space: TracedSpace
    began_ns: int
    began: Sample | None
    last: Sample | None = None
    left_ns: int | None = None
    unwalked_outstanding: int = 0
    resident_bytes: int | None = None  # of all that is outstanding, at the end; files apart
    former: list[TracedSpace] = field(default_factory=list)  # before an exec
    numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    account: "Account" = field(init=False)

    def __post_init__(self) -> None:
        self.account = Account(self.space, self.process)

    @property
    def spaces(self) -> list[TracedSpace]:
        return [*self.former, self.space]


class MmapTrace:
    """The probe. `open` takes one process or several; children of traced processes join by themselves.

    `files`: book file-backed mappings too (as sites of their own). `python`: look for Python frames.
    """

    name = "mmap-trace"

    def __init__(
        self, *, files: bool = False, python: bool = True, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._files, self._python, self._clock = files, python, clock
        self._programs: MmapPrograms | None = None
        self._members: dict[int, _Member] = {}
        self._spaces: dict[int, TracedSpace] = {}
        self._next_point_ns = 0
        self._losses: dict[str, int] = {}
        self._stats_before = RunStats(0, 0, 0)
        self._cpu_before = 0.0
        self._last: list[Evidence] = []

    def availability(self, target: Process) -> Availability:
        try:
            tracefs()
            import_bcc()
        except (ToolMissing, PermissionNeeded) as error:
            return Availability("unavailable", str(error), error.enable)
        return Availability("ok")

    def open(self, target: Process | Sequence[Process], budget: Budget) -> None:
        """Arms the programs and learns the stacks that occur (up to 1.5 s, less where it is quiet); then booking
        begins. ToolMissing, PermissionNeeded, ProbeFailed; TargetGone when a process left meanwhile."""
        targets = [target] if isinstance(target, Process) else list(target)
        self._cpu_before = time.process_time()
        self._programs = MmapPrograms(files=self._files, python=self._python)
        try:
            for process in targets:
                self._join(process.pid)
            self._warm_up(min(WARM_UP_S, budget.seconds / 4))
            self._begin()
        except BaseException:
            self._release()
            raise

    def poll(self) -> Iterator[Evidence]:
        """Takes in what the kernel told (call it a few times a second); about once a second, the sites whose
        outstanding memory changed."""
        if self._programs is None:
            return
        self._take_in()
        for member in self._members.values():
            member.space.settle()
        self._programs.engine.pace_stats()
        now = self._clock()
        if now < self._next_point_ns:
            return
        self._next_point_ns = now + POINT_NS
        self._update_counts()
        self._look_at_members(now)
        self._reconcile_sometimes(now)
        self._programs.sweep()
        self._check_that_we_see()
        symbolize_until = time.monotonic() + SYMBOLIZE_S
        for member in self._members.values():
            for record in member.space.book.sites.values():
                if member.left_ns is not None or not record.now.allocated_count or not record.note(now):
                    continue
                if record.symbolized or time.monotonic() < symbolize_until:
                    yield record.site(member.process.pid, now)

    def close(self) -> Iterable[Evidence]:
        """The final sites with their resident bytes, a summary a process, losses, and the cost."""
        if self._programs is None:
            return self._last
        try:
            self._last = list(self._conclude(self._programs))
        finally:
            self._release()
        return self._last

    # --- beginning

    def _join(self, pid: int) -> None:
        """Traces a process from now on."""
        assert self._programs is not None
        member = self._open_member(_FIRST_SPACE | pid, pid)
        heap = heap_end(member.process.read_text("maps"))
        if not self._programs.add_target(pid, member.space.number, heap):
            raise ProbeFailed("too many processes to trace", enable="trace a smaller tree")

    def _open_member(self, number: int, pid: int) -> _Member:
        assert self._programs is not None
        process = open_process(pid)
        try:
            numbers = itertools.count(1)
            space = TracedSpace(number, process, self._programs, numbers)
            member = _Member(process, space, self._clock(), process.sample(clock=self._clock), numbers=numbers)
        except BaseException:
            process.close()
            raise
        self._spaces[number] = space
        self._members[pid] = member
        return member

    def _warm_up(self, seconds: float) -> None:
        """Learns the stacks that are in use, before the account begins."""
        assert self._programs is not None
        end = time.monotonic() + seconds
        quiet_since = time.monotonic()
        while time.monotonic() < end and time.monotonic() - quiet_since < WARM_UP_QUIET_S:
            for event in self._programs.events(0.005):
                if self._handle(event):
                    quiet_since = time.monotonic()

    def _begin(self) -> None:
        assert self._programs is not None
        self._stats_before = self._programs.run_stats() or RunStats(0, 0, 0)
        for member in self._members.values():
            with contextlib.suppress(TargetError):
                member.began = member.process.sample(clock=self._clock)
            member.began_ns = self._clock()
        self._programs.begin()
        for member in self._members.values():
            with contextlib.suppress(TargetError):
                member.account.begin()
        self._next_point_ns = self._clock()

    # --- events

    def _take_in(self) -> None:
        assert self._programs is not None
        for event in self._programs.events():
            self._handle(event)

    def _handle(self, event: StackEvent | RangeEvent) -> bool:
        """Whether it was a stack that was not known to its end."""
        if isinstance(event, StackEvent):
            space = self._space(event.space)
            if space is None:
                self._lose("stacks of processes that left before they could be looked at")
            else:
                space.stack(event)
            return event.ended is Ended.MISS
        if event.type is EventType.EXEC:
            self._execed(event)
        elif event.type not in (EventType.FORK, EventType.EXIT):
            space = self._space(event.space)
            if space is None:
                return False
            if event.type is EventType.CODE:
                space.code_mapped(event.start, event.end)
            elif event.type is EventType.ATTACH:
                self._attached(space, event)
            else:
                space.book.handle(event)
        return False

    def _attached(self, space: TracedSpace, event: RangeEvent) -> None:
        with contextlib.suppress(MemforensicsError):
            size = segment_at(space.process.read_text("maps"), event.start)
            if size:
                space.book.attach(event, size)
                return
        self._lose("shared memory segments that were detached before their size was read")

    def _space(self, number: int) -> TracedSpace | None:
        """The address space of an event. A child is met here for the first time."""
        known = self._spaces.get(number)
        pid = number & 0xFFFFFFFF
        if known is not None or number >= _FIRST_SPACE or pid in self._members:
            return known
        try:
            member = self._open_member(number, pid)
        except MemforensicsError:
            return None
        member.began = None  # it grew before we looked
        with contextlib.suppress(MemforensicsError):
            member.account.begin()
        return member.space

    def _execed(self, event: RangeEvent) -> None:
        """Another program runs in the process: nothing of its account stands any more."""
        member = self._members.get(event.space & 0xFFFFFFFF)
        if member is None:
            return
        assert self._programs is not None
        self._update_counts()
        member.space.end()
        member.space.book.all_gone()
        try:
            process = open_process(member.process.pid)
            space = TracedSpace(event.start, process, self._programs, member.numbers)
        except MemforensicsError:
            return  # it left: noticed at the next look
        member.former.append(member.space)
        member.process.close()
        member.process, member.space = process, space
        member.account = Account(space, process)
        with contextlib.suppress(MemforensicsError):
            member.account.begin()
        with contextlib.suppress(MemforensicsError):
            member.began = process.sample(clock=self._clock)
        self._spaces[space.number] = space

    def _look_at_members(self, now: int) -> None:
        """Notes who left and, where the kernel's events do not name them, who came."""
        assert self._programs is not None
        for pid, member in self._members.items():
            if member.left_ns is not None:
                continue
            with contextlib.suppress(MemforensicsError):
                sample = member.process.sample(clock=self._clock)
                if member.process.left_how() is None:
                    member.last = sample
                    continue
            member.left_ns = now
            member.space.end()
            self._programs.remove_target(pid)
        if self._programs.namespaced:
            for pid in [pid for root in list(self._members) for pid in descendants(root)]:
                if pid not in self._members:
                    with contextlib.suppress(MemforensicsError):
                        self._join(pid)

    def _check_that_we_see(self) -> None:
        """No events while /proc grows is a failed probe, not a quiet target."""
        self._take_in()  # what was told before its growth was read
        if any(space.book.sites for space in self._spaces.values()):
            return
        for member in self._members.values():
            began, last = member.began, member.last
            if began is None or last is None or began.vm_size is None or last.vm_size is None:
                continue
            if member.left_ns is None and last.vm_size - began.vm_size >= BLIND_GROWTH:
                raise ProbeFailed(
                    f"process {member.process.pid} maps memory, and its system calls are not seen",
                    why="this /proc belongs to another PID namespace than the process does, or it uses io_uring or a "
                    "32-bit system call table",
                    enable="run memforensics on the host, or in a container with --pid=host",
                )

    # --- accounts

    def _update_counts(self) -> None:
        assert self._programs is not None
        counts: dict[int, list[tuple[int, Counts]]] = {}
        for number, site, value in self._programs.counts():
            counts.setdefault(number, []).append((site, value))
        for number, space in self._spaces.items():
            if not space.ended:
                space.book.update(counts.get(number, []))

    def _reconcile_sometimes(self, now: int) -> None:
        for member in self._members.values():
            if member.left_ns is None and now >= member.account.next_ns:
                if member.account.next_ns:
                    self._reconcile(member)
                took = self._clock() - now
                member.account.next_ns = now + max(int(RECONCILE_S * NS_PER_S), int(SPARING * took))

    def _reconcile(self, member: _Member) -> None:
        assert self._programs is not None
        with contextlib.suppress(MemforensicsError):
            repaired = member.account.reconcile(self._programs, self._take_in)
            self._lose("removals that were not seen (found in /proc/PID/maps, repaired)", repaired.gone)
            self._lose("mappings that were not seen (found in /proc/PID/maps, without a stack)", repaired.missing)

    def outstanding(self, pid: int) -> list[Span]:
        """All addresses of a process that were mapped since the trace began and still are, rising and disjoint."""
        assert self._programs is not None
        self._take_in()
        space = self._members[pid].space
        live = space.settle_now(self._programs.live().get(space.number, []))
        return union([*((e.start, e.end) for e in live), *((p.start, p.end) for p in space.book.ledger)])

    def _lose(self, what: str, count: int = 1) -> None:
        self._losses[what] = self._losses.get(what, 0) + count

    def _conclude(self, programs: MmapPrograms) -> Iterator[Evidence]:
        self._take_in()
        ended_ns = self._clock()
        self._look_at_members(ended_ns)
        for member in self._members.values():
            if member.left_ns is None:
                self._reconcile(member)
        stats = programs.run_stats()
        programs.engine.detach()  # from here on nothing changes any more
        self._take_in()
        self._update_counts()
        runs = stats.runs - self._stats_before.runs if stats else None
        run_ns = stats.run_ns - self._stats_before.run_ns if stats else None
        for member in self._members.values():
            if member.left_ns is None:
                self._find_resident(member, programs)
                for record in member.space.book.sites.values():
                    record.note(ended_ns)
            yield from (site for space in member.spaces for site in space.sites(ended_ns))
            yield self._summary(member, ended_ns, runs, run_ns)
        yield from self._all_losses(programs, stats)
        yield Cost(
            probe=self.name,
            bpf_run_ns=run_ns,
            bpf_runs=runs,
            observer_cpu_s=time.process_time() - self._cpu_before,
        )

    def _find_resident(self, member: _Member, programs: MmapPrograms) -> None:
        """Resident bytes and births of what is outstanding."""
        space, book = member.space, member.space.book
        live = space.settle_now(programs.live().get(space.number, []))
        whole = [(r.start, r.end, r.site, r.born_ns, r.weight) for r in live]
        cut = [(p.start, p.end, p.block.site, p.block.born_ns, p.block.weight) for p in book.ledger]
        unwalked = [end - start for start, end, _, _, weight in (*whole, *cut) if not weight]
        if sum(unwalked) > UNWALKED_SHARE * sum(end - start for start, end, *_ in (*whole, *cut)):
            member.unwalked_outstanding = len(unwalked)
        groups: dict[tuple[SiteRecord | None, int], int] = {}
        ranges: list[tuple[int, int, int]] = []
        for start, end, site, born_ns, weight in (*whole, *cut):
            record = book.record(site)
            if record is not None:
                record.births.append(born_ns)
            ranges.append((start, end, groups.setdefault((record, weight), len(groups))))
        try:
            resident = resident_by_site(member.process, ranges)
        except MemforensicsError:
            return
        for record in book.sites.values():
            record.resident_bytes = 0
        member.resident_bytes = 0
        for (record, weight), number in groups.items():
            present = resident.get(number, 0)
            if record is not None:
                record.resident_bytes = (record.resident_bytes or 0) + weight * present
            if record is None or not record.file_backed:
                member.resident_bytes += present

    def _summary(self, member: _Member, ended_ns: int, runs: int | None, run_ns: int | None) -> TraceSummary:
        records = [record for space in member.spaces for record in space.book.sites.values()]
        standing = [record for record in member.space.book.sites.values() if not record.file_backed]
        resident = member.resident_bytes
        growth = None
        if member.began is not None and member.last is not None:
            growth = member.last.growth_metric - member.began.growth_metric
        enough = resident is not None and growth is not None and growth >= SMALLEST_GROWTH
        alone = len(self._members) == 1  # the kernel counts run time for all processes together
        return TraceSummary(
            pid=member.process.pid,
            engine="bcc",
            began_ns=member.began_ns,
            ended_ns=member.left_ns or ended_ns,
            events=sum(record.now.allocated_count + record.now.freed_count for record in records),
            outstanding_bytes=sum(record.outstanding_bytes for record in standing),
            resident_bytes=resident,
            rss_growth_bytes=growth,
            coverage=resident / growth if enough and resident is not None and growth is not None else None,
            bpf_runs=runs if alone else None,
            bpf_run_ns=run_ns if alone else None,
            unwalked=(unwalked := self._programs.unwalked(member.process.pid) if self._programs else None),
            sampled_one_in=RARITY if unwalked else None,
        )

    def _all_losses(self, programs: MmapPrograms, stats: RunStats | None) -> Iterator[Loss]:
        found = [*programs.losses(), *((what, "", count) for what, count in self._losses.items())]
        cut_short = sum(
            record.now.allocated_count
            for member in self._members.values()
            for space in member.spaces
            for record in space.book.sites.values()
            if not record.complete
        )
        found.append((UNWALKED, "", sum(member.unwalked_outstanding for member in self._members.values())))
        found.append(("mappings whose stack could not be followed to its end", "a longer trace", cut_short))
        found.append(
            (
                "unwind rules not stored: the table was full",
                "",
                sum(space.learner.not_stored for member in self._members.values() for space in member.spaces),
            )
        )
        if stats is not None:
            found.append(("program runs left out by the kernel: another was running on that CPU", "", stats.missed))
        for what, reduce, count in found:
            if count:
                yield Loss(probe=self.name, what=what, count=count, reduce=reduce)

    def _release(self) -> None:
        if self._programs is not None:
            self._programs.close()
            self._programs = None
        for member in self._members.values():
            member.process.close()
