"""What the traces of a process tree have in common: who takes part, how an event finds its address space, when is
looked, and what is told at the end. What is booked, and how it is counted, is each probe's own."""

import contextlib
import itertools
import os
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Generic, NamedTuple, Protocol, TypeVar

from memforensics.case.model import AllocationSite, Cost, Loss, Sample, TraceSummary
from memforensics.errors import MemforensicsError, PermissionNeeded, ProbeFailed, TargetError, ToolMissing
from memforensics.probes.base import Availability, Budget, Evidence
from memforensics.probes.ebpf.loader.engine import Engine, RunStats, import_bcc, tracefs
from memforensics.probes.ebpf.loader.layout import Ended, EventType, RangeEvent, StackEvent
from memforensics.probes.ebpf.overhead import Governor, Reading, RunTimes, Times, cpu_ns
from memforensics.probes.ebpf.traced_processes import Member, Members, S
from memforensics.target import Process
from memforensics.target.tree import descendants
from memforensics.units import MIB, NS_PER_S

LOOK_NS = NS_PER_S  # between two looks, at least; sooner in the first second, for the first sites on a screen
FIRST_LOOK_NS = LOOK_NS // 5
LOOK_SHARE = 0.05  # of the time, at most, is spent looking
WARM_UP_S = 1.5  # at most: stacks are learned before anything is booked
WARM_UP_QUIET_S = 0.2  # ... and until no stack was unknown for this long
SMALLEST_GROWTH = 1 * MIB  # of RSS, below which a coverage would mean nothing
GOVERN_NS = NS_PER_S // 2  # between two looks at what it costs ...
GOVERN_FIRST_NS = NS_PER_S // 10  # ... and before booking begins
BLIND_GROWTH = 8 * MIB  # without a single event
FULL_COVERAGE = 1.1  # above it, sites claim more than RSS grew by

TAKE_IN_S = 0.05  # at most, of a poll, for events: targets may make them faster than they are handled
CATCH_UP_S = 1.0  # ... where all that was told until now is wanted
DRAIN_S = 2.0  # ... at the end, after the programs were detached

LossRow = tuple[str, str, int]  # what, what reduces it, how often


class Programs(Protocol):
    """A loaded set of eBPF programs, armed, that records from `begin` on."""

    engine: Engine
    namespaced: bool

    @property
    def sample_period(self) -> int: ...
    def begin(self) -> None: ...
    def events(self, timeout_s: float = 0.0) -> Iterator[StackEvent | RangeEvent]: ...
    def remove_target(self, pid: int) -> None: ...
    def set_sampling_level(self, level: int) -> None: ...
    def stacks_skipped(self, pid: int) -> int | None: ...
    def space_of(self, pid: int) -> int | None: ...
    def dropped(self) -> int: ...
    def losses(self) -> list[LossRow]: ...
    def run_stats(self) -> RunStats | None: ...
    def close(self) -> None: ...


P = TypeVar("P", bound=Programs)


class Totals(NamedTuple):
    """Of one process, at the end. `resident_bytes`: files apart."""

    events: int
    outstanding_bytes: int
    resident_bytes: int | None


def pause_ns(since_ns: int, took_ns: int) -> int:
    """From a look to the next one: as long as the trace has lasted, which is soon at first, up to LOOK_NS; but so long
    that looks keep to their share of the time."""
    return max(min(max(since_ns, FIRST_LOOK_NS), LOOK_NS), int(took_ns / LOOK_SHARE) - took_ns)


