"""The series of a process tree, from the samples of a case. Pure.

Processes are sampled one after another, start and exit, so the series of the tree is not a plain sum. Each process
counts with its growth since its own first sample, while it lives:

- a worker that starts later counts from zero, because its initial size is not growth of the tree. Its growth counts
  from SETTLE_SECONDS after its first sample, because a new process first fills its own memory;
- between its samples a process keeps its last value. Soon after its last sample it counts as exited, and its growth is
  subtracted, because its memory went back to the kernel.

So a pool whose workers grow and are recycled gives a saw-tooth, and a leak in one worker of eight gives a line. Growth
by a rising number of processes is a separate series (`population_series`). File pages are left out, because the kernel
can reclaim them.

A PID that runs a new program (exec, or PID reuse) counts as a new process. Samples may be thinned: dense at the end,
sparse before.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from memforensics.analysis.trend import fit_trend
from memforensics.case.model import Case, Growth, MemberGrowth, Sample, Trend
from memforensics.units import NS_PER_S

METRIC = "RssAnon + RssShmem + swap"
METRIC_WITH_JOINED = f"{METRIC}, processes that joined included"
SETTLE_SECONDS = 3.0
STALE_INTERVALS = 4.0  # a process without a sample for this many of its intervals has exited
NEWEST_GAPS = 24  # between samples, whose median is the interval
MORE_PROCESSES = 4  # than at the start: the least that counts as a rising number


@dataclass(frozen=True, slots=True)
class Series:
    """Seconds since the first sample of the case, and bytes."""

    times_s: tuple[float, ...]
    values: tuple[int, ...]

    @property
    def change_bytes(self) -> int:
        return self.values[-1] - self.values[0] if self.values else 0

    @property
    def span_bytes(self) -> int:
        return max(self.values, default=0) - min(self.values, default=0)

    @property
    def swings(self) -> bool:
        """Whether it both rises and falls by more than half of its span."""
        low = high = self.values[0] if self.values else 0
        climb = fall = 0
        for value in self.values:
            low, high = min(low, value), max(high, value)
            climb, fall = max(climb, value - low), max(fall, high - value)
        return 2 * min(climb, fall) > self.span_bytes


StartTimes = Mapping[int, int]  # PID -> when its present program started (ns)


def start_times(case: Case) -> StartTimes:
    return {target.pid: target.began_ns for target in case.targets if target.began_ns is not None}


def member_series(
    samples: Iterable[Sample],
    *,
    pids: Collection[int] | None = None,
    start_times: StartTimes | None = None,
) -> dict[int, Series]:
    """PID -> the series of the process since its present program started, in the order of first samples. Times count
    from the first sample of all processes."""
    lines = _lines(samples, pids, start_times or {})
    newest: dict[int, Series] = {}
    for (pid, is_now), line in lines.items():
        if is_now or pid not in newest:
            newest[pid] = line
    return newest


def tree_series(
    samples: Iterable[Sample],
    *,
    pids: Collection[int] | None = None,
    start_times: StartTimes | None = None,
) -> Series:
    """The tree as one series: the first sizes of the processes of the start, plus the growth of each process."""
    ticks, parts = _parts(samples, pids, start_times or {})
    base = sum(part.first for part in parts if not part.late)
    return Series(tuple(ticks), tuple(base + sum(part.grown_at(t) for part in parts) for t in ticks))


def total_series(samples: Iterable[Sample]) -> Series:
    """The plain sum over living processes, including late ones. For comparison with a limit, not for a trend."""
    ticks, parts = _parts(samples, None, {})
    return Series(tuple(ticks), tuple(sum(part.size_at(t) for part in parts) for t in ticks))


def process_count(samples: Iterable[Sample]) -> Series:
    """The number of living processes over time."""
    ticks, parts = _parts(samples, None, {})
    return Series(tuple(ticks), tuple(sum(part.first_at <= t <= part.gone_after for part in parts) for t in ticks))


def population_series(samples: Iterable[Sample]) -> Series:
    """Memory by the number of processes alone: each living process counts with its size after start-up."""
    ticks, parts = _parts(samples, None, {})
    return Series(
        tuple(ticks),
        tuple(sum(part.first for part in parts if part.counted_from <= t <= part.gone_after) for t in ticks),
    )


@dataclass(frozen=True, slots=True)
class Population:
    """Growth by a rising number of processes."""

    before: int  # processes at the start
    now: int
    trend: Trend  # of their memory after start-up


def population(case: Case) -> Population | None:
    """Growth by a rising number of processes, if their memory grows in a line; else None."""
    heads = process_count(case.samples)
    if not heads.values or heads.change_bytes < MORE_PROCESSES:
        return None
    line = population_series(case.samples)
    trend = series_trend(line)
    return Population(heads.values[0], heads.values[-1], trend) if trend.shape == "linear" else None


@lru_cache(maxsize=4)
def series_trend(line: Series) -> Trend:
    """The trend of a series. Cached, because the tree of a process without children is the same series."""
    return fit_trend(line.times_s, line.values)


def current_tree_series(case: Case) -> Series:
    """The series of the tree since its root runs its present program."""
    since = start_times(case).get(case.meta.root_pid, 0) if case.meta.root_pid is not None else 0
    return tree_series((s for s in case.samples if s.t_ns >= since), start_times=start_times(case))


def tree_trend(case: Case) -> Trend:
    """The trend of the tree since its root runs its present program."""
    return series_trend(current_tree_series(case))


def members(case: Case) -> tuple[MemberGrowth, ...]:
    """The growth of each process of the tree, fastest first."""
    found = []
    for pid, line in member_series(case.samples, start_times=start_times(case)).items():
        trend = series_trend(line)
        found.append(MemberGrowth(pid=pid, change_bytes=line.change_bytes, rate=trend.rate))
    return tuple(sorted(found, key=lambda m: -(m.rate.estimate if m.rate else m.change_bytes)))


def growth(case: Case) -> Growth | None:
    """The growth that the verdict is about, with the time to the lowest cgroup limit at this rate. None without
    samples."""
    if not case.samples:
        return None
    trend, metric = tree_trend(case), METRIC
    if population(case) is not None:
        line = total_series(case.samples)
        trend, metric = series_trend(line), METRIC_WITH_JOINED
    limit, used = _limit(case)
    left = None
    if limit is not None and trend.shape == "linear" and trend.rate is not None and trend.rate.estimate > 0:
        left = max(limit - used, 0) / (trend.rate.estimate / 60.0)
    return Growth(metric=metric, trend=trend, rate=trend.rate, limit_bytes=limit, seconds_to_limit=left)


def _limit(case: Case) -> tuple[int | None, int]:
    """The lowest cgroup limit of the processes, and the memory that counts against it: the cgroup's own figure plus the
    growth of the tree, or the memory of the tree if that is larger or the cgroup was not read."""
    total = total_series(case.samples)
    used = total.values[-1] if total.values else 0
    groups = [t.cgroup for t in case.targets if t.cgroup is not None and t.cgroup.limit_bytes is not None]
    if not groups:
        return None, used
    tightest = min(groups, key=lambda g: g.limit_bytes or 0)
    if tightest.usage_bytes is not None:
        # The kernel reclaims a cgroup's page cache before it kills: only anonymous memory counts, if it is known.
        in_group = tightest.anon_bytes if tightest.anon_bytes is not None else tightest.usage_bytes
        used = max(used, in_group + max(total.change_bytes, 0))
    return tightest.limit_bytes, used


# --- processes of the tree ----------------------------------------------------------------------------------------


def _lines(
    samples: Iterable[Sample], pids: Collection[int] | None, start_times: StartTimes
) -> dict[tuple[int, bool], Series]:
    """(PID, whether it runs its present program) -> series."""
    ordered = sorted((s for s in samples if pids is None or s.pid in pids), key=lambda s: s.t_ns)
    lines: dict[tuple[int, bool], list[Sample]] = {}
    for sample in ordered:
        lines.setdefault((sample.pid, sample.t_ns >= start_times.get(sample.pid, 0)), []).append(sample)
    return {
        key: Series(tuple((s.t_ns - ordered[0].t_ns) / NS_PER_S for s in line), tuple(s.growth_metric for s in line))
        for key, line in lines.items()
    }


def _parts(
    samples: Iterable[Sample], pids: Collection[int] | None, start_times: StartTimes
) -> tuple[list[float], list["_Member"]]:
    """Common times, and the processes."""
    lines = list(_lines(samples, pids, start_times).values())
    if not lines:
        return [], []
    begin = min(line.times_s[0] for line in lines)
    end = max(line.times_s[-1] for line in lines)
    interval = min((_interval(line) for line in lines if len(line.times_s) > 1), default=1.0)
    return _ticks(lines, interval), [_Member.of(line, begin, end, interval) for line in lines]


# --- one process of the sum ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Member:
    line: Series
    first_at: float
    counted_from: float  # its growth counts from this time on
    first: int  # its size then
    gone_after: float
    late: bool

    @classmethod
    def of(cls, line: Series, begin: float, end: float, interval: float) -> "_Member":
        """`begin`, `end`: of the observation. `interval`: the usual time between samples."""
        first_at, last_at = line.times_s[0], line.times_s[-1]
        late = first_at > begin + 2 * interval
        counted_from = first_at + SETTLE_SECONDS if late else first_at
        stale = STALE_INTERVALS * interval
        gone_after = float("inf") if last_at >= end - stale else last_at + interval / 2
        at = min(max(bisect_right(line.times_s, counted_from) - 1, 0), len(line.values) - 1)
        return cls(line, first_at, counted_from, line.values[at], gone_after, late)

    def size_at(self, t: float) -> int:
        if not self.first_at <= t <= self.gone_after:
            return 0
        return self.line.values[bisect_right(self.line.times_s, t) - 1]

    def grown_at(self, t: float) -> int:
        if t < self.counted_from or t > self.gone_after:
            return 0
        return self.size_at(t) - self.first


def _interval(line: Series) -> float:
    """The usual time between samples: the median of the newest gaps, because older samples may be thinned."""
    newest = line.times_s[-NEWEST_GAPS - 1 :]
    gaps = sorted(b - a for a, b in pairwise(newest))
    return gaps[len(gaps) // 2]


def _ticks(lines: Iterable[Series], interval: float) -> list[float]:
    """Common times: all sample times. Times closer than half an interval become one, the last of them."""
    out: list[float] = []
    tick_began = float("-inf")
    for t in sorted(t for line in lines for t in line.times_s):
        if t - tick_began < interval / 2:
            out[-1] = t
        else:
            out.append(t)
            tick_began = t
    return out
