"""How many stacks are walked, so that a trace costs less than a share of the target's CPU time. Pure.

The cost is the run time of the programs (bpf_stats) for what is traced. It comes on top of the floor, which is the cost
of merely arming the events. The programs also run for all other processes of the host, and return at once: see
`RunTimes`. Most of the cost is walks. They can be sampled: each walked stack counts for others, so sums stay unbiased.
The ledger of mappings cannot be sampled: without one removal it is wrong. So when the ledger alone costs more than
the bound, the trace declines: it ends, with what it has, and says so.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from memforensics.probes.ebpf.loader.engine import RunStats
from memforensics.units import NS_PER_S

TOP_LEVEL = 16  # one walk in 65,536 small mappings, all of those above 256 MiB
EASE_AT = 0.4  # of the bound: below it, twice as many walks still fit
FILL = 0.8  # of the bound: the most that it may cost after more is walked
UNDER_READINGS = 3  # below EASE_AT in a row, before more is walked
OVER_READINGS = 3  # above the bound in a row, with hardly any walks left, before the trace declines
HELPED = 0.75  # of the cost before: when walking less did not bring it below this, walks are not the cost
MIN_CPU_NS = NS_PER_S // 20  # of the targets, between two readings: less means nothing


class Times(NamedTuple):
    """Runs of the programs and what they took, for what is traced and for the other processes of the host."""

    target_ns: int = 0
    target_runs: int = 0
    host_ns: int = 0
    host_runs: int = 0


class RunTimes:
    """The run time of the programs, divided between what is traced and the other processes of the host.

    The programs count their runs for traced processes, and time them from the check that a process is traced. What they
    do before that check is the same in each run, and is all that a run for another process does. So the remaining time
    is divided by runs.
    """

    def __init__(self) -> None:
        self.times = Times()
        self._last: RunStats | None = None

    def add(self, now: RunStats) -> None:
        """The counters at a later time."""
        last, self._last = self._last, now
        if last is None:
            return
        runs, run_ns = max(0, now.runs - last.runs), max(0, now.run_ns - last.run_ns)
        traced = min(max(0, now.traced_runs - last.traced_runs), runs)
        known_ns = min(max(0, now.traced_ns - last.traced_ns), run_ns)
        own_ns = known_ns + (run_ns - known_ns) * traced // runs if runs else 0
        more = Times(own_ns, traced, run_ns - own_ns, runs - traced)
        self.times = Times(*map(sum, zip(self.times, more, strict=True)))


@dataclass(frozen=True, slots=True)
class Reading:
    """`run_ns`: of the programs for what is traced, since they were loaded. `cpu_ns`: user and system time by PID."""

    run_ns: int
    cpu_ns: Mapping[int, int]


def cpu_ns(stat: str, ticks_per_s: int) -> int:
    """User and system time of all threads, those that ended too, from /proc/PID/stat (proc(5)). ValueError."""
    fields = stat[stat.rindex(")") + 1 :].split()
    return (int(fields[11]) + int(fields[12])) * NS_PER_S // ticks_per_s


def percent(share: float) -> str:
    return f"{100 * share:.2g}%"


class Governor:
    """Takes one or two readings a second and sets how many stacks are walked, by `apply(level)`: at level n, one of
    2**n mappings (faults) of one page, and twice as many of those twice as large. `share`: the bound; None: there is
    none, and the cost is only computed."""

    def __init__(self, share: float | None, apply: Callable[[int], None]) -> None:
        self.share = share
        self.level = 0
        self.declined = False
        self.is_reduced = False
        self._apply = apply
        self._last: Reading | None = None
        self._run_ns = self._cpu_ns = 0
        self._under = self._over = 0
        self._reduced_at: float | None = None  # the cost when the level was last raised

    @property
    def reached(self) -> float | None:
        """Run time over the CPU time of the targets so far. None: they used too little of it to mean anything."""
        return self._run_ns / self._cpu_ns if self._cpu_ns >= MIN_CPU_NS else None

    def start(self, reading: Reading | None) -> None:
        self._last = reading

    def update(self, reading: Reading | None) -> None:
        """Takes the next reading; None: there is none."""
        last = self._last
        if last is None or reading is None:
            self._last = reading or last
            return
        used_ns = sum(max(0, now - last.cpu_ns[pid]) for pid, now in reading.cpu_ns.items() if pid in last.cpu_ns)
        if used_ns < MIN_CPU_NS or self.declined:
            return
        self._last = reading
        ran_ns = max(0, reading.run_ns - last.run_ns)
        self._run_ns += ran_ns
        self._cpu_ns += used_ns
        if self.share is not None:
            self._judge(self.share, ran_ns / used_ns, self._run_ns / self._cpu_ns)

    def losses(self, is_counted: bool) -> Iterator[tuple[str, str, int]]:
        """`is_counted`: the kernel counts run time."""
        if self.share is None:
            return
        reached = self.reached or 0.0
        enough = f"--overhead {percent(reached * 1.5)}"
        if not is_counted:
            yield "the overhead bound was not kept: the kernel does not count run time", "root", 1
        elif self.declined:
            yield (
                f"trace ended early: the account alone costs {percent(reached)} of the traced CPU time, more than the "
                f"{percent(self.share)} of --overhead",
                enough,
                1,
            )
        elif reached > self.share:
            yield (
                f"the overhead bound was passed: {percent(reached)} of the traced CPU time, more than "
                f"{percent(self.share)}, because the trace was too short to adapt",
                f"a longer trace, or {enough}",
                1,
            )

    def _judge(self, share: float, now: float, so_far: float) -> None:
        is_over = now > share
        self._over = self._over + 1 if is_over and self.level == TOP_LEVEL else 0
        self._under = self._under + 1 if now < EASE_AT * share and so_far <= share else 0
        if self._over >= OVER_READINGS:
            self.declined = True
        elif is_over:
            helped = self._reduced_at is None or now < HELPED * self._reduced_at
            self._set_level(self.level + int(now / share).bit_length() if helped else TOP_LEVEL)
            self._reduced_at = now
        elif self._under >= UNDER_READINGS:
            self._under = 0
            self._reduced_at = None
            self._set_level(self.level - (int(FILL * share / max(now, share / (1 << TOP_LEVEL))).bit_length() - 1))

    def _set_level(self, level: int) -> None:
        level = min(max(level, 0), TOP_LEVEL)
        if level != self.level:
            self.level = level
            self.is_reduced = True
            self._apply(level)
