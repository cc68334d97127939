"""The series of a process tree, out of the samples of a case. Pure.

Members are sampled one after another and come and go, so the tree's line is not a plain sum. Each member counts with
its growth *since its own first sample*, and only while it lives:

- a worker that joins late starts at zero: its size is no growth of the tree. One that joins after the others is counted
  from SETTLE_SECONDS later on, because a fresh process fills its own memory first;
- between its samples a member holds its last value; after its last one (plus a little) it has left, and what it had
  grown goes with it, as its memory went back to the kernel.

So a pool whose workers grow and are recycled draws a saw-tooth, and a leak in one worker of eight a line. What this
line cannot show, more and more processes, is `population_series`. File pages are a series apart.

What a PID did before the program that it runs now (an exec, or its number given out again) is another member's line,
which ended there. Samples may be thinned: dense at the end, sparse before.
"""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from memforensics.analysis.trend import fit_trend
from memforensics.case.model import Case, Growth, MemberGrowth, Sample, Trend
from memforensics.units import NS_PER_S

METRIC = "RssAnon + RssShmem + swap"
METRIC_WITH_JOINED = f"{METRIC}, processes that joined included"
SETTLE_SECONDS = 3.0
STALE_INTERVALS = 4.0  # without a sample for so many of its own intervals, a member has left
NEWEST_GAPS = 24  # between samples, by which the interval is told
MORE_PROCESSES = 4  # that joined and stayed, before their number is said to grow


@dataclass(frozen=True, slots=True)
class Series:
    """One line: seconds since the case's first sample, and bytes."""

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
        """Whether it both climbs and falls through more than half of its span."""
        low = high = self.values[0] if self.values else 0
        climb = fall = 0
        for value in self.values:
            low, high = min(low, value), max(high, value)
            climb, fall = max(climb, value - low), max(fall, high - value)
        return 2 * min(climb, fall) > self.span_bytes


def growth_metric(sample: Sample) -> int:
    return sample.growth_metric


def file_pages(sample: Sample) -> int:
    return sample.rss_file


StartTimes = Mapping[int, int]  # PID -> since when it is the program it is (ns)


def start_times(case: Case) -> StartTimes:
    return {target.pid: target.began_ns for target in case.targets if target.began_ns is not None}


def member_series(
    samples: Iterable[Sample],
    *,
    metric: Callable[[Sample], int] = growth_metric,
    pids: Collection[int] | None = None,
    start_times: StartTimes | None = None,
) -> dict[int, Series]:
    """The line of each process by itself, as the program that it is now, by PID, in the order of their first samples.
    Times count from the first sample of all."""
    lines = _lines(samples, metric, pids, start_times or {})
    newest: dict[int, Series] = {}
    for (pid, is_now), line in lines.items():
        if is_now or pid not in newest:
            newest[pid] = line
    return newest


def tree_series(
    samples: Iterable[Sample],
    *,
    metric: Callable[[Sample], int] = growth_metric,
    pids: Collection[int] | None = None,
    start_times: StartTimes | None = None,
) -> Series:
    """The tree as one line: the members' first sizes that were there at the start, plus the growth of each since."""
    ticks, parts = _parts(samples, metric, pids, start_times or {})
    base = sum(part.first for part in parts if not part.late)
    return Series(tuple(ticks), tuple(base + sum(part.grown_at(t) for part in parts) for t in ticks))


def total_series(samples: Iterable[Sample], *, metric: Callable[[Sample], int] = growth_metric) -> Series:
    """The plain sum over the living members, late ones included: what a limit is compared with, never a trend."""
    ticks, parts = _parts(samples, metric, None, {})
    return Series(tuple(ticks), tuple(sum(part.size_at(t) for part in parts) for t in ticks))


def process_count(samples: Iterable[Sample]) -> Series:
    """How many members there were, over time."""
    ticks, parts = _parts(samples, growth_metric, None, {})
    return Series(tuple(ticks), tuple(sum(part.first_at <= t <= part.gone_after for part in parts) for t in ticks))


def population_series(samples: Iterable[Sample]) -> Series:
    """What the tree holds by the number of its processes alone: each living member at the size that it settled at."""
    ticks, parts = _parts(samples, growth_metric, None, {})
    return Series(
        tuple(ticks),
        tuple(sum(part.first for part in parts if part.counted_from <= t <= part.gone_after) for t in ticks),
    )


@dataclass(frozen=True, slots=True)
class Population:
    """A tree that grows by more and more processes."""

    before: int  # processes
    now: int
    trend: Trend  # of the memory that they settled at


def population(case: Case) -> Population | None:
    """Whether the number of processes grows, and the memory with it, in a line; None where it does not."""
    heads = process_count(case.samples)
    if not heads.values or heads.change_bytes < MORE_PROCESSES:
        return None
    line = population_series(case.samples)
    trend = series_trend(line)
    return Population(heads.values[0], heads.values[-1], trend) if trend.shape == "linear" else None