class TreeTrace(ABC, Generic[P, S]):
    """A probe that traces one process or several, and the children that these fork.

    `python`: look for Python frames.
    """

    name: str

    def __init__(self, *, python: bool = True, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.python, self.clock = python, clock
        self.members: Members[S] = Members(self._make_space, clock)
        self._programs: P | None = None
        self._began_ns = self._next_look_ns = 0
        self._governor = Governor(None, self._set_sampling_level)
        self._next_govern_ns = 0
        self.sampled_one_in = 1  # one of so many, at the most
        self._lost: dict[str, int] = {}
        self._unread = 0  # events that were still waiting at the end
        self._times = RunTimes()
        self._times_before = Times()  # of learning
        self._cpu_before = 0.0
        self._last: list[Evidence] = []

    @property
    def began_ns(self) -> int:
        """When booking began."""
        return self._began_ns

    @property
    def programs(self) -> P:
        """Between `open` and `close`."""
        assert self._programs is not None
        return self._programs

    # --- what a probe is

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
        self._governor = Governor(budget.overhead, self._set_sampling_level)
        self._programs = self._load()
        self.sampled_one_in = self._programs.sample_period
        try:
            for process in targets:
                self._join(process.pid)
            self._governor.begin(self._reading())
            self._warm_up(min(WARM_UP_S, budget.seconds / 4))
            self._begin()
        except BaseException:
            self._release()
            raise

    def poll(self) -> Iterator[Evidence]:
        """Takes in what the kernel told (call it a few times a second); about once a second, the sites."""
        if self._programs is None:
            return
        self._take_in()
        self._between_looks()
        self._programs.engine.pace_stats()
        now = self.clock()
        if now >= self._next_govern_ns:
            self._govern(now)
        if self._programs is None or now < self._next_look_ns:
            return
        self._find_execs()
        self._update_counts()
        self._look_at_members(now)
        self._look(now)
        self._check_that_we_see()
        self._next_look_ns = self.clock() + pause_ns(now - self._began_ns, self.clock() - now)
        yield from self._news(now)

    def close(self) -> Iterable[Evidence]:
        """The final sites, a summary a process, losses, and the cost."""
        if self._programs is None:
            return self._last
        try:
            self._last = list(self._conclude(self._programs))
        finally:
            self._release()
        return self._last

    # --- what each trace does in its own way

    @abstractmethod
    def _load(self) -> P:
        """ToolMissing, PermissionNeeded, ProbeFailed."""

    @abstractmethod
    def _make_space(self, number: int, process: Process, numbers: "itertools.count[int]") -> S:
        """TargetGone, PermissionNeeded."""

    @abstractmethod
    def _add_target(self, member: Member[S]) -> bool:
        """Has the kernel follow it. False: its table is full."""

    @abstractmethod
    def _update_counts(self) -> None:
        """Takes the kernel's counters, of the spaces that have not ended."""

    @abstractmethod
    def _look(self, now: int) -> None:
        """About once a second, after the counters were taken."""

    @abstractmethod
    def _news(self, now: int) -> Iterator[AllocationSite]:
        """The sites to tell of after a look."""

    @abstractmethod
    def _last_look(self, ended_ns: int) -> None:
        """After all programs were detached."""

    @abstractmethod
    def _sites(self, member: Member[S], ended_ns: int) -> Iterator[AllocationSite]:
        """All of them, at the end."""

    @abstractmethod
    def _totals(self, member: Member[S]) -> Totals:
        """At the end."""

    @abstractmethod
    def _saw_anything(self) -> bool:
        """By the events that were handled until now. The counters are older, and do not say it."""

    @abstractmethod
    def _unseen_growth(self, began: Sample, last: Sample) -> int | None:
        """Bytes that would have been seen in the making."""

    @abstractmethod
    def _blind(self, pid: int) -> ProbeFailed:
        """What to say when nothing was seen while a process grew."""

    def _account_begins(self, member: Member[S]) -> None:
        """Booking has begun, or the process has joined or runs another program while it was on."""

    def _release_all(self, space: S) -> None:
        """Exec: nothing of the space stands any more."""

    def _told(self, space: S, event: RangeEvent) -> None:
        """An event other than a stack."""

    def _between_looks(self) -> None:
        """At each poll."""

    def _before_detaching(self) -> None:
        """At the end, while events still come; CATCH_UP_S is what it may take."""

    def _own_losses(self) -> Iterator[LossRow]:
        yield from ()

    # --- beginning

    def _join(self, pid: int) -> None:
        """Traces a process from now on."""
        if not self._add_target(self.members.join(pid)):
            raise ProbeFailed("too many processes to trace", enable="trace a smaller tree")

    def _warm_up(self, seconds: float) -> None:
        """Learns the stacks that are in use, before the account begins."""
        end = time.monotonic() + seconds
        quiet_since = time.monotonic()
        while time.monotonic() < end and time.monotonic() - quiet_since < WARM_UP_QUIET_S:
            for event in self.programs.events(0.005):
                if self._handle(event):
                    quiet_since = time.monotonic()
            if self._governor.share is not None and self.clock() >= self._next_govern_ns:
                self._next_govern_ns = self.clock() + GOVERN_FIRST_NS
                self._governor.look(self._reading())

    def _begin(self) -> None:
        self._reading()
        self._times_before = self._times.times
        for member in self.members:
            with contextlib.suppress(TargetError):
                member.began = member.process.sample(clock=self.clock)
            member.began_ns = self.clock()
        self.programs.begin()
        for member in self.members:
            self._account_begins(member)
        self._began_ns = self.clock()
        self._next_look_ns = self._began_ns + FIRST_LOOK_NS

    # --- events

    def _take_in(self, seconds: float = TAKE_IN_S) -> bool:
        """Handles what was told until now, for so long at most. Whether that was all; the rest waits in the kernel."""
        engine = self.programs.engine
        until, end = engine.told_until(), time.monotonic() + seconds
        while not engine.has_read(until):
            for event in self.programs.events():
                self._handle(event)
            if time.monotonic() >= end:
                return engine.has_read(until)
        return True

    def _drain(self) -> None:
        """After the programs were detached: the rest of the events, for DRAIN_S at most."""
        if not self._take_in(DRAIN_S):
            self._unread = self.programs.engine.discard_events()

    @property
    def _dropped(self) -> int:
        """Events that nobody handled."""
        return self.programs.dropped() + self._unread

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
            self._note_exec(event.start)
        elif event.type not in (EventType.FORK, EventType.EXIT):
            space = self._space(event.space)
            if space is not None and event.type is EventType.CODE:
                space.rule_cache.replaced(event.start, event.end)
            elif space is not None and not self.members.is_former(space):
                self._told(space, event)
        return False

    def _space(self, number: int) -> S | None:
        """The address space of an event. A child is met here for the first time; so is the program of an exec whose own
        event was dropped."""
        child = self.members.met(number)
        if child is not None:
            self._account_begins(child)
        elif number not in self.members.spaces:
            self._note_exec(number)
        return self.members.spaces.get(number)

    def _note_exec(self, number: int) -> None:
        """Another program runs in the process, in that space: nothing of its account stands any more."""
        member = self.members.runs_another(number)
        if member is None or member.left_ns is not None:
            return
        if not member.space.ended:
            self._update_counts()
            member.space.end()
            self._release_all(member.space)
        if self.members.execed(member, number):
            self._account_begins(member)

    def _find_execs(self) -> None:
        """Those whose event was dropped: the kernel's entry of the process has the number of the new space."""
        for member in self.members.alive:
            number = self.programs.space_of(member.pid)
            if number is not None and self.members.runs_another(number):
                self._take_in()  # the event may only wait
                self._note_exec(number)

    # --- looking

    def _look_at_members(self, now: int) -> None:
        """Notes who left and, where the kernel's events do not name them, who came."""
        for member in self.members.look(now):
            self.programs.remove_target(member.pid)
        if self.programs.namespaced:
            for pid in [pid for root in list(self.members) for pid in descendants(root.pid)]:
                if pid not in self.members:
                    with contextlib.suppress(MemforensicsError):
                        self._join(pid)

    def _check_that_we_see(self) -> None:
        """No events while /proc grows is a failed probe, not a quiet target."""
        is_behind = not self._take_in()  # what was told before its growth was read
        if is_behind or self._dropped or self._saw_anything():
            return
        for member in self.members.alive:
            if member.began is not None and member.last is not None:
                unseen = self._unseen_growth(member.began, member.last)
                if unseen is not None and unseen >= BLIND_GROWTH:
                    raise self._blind(member.pid)

    # --- what it costs

    @property
    def is_sampling_reduced(self) -> bool:
        """Whether less was walked, at some time, to keep the overhead below its bound."""
        return self._governor.is_reduced

    def _reading(self) -> Reading | None:
        """None where the kernel does not count, or not for us."""
        stats = self.programs.run_stats()
        if stats is None:
            return None
        self._times.add(stats)
        ticks = os.sysconf("SC_CLK_TCK")
        times = {}
        for member in self.members.alive:
            with contextlib.suppress(MemforensicsError, ValueError):
                times[member.pid] = cpu_ns(member.process.read_text("stat"), ticks)
        return Reading(self._times.times.target_ns, times)

    def _set_sampling_level(self, level: int) -> None:
        self.programs.set_sampling_level(level)
        self.sampled_one_in = max(self.sampled_one_in, self.programs.sample_period)
        self.programs.engine.count_anew()

    def _govern(self, now: int) -> None:
        """Holds the bound; where the account alone passes it, the trace ends here, whole and exact up to now."""
        self._next_govern_ns = now + GOVERN_NS
        self._governor.look(self._reading())
        if self._governor.declined:
            self.close()

    @property
    def declined(self) -> bool:
        """Whether the trace ended by itself, because it costs more than it may."""
        return self._governor.declined

    # --- the end

    def _conclude(self, programs: P) -> Iterator[Evidence]:
        self._take_in()
        self._find_execs()
        ended_ns = self.clock()
        self._update_counts()
        self._look_at_members(ended_ns)
        self._before_detaching()
        stats = programs.run_stats()
        programs.engine.detach()  # from here on nothing changes any more
        self._drain()
        self._find_execs()
        self._update_counts()
        self._last_look(ended_ns)
        self._governor.look(self._reading())
        cost = Cost(probe=self.name, target_share=self._governor.reached, asked_share=self._governor.share)
        if stats is not None:
            target_ns, target_runs, host_ns, host_runs = (
                now - before for now, before in zip(self._times.times, self._times_before, strict=True)
            )
            cost = replace(
                cost,
                bpf_run_ns=target_ns + host_ns,
                bpf_runs=target_runs + host_runs,
                target_run_ns=target_ns,
                target_runs=target_runs,
            )
        coverages = []
        for member in self.members:
            yield from self._sites(member, ended_ns)
            summary = self._summary(member, ended_ns, cost)
            coverages.append(summary.coverage or 0.0)
            yield summary
        yield from self._losses(stats, coverages)
        yield replace(cost, observer_cpu_s=time.process_time() - self._cpu_before)

    def _summary(self, member: Member[S], ended_ns: int, cost: Cost) -> TraceSummary:
        totals, growth = self._totals(member), member.growth
        coverage = None
        if member.left_ns is None and totals.resident_bytes is not None and growth and growth >= SMALLEST_GROWTH:
            coverage = totals.resident_bytes / growth
        unwalked = self.programs.stacks_skipped(member.pid)
        alone = len(self.members) == 1  # runs are counted for all that is traced together
        return TraceSummary(
            pid=member.pid,
            engine="bcc",
            began_ns=member.began_ns,
            ended_ns=member.left_ns or ended_ns,
            events=totals.events,
            outstanding_bytes=totals.outstanding_bytes,
            resident_bytes=totals.resident_bytes,
            rss_growth_bytes=growth,
            coverage=coverage,
            bpf_runs=cost.target_runs if alone else None,
            bpf_run_ns=cost.target_run_ns if alone else None,
            unwalked=unwalked,
            sampled_one_in=self.sampled_one_in if unwalked else None,
            dropped_events=self._dropped,
        )

    def _lose(self, what: str, count: int = 1) -> None:
        self._lost[what] = self._lost.get(what, 0) + count

    def _losses(self, stats: RunStats | None, coverages: Sequence[float]) -> Iterator[Loss]:
        spaces = [space for member in self.members for space in member.spaces]
        not_stored = sum(space.rule_cache.not_stored for space in spaces)
        of_python = sum((space.python.lost for space in spaces), Counter[str]())
        above = f"processes whose sites hold more than RSS grew by (up to {max(coverages, default=0.0):.0%} of it)"
        rows = [
            *self.programs.losses(),
            *((what, "", count) for what, count in self._lost.items()),
            *((what, "", count) for what, count in of_python.items()),
            ("events not read before the end", "a shorter trace, or fewer targets", self._unread),
            *self._own_losses(),
            ("program runs left out by the kernel: another was running on that CPU", "", stats.missed if stats else 0),
            *self._governor.losses(stats is not None),
            ("unwind rules not stored: the table was full", "a shorter trace", not_stored),
            (
                f"{above}: other memory was freed meanwhile, or the sites count too much",
                "a longer trace",
                sum(coverage > FULL_COVERAGE for coverage in coverages),
            ),
        ]
        for what, reduce, count in rows:
            if count:
                yield Loss(probe=self.name, what=what, count=count, reduce=reduce)

    def _release(self) -> None:
        if self._programs is not None:
            self._programs.close()
            self._programs = None
        self.members.close()
