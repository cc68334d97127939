"""The loop of a trace: it opens the programs, hands each event to the address space it belongs to, samples about once a
second, and closes with a summary. What is counted, and how, is the accounting's (accounting.py)."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from memforensics.case.model import AllocationSite, Cost, Loss, TraceSummary
from memforensics.errors import MemforensicsError, PermissionNeeded, ProbeFailed, TargetError, ToolMissing
from memforensics.probes.base import Availability, Budget, Evidence
from memforensics.probes.ebpf.accounting import Accounting
from memforensics.probes.ebpf.cost import FIRST_READ_INTERVAL_S, CostMeter
from memforensics.probes.ebpf.loader.engine import RunStats, import_bcc, tracefs
from memforensics.probes.ebpf.loader.layout import Ended, EventType, RangeEvent, StackEvent
from memforensics.probes.ebpf.loader.program_set import StackPrograms
from memforensics.probes.ebpf.traced_processes import S, TracedProcess, TracedProcesses
from memforensics.target import Process
from memforensics.target.tree import descendants
from memforensics.units import MIB, NS_PER_S

SAMPLE_INTERVAL_NS = NS_PER_S  # shorter in the first second, so that a screen soon shows sites
FIRST_SAMPLE_NS = SAMPLE_INTERVAL_NS // 5
SAMPLE_SHARE = 0.05  # of the time, at most, is spent on sampling
WARM_UP_S = 1.5  # at most: stacks are learned before recording starts
WARM_UP_QUIET_S = 0.2  # ... which ends when no stack was unknown for this long
MIN_GROWTH = 1 * MIB  # of RSS: below this a coverage means nothing
BLIND_GROWTH = 8 * MIB  # without a single event
FULL_COVERAGE = 1.1  # above this, sites claim more than RSS grew by

HANDLE_S = 0.05  # the most time that one poll spends on events: targets may send them faster than they are handled
CATCH_UP_S = 1.0  # ... and where all events until now are needed
DRAIN_S = 2.0  # ... and at the end, after the programs were detached


A = TypeVar("A", bound=Accounting[Any])


def sample_interval_ns(age_ns: int, took_ns: int) -> int:
    """From one sample to the next: as long as the trace has lasted, up to SAMPLE_INTERVAL_NS, but so long that sampling
    keeps to its share of the time."""
    interval = min(max(age_ns, FIRST_SAMPLE_NS), SAMPLE_INTERVAL_NS)
    return max(interval, int(took_ns / SAMPLE_SHARE) - took_ns)


class TraceLoop(Generic[S, A]):
    """A probe that traces one process or several, and the children that these fork."""

    def __init__(self, accounting: A, *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.accounting, self.clock = accounting, clock
        self.name: str = accounting.name
        self.processes: TracedProcesses[S] = TracedProcesses(accounting.open_space, clock)
        self.began_ns = 0  # recording started
        self._programs: StackPrograms | None = None
        self._meter: CostMeter | None = None
        self._next_sample_ns = 0
        self._lost: Counter[str] = Counter()
        self._unread = 0  # events that were never handled
        self._handlers = {
            EventType.EXEC: lambda event: self._note_exec(event.start),
            EventType.FORK: lambda event: None,  # a child is opened at its first event of memory
            EventType.EXIT: lambda event: None,  # found by the next sample
            EventType.CODE: self._map_code,
        }
        self._last: list[Evidence] = []

    @property
    def programs(self) -> StackPrograms:
        """Between `open` and `close`."""
        assert self._programs is not None
        return self._programs

    @property
    def meter(self) -> CostMeter:
        """From `open` on."""
        assert self._meter is not None
        return self._meter

    @property
    def is_open(self) -> bool:
        return self._programs is not None

    @property
    def declined(self) -> bool:
        """Whether the trace ended by itself, because it costs more than it may."""
        return self._meter is not None and self._meter.governor.declined

    @property
    def dropped(self) -> int:
        """Events that nobody handled."""
        return self.programs.dropped() + self._unread

    def count_loss(self, what: str, count: int = 1) -> None:
        self._lost[what] += count

    # --- the probe

    def availability(self, target: Process) -> Availability:
        try:
            tracefs()
            import_bcc()
        except (ToolMissing, PermissionNeeded) as error:
            return Availability("unavailable", str(error), error.enable)
        why = self.accounting.unsupported()
        return Availability("unavailable", why) if why else Availability("ok")

    def open(self, target: Process | Sequence[Process], budget: Budget) -> None:
        """Arms the programs and learns the stacks that occur (up to 1.5 s, less when it is quiet); then recording
        starts. ToolMissing, PermissionNeeded, ProbeFailed; TargetGone when a process exited meanwhile."""
        targets = [target] if isinstance(target, Process) else list(target)
        observer_cpu_s = time.process_time()
        self._programs = self.accounting.load(self, bounded=budget.overhead is not None)
        self._meter = CostMeter(self._programs, budget.overhead, self._alive, observer_cpu_s)
        try:
            for process in targets:
                self._add(process.pid)
            self._meter.start()
            self._warm_up(min(WARM_UP_S, budget.seconds / 4))
            self._start_recording()
        except BaseException:
            self._release()
            raise

    def poll(self) -> Iterator[Evidence]:
        """Handles events (call it a few times a second); about once a second, the sites that changed."""
        if self._programs is None:
            return
        self.handle_events()
        self.accounting.poll()
        self._programs.engine.pace_run_counts()
        self.meter.poll()
        if self.declined:  # the sums are whole and exact until now
            self.close()
        elif self.clock() >= self._next_sample_ns:
            yield from self._sample(self.clock())

    def close(self) -> Iterable[Evidence]:
        """The final sites, a summary of each process, losses, and the cost."""
        if self._programs is None:
            return self._last
        try:
            self._last = list(self._conclude(self._programs))
        finally:
            self._release()
        return self._last

    # --- starting

    def _alive(self) -> list[Process]:
        return [traced.process for traced in self.processes.alive]

    def _add(self, pid: int) -> None:
        """Traces a process from now on."""
        traced = self.processes.add(pid)
        if not self.programs.add_target(pid, self.accounting.target(traced)):
            raise ProbeFailed("too many processes to trace", enable="trace a smaller tree")

    def _warm_up(self, seconds: float) -> None:
        """Learns the stacks that are in use, before recording starts."""
        quiet_since = time.monotonic()
        end = quiet_since + seconds
        while time.monotonic() < end and time.monotonic() - quiet_since < WARM_UP_QUIET_S:
            for event in self.programs.events(0.005):
                self._handle(event)
                if isinstance(event, StackEvent) and event.ended is Ended.MISS:
                    quiet_since = time.monotonic()
            if self.meter.governor.share is not None:
                self.meter.poll(FIRST_READ_INTERVAL_S)

    def _start_recording(self) -> None:
        self.meter.start_recording()
        for traced in self.processes:
            with contextlib.suppress(TargetError):
                traced.first = traced.process.sample(clock=self.clock)
            traced.began_ns = self.clock()
        self.programs.start_recording()
        for traced in self.processes:
            self.accounting.start(traced)
        self.began_ns = self.clock()
        self._next_sample_ns = self.began_ns + FIRST_SAMPLE_NS

    # --- events

    def handle_events(self, seconds: float = HANDLE_S) -> bool:
        """Handles the events that were sent until now, but for no longer than that. Returns whether these were all; the
        rest waits in the kernel."""
        engine = self.programs.engine
        until, end = engine.written_until(), time.monotonic() + seconds
        while not engine.has_read(until):
            for event in self.programs.events():
                self._handle(event)
            if time.monotonic() >= end:
                return engine.has_read(until)
        return True

    def _handle(self, event: StackEvent | RangeEvent) -> None:
        if isinstance(event, StackEvent):
            space = self._space(event.space)
            if space is None:
                self.count_loss("stacks of processes that exited before they could be read")
            else:
                space.add_stack(event)
        elif event.type in self._handlers:
            self._handlers[event.type](event)
        else:
            space = self._space(event.space)
            if space is not None and not self.processes.is_former(space):
                space.handle(event)

    def _space(self, number: int) -> S | None:
        """The address space of an event. A child is opened at its first event, and so is the program of an exec whose
        own event was dropped."""
        child = self.processes.add_child(number)
        if child is not None:
            self.accounting.start(child)
        elif number not in self.processes.spaces:
            self._note_exec(number)
        return self.processes.spaces.get(number)

    def _map_code(self, event: RangeEvent) -> None:
        space = self._space(event.space)
        if space is not None:
            space.stacks.rules.map_code(event.start, event.end)

    def _note_exec(self, number: int) -> None:
        """The process of that space runs another program: nothing that it had is outstanding any more."""
        traced = self.processes.with_new_program(number)
        if traced is None or traced.exited_ns is not None:
            return
        if not traced.space.stacks.ended:
            self.read_counts()
            traced.space.end()
            traced.space.release_all()
        if self.processes.replace_program(traced, number):
            self.accounting.start(traced)

    def _find_execs(self) -> None:
        """Finds an exec whose event was dropped: the kernel's entry of the process has the number of the new space."""
        for traced in self.processes.alive:
            number = self.programs.space_of(traced.pid)
            if number is not None and self.processes.with_new_program(number):
                self.handle_events()  # the event may be waiting
                self._note_exec(number)

    # --- sampling

    def _sample(self, now: int) -> Iterator[AllocationSite]:
        self._find_execs()
        self.read_counts()
        self._sample_processes(now)
        changed = self.accounting.sample(now)
        self._check_for_blindness()
        self._next_sample_ns = self.clock() + sample_interval_ns(now - self.began_ns, self.clock() - now)
        return changed

    def read_counts(self) -> None:
        """Takes the kernel's counters of the spaces that have not ended."""
        counts = self.programs.counts()
        for number, space in self.processes.spaces.items():
            if not space.stacks.ended:
                space.update_counts(counts.get(number, []))

    def _sample_processes(self, now: int) -> None:
        """Finds those that exited and, where the kernel's events do not name them, new children."""
        for traced in self.processes.sample(now):
            self.programs.remove_target(traced.pid)
        if self.programs.namespaced:
            for pid in [pid for root in list(self.processes) for pid in descendants(root.pid)]:
                if pid not in self.processes:
                    with contextlib.suppress(MemforensicsError):
                        self._add(pid)

    def _check_for_blindness(self) -> None:
        """A process that grows without a single event means a failed probe, not a quiet target. The counters are older
        than its size, so the events until now decide."""
        is_behind = not self.handle_events()
        if is_behind or self.dropped or any(space.has_sites for space in self.processes.spaces.values()):
            return
        for traced in self.processes.alive:
            if self.programs.stacks_skipped(traced.pid):
                return
        for traced in self.processes.alive:
            error = self.accounting.blind(traced)
            if error is not None:
                raise error

    # --- the end

    def _conclude(self, programs: StackPrograms) -> Iterator[Evidence]:
        self.handle_events()
        self._find_execs()
        ended_ns = self.clock()
        self.read_counts()
        self._sample_processes(ended_ns)
        self.accounting.before_detach()
        stats = programs.run_stats()
        programs.engine.detach()  # from here on nothing changes any more
        if not self.handle_events(DRAIN_S):
            self._unread = programs.engine.discard_events()
        self._find_execs()
        self.read_counts()
        self.accounting.finish(ended_ns)
        self.meter.update()
        cost = self.meter.cost(self.name, is_counted=stats is not None)
        coverages = []
        for traced in self.processes:
            for space in traced.spaces:
                yield from space.reports(ended_ns)
            summary = self._summary(traced, ended_ns, cost)
            coverages.append(summary.coverage or 0.0)
            yield summary
        yield from self._losses(stats, coverages)
        yield self.meter.cost(self.name, is_counted=stats is not None)

    def _summary(self, traced: TracedProcess[S], ended_ns: int, cost: Cost) -> TraceSummary:
        totals, growth = self.accounting.totals(traced, ended_ns), traced.growth
        coverage = None
        if traced.exited_ns is None and totals.resident_bytes is not None and growth and growth >= MIN_GROWTH:
            coverage = totals.resident_bytes / growth
        skipped = self.programs.stacks_skipped(traced.pid)
        is_alone = len(self.processes) == 1  # runs are counted for all that is traced together
        return TraceSummary(
            pid=traced.pid,
            engine="bcc",
            began_ns=traced.began_ns,
            ended_ns=traced.exited_ns or ended_ns,
            events=totals.events,
            outstanding_bytes=totals.outstanding_bytes,
            resident_bytes=totals.resident_bytes,
            rss_growth_bytes=growth,
            coverage=coverage,
            bpf_runs=cost.target_runs if is_alone else None,
            bpf_run_ns=cost.target_run_ns if is_alone else None,
            unwalked=skipped,
            sampled_one_in=self.meter.sample_period if skipped else None,
            dropped_events=self.dropped,
            unknown_bytes=totals.unknown_bytes,
            releases=totals.releases,
        )

    def _losses(self, stats: RunStats | None, coverages: Sequence[float]) -> Iterator[Loss]:
        stacks = [space.stacks for traced in self.processes for space in traced.spaces]
        for one in stacks:
            self._lost.update(one.lost)
        claimed = f"processes whose sites hold more than RSS grew by (up to {max(coverages, default=0.0):.0%} of it)"
        rows = [
            *self.programs.losses(),
            *((what, "", count) for what, count in self._lost.items()),
            ("events not read before the end", "a shorter trace, or fewer targets", self._unread),
            *self.accounting.losses(),
            ("program runs skipped by the kernel: another ran on that CPU", "", stats.missed if stats else 0),
            *self.meter.governor.losses(stats is not None),
            (
                "unwind rules not stored: the table was full",
                "a shorter trace",
                sum(one.rules.not_stored for one in stacks),
            ),
            (
                f"{claimed}: other memory was freed meanwhile, or the sites count too much",
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
        self.processes.close()