@lru_cache(maxsize=4)
def series_trend(line: Series) -> Trend:
    """Its trend. A process without children is its own tree: the same line is asked for twice."""
    return fit_trend(line.times_s, line.values)


def tree_trend(case: Case, *, pids: Collection[int] | None = None) -> Trend:
    """The trend of the tree's growth, since its root is the program that it is."""
    since = start_times(case).get(case.meta.root_pid, 0) if case.meta.root_pid is not None else 0
    line = tree_series((s for s in case.samples if s.t_ns >= since), pids=pids, start_times=start_times(case))
    return series_trend(line)


def members(case: Case) -> tuple[MemberGrowth, ...]:
    """Each process of the tree with its own growth, the quickest first."""
    found = []
    for pid, line in member_series(case.samples, start_times=start_times(case)).items():
        trend = series_trend(line)
        found.append(MemberGrowth(pid=pid, change_bytes=line.change_bytes, rate=trend.rate))
    return tuple(sorted(found, key=lambda m: -(m.rate.estimate if m.rate else m.change_bytes)))


def file_series(case: Case) -> Series:
    """Resident pages of mapped files, of the tree: judged apart, the kernel takes them back at will."""
    return tree_series(case.samples, metric=file_pages, start_times=start_times(case))


def growth(case: Case) -> Growth | None:
    """The line that the verdict is about, with the time to the limit of the root's cgroup at this rate. None without
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
    """The lowest cgroup limit among the members, and what counts against it: the group's own figure where it was read
    (brought up to date by what the tree grew since), else the tree's."""
    total = total_series(case.samples)
    used = total.values[-1] if total.values else 0
    groups = [t.cgroup for t in case.targets if t.cgroup is not None and t.cgroup.limit_bytes is not None]
    if not groups:
        return None, used
    tightest = min(groups, key=lambda g: g.limit_bytes or 0)
    if tightest.usage_bytes is not None:
        # page cache in the group is given back before anything is killed: only anonymous memory counts where known
        in_group = tightest.anon_bytes if tightest.anon_bytes is not None else tightest.usage_bytes
        used = max(used, in_group + max(total.change_bytes, 0))
    return tightest.limit_bytes, used


# --- members --------------------------------------------------------------------------------------------------------


def _lines(
    samples: Iterable[Sample], metric: Callable[[Sample], int], pids: Collection[int] | None, start_times: StartTimes
) -> dict[tuple[int, bool], Series]:
    """(PID, whether as the program that it is now) -> its line."""
    ordered = sorted((s for s in samples if pids is None or s.pid in pids), key=lambda s: s.t_ns)
    lines: dict[tuple[int, bool], list[Sample]] = {}
    for sample in ordered:
        lines.setdefault((sample.pid, sample.t_ns >= start_times.get(sample.pid, 0)), []).append(sample)
    return {
        key: Series(tuple((s.t_ns - ordered[0].t_ns) / NS_PER_S for s in line), tuple(metric(s) for s in line))
        for key, line in lines.items()
    }


def _parts(
    samples: Iterable[Sample], metric: Callable[[Sample], int], pids: Collection[int] | None, start_times: StartTimes
) -> tuple[list[float], list["_Member"]]:
    """Common times, and the members."""
    lines = list(_lines(samples, metric, pids, start_times).values())
    if not lines:
        return [], []
    begin = min(line.times_s[0] for line in lines)
    end = max(line.times_s[-1] for line in lines)
    interval = min((_interval(line) for line in lines if len(line.times_s) > 1), default=1.0)
    return _ticks(lines, interval), [_Member.of(line, begin, end, interval) for line in lines]


# --- one member in the sum ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Member:
    line: Series
    first_at: float
    counted_from: float  # growth counts from here
    first: int  # its size there
    gone_after: float
    late: bool

    @classmethod
    def of(cls, line: Series, begin: float, end: float, interval: float) -> "_Member":
        """`begin`, `end`: of the whole observation; `interval`: the usual time between samples."""
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
    """The usual time between its samples: the median of the newest gaps (older samples may be thinned)."""
    newest = line.times_s[-NEWEST_GAPS - 1 :]
    gaps = sorted(b - a for a, b in pairwise(newest))
    return gaps[len(gaps) // 2]


def _ticks(lines: Iterable[Series], interval: float) -> list[float]:
    """Common times: all sample times, those closer than half an interval taken as one (the last of them)."""
    out: list[float] = []
    tick_began = float("-inf")
    for t in sorted(t for line in lines for t in line.times_s):
        if t - tick_began < interval / 2:
            out[-1] = t
        else:
            out.append(t)
            tick_began = t
    return out
