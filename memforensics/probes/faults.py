"""Who touches memory that was not there: page faults by hybrid stack, kept where the page is still resident.

`ebpf/faults.bpf.c` walks a stack where a fault made something resident and notes the page; here stacks are symbolized
when they are met for the first time, and pages are looked up (pagemap) at the end and now and then before. Nothing is
written into the target, nothing stops it.

Evidence of who *touches*, never of who leaks: a leaked block that reuses pages costs no fault, and a temporary that
comes next takes the blame (measured: 0% of the faults for the leaker). So no finding is made of these sites.
"""

import contextlib
import itertools
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from memforensics.case.model import Cost, Loss, Sample, TraceSummary
from memforensics.errors import MemforensicsError, PermissionNeeded, ProbeFailed, TargetError, ToolMissing
from memforensics.probes.base import Availability, Budget, Evidence
from memforensics.probes.ebpf.engine import RunStats, import_bcc, tracefs
from memforensics.probes.ebpf.fault_pages import NOTHING_TOUCHED
from memforensics.probes.ebpf.fault_programs import FaultPrograms, SiteCounts, why_not_exact
from memforensics.probes.ebpf.fault_space import FaultSite, FaultSpace
from memforensics.probes.ebpf.layout import Ended, EventType, RangeEvent, StackEvent
from memforensics.target import Process, open_process
from memforensics.target.tree import descendants
from memforensics.units import MIB, NS_PER_S

LOOK_NS = NS_PER_S  # between two looks at what is still there, at least
LOOK_SHARE = 0.05  # of the time, at most, is spent looking
PRUNE_AT = 0.5  # of the table's capacity: pages that went are taken out
WARM_UP_S = 1.5  # at most: stacks are learned before anything is booked
WARM_UP_QUIET_S = 0.2  # ... and until no stack was unknown for this long
SMALLEST_GROWTH = 1 * MIB  # of RSS, below which a coverage would mean nothing
BLIND_GROWTH = 8 * MIB  # of RSS without a single event
_FIRST_SPACE = 1 << 63  # numbers of address spaces that user space gives; the kernel's own are below


@dataclass(slots=True)
class _Member:
    """One process of the trace. `process` was opened by us: the caller may close his."""

    process: Process
    space: FaultSpace
    began_ns: int
    began: Sample | None
    last: Sample | None = None
    left_ns: int | None = None
    former: list[FaultSpace] = field(default_factory=list)  # before an exec
    numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    @property
    def spaces(self) -> list[FaultSpace]:
        return [*self.former, self.space]

    @property
    def sites(self) -> Iterator[FaultSite]:
        """Those that brought something: others are the first part of a stack that was completed later."""
        return (site for space in self.spaces for site in space.sites.values() if site.touched.faults)


