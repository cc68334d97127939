"""When a watch does its expensive work, so that its own CPU time stays small however long it runs."""

from collections.abc import Callable
from dataclasses import dataclass, field

from memforensics.units import NS_PER_S

CPU_SHARE = 0.005  # of a core: the most that a watch uses in the long run
CPU_CREDIT_S = 0.8  # CPU seconds that it may use beyond that: people look at the first minutes
INTERVAL_GROWTH = 0.05  # the interval of a task grows with the time watched, by this share of it
MAX_DELAY_S = 60.0  # a task is delayed at most this long for want of CPU allowance ...
MAX_DELAY_SHARE = 0.15  # ... and at most this share of the time watched: it runs at 8 s, 9 s, 10.5 s, 12 s, ...
OVERDUE_CPU_SHARE = 0.0025  # ... but a task that is overdue uses at most this share of a core


@dataclass(slots=True)
class CpuAllowance:
    """Our own CPU time: a share of the time that passes, and a credit at the start."""

    clock: Callable[[], int]
    cpu: Callable[[], float]
    began_ns: int = field(init=False)
    cpu_began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began_ns, self.cpu_began = self.clock(), self.cpu()

    def has_room(self) -> bool:
        passed = (self.clock() - self.began_ns) / NS_PER_S
        return self.cpu() - self.cpu_began <= CPU_CREDIT_S + CPU_SHARE * passed


@dataclass(slots=True)
class PacedTask:
    """An expensive task that runs when the allowance has room for it, and at the latest when it is overdue."""

    allowance: CpuAllowance
    interval_s: tuple[float, float]  # the shortest between two runs: at the start, and later
    undelayed_s: float = 0.0  # the first seconds, in which it is not delayed
    next_ns: int = 0
    overdue_ns: int = 0

    def is_due(self, now: int) -> bool:
        return now >= self.next_ns and (now >= self.overdue_ns or self.allowance.has_room())

    def done(self, now: int, cpu_s: float) -> None:
        """It ran and used `cpu_s` of our CPU time; sets its next time."""
        watched_s = (now - self.allowance.began_ns) / NS_PER_S
        delay_s = min(MAX_DELAY_SHARE * watched_s, MAX_DELAY_S)
        if watched_s > self.undelayed_s:
            delay_s = max(delay_s, cpu_s / OVERDUE_CPU_SHARE)
        first, later = self.interval_s
        self.next_ns = now + int(min(max(first, INTERVAL_GROWTH * watched_s), later) * NS_PER_S)
        self.overdue_ns = now + int(delay_s * NS_PER_S)

    def expedite(self) -> None:
        """Makes it due at once."""
        self.next_ns = self.overdue_ns = 0