class FaultTrace:
    """The probe. `open` takes one process or several; children of traced processes join by themselves.

    `python`: look for Python frames.
    """

    name = "fault-trace"

    def __init__(self, *, python: bool = True, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._python, self._clock = python, clock
        self._programs: FaultPrograms | None = None
        self._members: dict[int, _Member] = {}
        self._spaces: dict[int, FaultSpace] = {}
        self._next_look_ns = 0
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
        why = why_not_exact(platform.release())
        return Availability("unavailable", why) if why else Availability("ok")

    def open(self, target: Process | Sequence[Process], budget: Budget) -> None:
        """Arms the programs and learns the stacks that occur (up to 1.5 s, less where it is quiet); then booking
        begins. ToolMissing, PermissionNeeded, ProbeFailed; TargetGone when a process left meanwhile."""
        targets = [target] if isinstance(target, Process) else list(target)
        self._cpu_before = time.process_time()
        self._programs = FaultPrograms(python=self._python)
        try:
            for process in targets:
                self._join(process.pid)
            self._warm_up(min(WARM_UP_S, budget.seconds / 4))
            self._begin()
        except BaseException:
            self._release()
            raise

    def poll(self) -> Iterator[Evidence]:
        """Takes in what the kernel told (call it a few times a second); about once a second, the sites."""
        if self._programs is None:
            return
        self._programs.engine.pace_stats()
        self._take_in()
        now = self._clock()
        if now < self._next_look_ns:
            return
        self._look_at_members(now)
        self._look(now)
        self._check_that_we_see()
        took = self._clock() - now
        self._next_look_ns = now + max(LOOK_NS, int(took / LOOK_SHARE))
        for member in self._members.values():
            if member.left_ns is None:
                yield from (site.site(member.process.pid) for site in member.sites)

    def close(self) -> Iterable[Evidence]:
        """The final sites, a summary a process, losses, and the cost."""
        if self._programs is None:
            return self._last
        try:
            self._last = list(self._conclude(self._programs))
        finally:
            self._release()
        return self._last

    # --- beginning

    def _join(self, pid: int) -> None:
        assert self._programs is not None
        member = self._open_member(_FIRST_SPACE | pid, pid)
        if not self._programs.add_target(pid, member.space.number, member.began):
            raise ProbeFailed("too many processes to trace", enable="trace a smaller tree")

    def _open_member(self, number: int, pid: int) -> _Member:
        assert self._programs is not None
        process = open_process(pid)
        try:
            numbers = itertools.count(1)
            space = FaultSpace(number, process, self._programs, numbers)
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
        self._next_look_ns = self._clock() + LOOK_NS

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
        elif event.type is EventType.CODE:
            space = self._space(event.space)
            if space is not None:
                space.learner.replaced(event.start, event.end)
        return False

    def _space(self, number: int) -> FaultSpace | None:
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
        return member.space

    def _execed(self, event: RangeEvent) -> None:
        """Another program runs in the process: nothing of its account stands any more."""
        member = self._members.get(event.space & 0xFFFFFFFF)
        if member is None:
            return
        assert self._programs is not None
        self._update_counts()
        member.space.end()
        member.space.gone()
        try:
            process = open_process(member.process.pid)
            space = FaultSpace(event.start, process, self._programs, member.numbers)
        except MemforensicsError:
            return  # it left: noticed at the next look
        member.former.append(member.space)
        member.process.close()
        member.process, member.space = process, space
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
        if any(site.touched.faults for space in self._spaces.values() for site in space.sites.values()):
            return
        for member in self._members.values():
            began, last = member.began, member.last
            if began is None or last is None or member.left_ns is not None:
                continue
            if last.growth_metric - began.growth_metric >= BLIND_GROWTH:
                raise ProbeFailed(
                    f"process {member.process.pid} grows, and its page faults are not seen",
                    why="this /proc belongs to another PID namespace than the process does, or another process or "
                    "the kernel itself fills its memory",
                    enable="run memforensics on the host, or in a container with --pid=host",
                )

    # --- accounts

    def _update_counts(self) -> None:
        assert self._programs is not None
        counts: dict[int, list[tuple[int, SiteCounts]]] = {}
        for number, site, value in self._programs.counts():
            counts.setdefault(number, []).append((site, value))
        for number, space in self._spaces.items():
            if not space.ended:
                space.update(counts.get(number, []))

    def _look(self, now: int) -> None:
        """What of the touched pages is still there, and a point of each site's timeline."""
        assert self._programs is not None
        self._update_counts()
        touched = self._programs.touched()
        crowded = sum(map(len, touched.values())) > PRUNE_AT * self._programs.capacity
        for member in self._members.values():
            if member.left_ns is not None:
                continue
            with contextlib.suppress(MemforensicsError):  # it is leaving: what was seen last stands
                gone = member.space.look(touched.get(member.space.number, NOTHING_TOUCHED))
                if crowded:
                    self._programs.forget_pages(member.space.number, gone)
            for site in member.space.sites.values():
                site.note(member.began_ns, now)

    def _lose(self, what: str) -> None:
        self._losses[what] = self._losses.get(what, 0) + 1

    def _conclude(self, programs: FaultPrograms) -> Iterator[Evidence]:
        self._take_in()
        ended_ns = self._clock()
        self._look_at_members(ended_ns)
        stats = programs.run_stats()
        programs.engine.detach()  # from here on nothing changes any more
        self._take_in()
        self._look(ended_ns)
        runs = stats.runs - self._stats_before.runs if stats else None
        run_ns = stats.run_ns - self._stats_before.run_ns if stats else None
        for member in self._members.values():
            yield from (site.site(member.process.pid) for site in member.sites)
            yield self._summary(member, ended_ns, runs, run_ns)
        yield from self._all_losses(programs)
        yield Cost(
            probe=self.name,
            bpf_run_ns=run_ns,
            bpf_runs=runs,
            observer_cpu_s=time.process_time() - self._cpu_before,
        )

    def _summary(self, member: _Member, ended_ns: int, runs: int | None, run_ns: int | None) -> TraceSummary:
        resident = sum(site.resident_bytes for site in member.sites if not site.file_backed)
        growth = None
        if member.began is not None and member.last is not None and member.left_ns is None:
            growth = member.last.growth_metric - member.began.growth_metric
        alone = len(self._members) == 1  # the kernel counts run time for all processes together
        return TraceSummary(
            pid=member.process.pid,
            engine="bcc",
            began_ns=member.began_ns,
            ended_ns=member.left_ns or ended_ns,
            events=sum(site.touched.faults for site in member.sites),
            outstanding_bytes=resident,
            resident_bytes=resident,
            rss_growth_bytes=growth,
            coverage=resident / growth if growth is not None and growth >= SMALLEST_GROWTH else None,
            bpf_runs=runs if alone else None,
            bpf_run_ns=run_ns if alone else None,
        )

    def _all_losses(self, programs: FaultPrograms) -> Iterator[Loss]:
        found = [*programs.losses(), *((what, "", count) for what, count in self._losses.items())]
        members = self._members.values()
        cut_short = sum(site.touched.faults for m in members for site in m.sites if not site.stack.complete)
        found.append(("faults whose stack could not be followed to its end", "a longer trace", cut_short))
        not_stored = sum(space.learner.not_stored for m in members for space in m.spaces)
        found.append(("unwind rules not stored: the table was full", "", not_stored))
        for what, reduce, count in found:
            if count:
                yield Loss(probe=self.name, what=what, count=count, reduce=reduce)

    def _release(self) -> None:
        if self._programs is not None:
            self._programs.close()
            self._programs = None
        for member in self._members.values():
            member.process.close()
