"""Statistics of one series: slope and its standard error, Mann-Kendall test, envelopes, jumps, bend, levels. Pure."""

import itertools
import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from memforensics.units import KIB

MAX_POINTS = 80  # pairwise slopes are quadratic in it
FEW_POINTS = 16
MIN_RISE = 512 * KIB  # over the window; any process rises by less
JUMP_SHARE = 0.45  # of the rise: a larger jump is a step; each of three equal jumps has 0.33
TWO_JUMPS_SHARE = 0.85  # of the rise: two jumps that have more are two steps
RANDOM_WALK = 1.9  # over the root of the number of points: an autocorrelation this close to 1 is a random walk
LOWS = 20  # segments of the lower envelope
HALF_MINIMA = 5  # segments of the lower envelope in each half of a window


@dataclass(frozen=True, slots=True)
class Point:
    """Neighbouring samples: their median and their minimum."""

    t: float  # seconds
    value: float
    low: float


def binned(times: Sequence[float], values: Sequence[float]) -> list[Point]:
    """At most MAX_POINTS points, one for each bin of equal time that has samples."""
    if len(times) <= MAX_POINTS:
        return [Point(t, float(v), float(v)) for t, v in zip(times, values, strict=True)]
    width = (times[-1] - times[0]) / MAX_POINTS or 1.0
    bins: dict[int, list[int]] = {}
    for i, t in enumerate(times):
        bins.setdefault(min(int((t - times[0]) / width), MAX_POINTS - 1), []).append(i)
    return [
        Point(
            sum(times[i] for i in members) / len(members),
            median([float(values[i]) for i in members]),
            float(min(values[i] for i in members)),
        )
        for members in bins.values()
    ]


# --- slope and its significance -----------------------------------------------------------------------------------


def slopes(points: list[Point]) -> list[float]:
    """The slopes of all pairs, bytes a second, sorted. Their median is the Theil-Sen estimate; the number of positive
    and negative ones is the Mann-Kendall statistic."""
    found = []
    for i, a in enumerate(points):
        t, v = a.t, a.value
        found += [(b.value - v) / (b.t - t) for b in points[i + 1 :] if b.t > t]
    found.sort()
    return found


def standard_error(points: list[Point], slope: float) -> tuple[float, int]:
    """The standard error of the slope in bytes a second, and its degrees of freedom, with residuals that are a
    first-order autoregression. Its coefficient is corrected for the bias of short series (Kendall 1954) and set to 1 (a
    random walk) if it cannot be distinguished from 1 (Perron and Yabu 2009): rather too wide than too narrow."""
    n = len(points)
    t = [p.t for p in points]
    residuals = [p.value - slope * p.t for p in points]
    mean_t, mean_r = sum(t) / n, sum(residuals) / n
    residuals = [r - mean_r for r in residuals]
    squared = sum(r * r for r in residuals[:-1])
    if squared <= 0.0:
        return 0.0, n - 3
    keep = sum(a * b for a, b in itertools.pairwise(residuals)) / squared
    keep = max(keep + (2.0 + 4.0 * max(keep, 0.0)) / n, 0.0)
    if keep > 1.0 - RANDOM_WALK / math.sqrt(n):
        keep = 1.0
    noise = sum((b - keep * a) ** 2 for a, b in itertools.pairwise(residuals)) / max(n - 3, 1)
    stt = sum((x - mean_t) ** 2 for x in t)
    carried = variance = 0.0  # effect of each shock on the slope, from the last shock back
    for x in reversed(t[1:]):
        carried = (x - mean_t) / stt + keep * carried
        variance += carried * carried
    if keep < 1.0:
        carried = (t[0] - mean_t) / stt + keep * carried
        variance += carried * carried / (1.0 - keep * keep)
    # Autocorrelated readings count for fewer; the shocks of a random walk count in full.
    freedom = n - 3 if keep >= 1.0 else max(round((n - 3) * (1.0 - keep) / (1.0 + keep)), 3)
    return math.sqrt(noise * variance), freedom


def student_quantile(p: float, freedom: int) -> float:
    """Student's t quantile, by expansion about the normal quantile (Abramowitz and Stegun 26.7.5)."""
    z, f = NormalDist().inv_cdf(p), float(max(freedom, 1))
    return z * (
        1.0
        + (z**2 + 1) / (4 * f)
        + (5 * z**4 + 16 * z**2 + 3) / (96 * f**2)
        + (3 * z**6 + 19 * z**4 + 17 * z**2 - 15) / (384 * f**3)
    )


def mann_kendall(points: list[Point], sorted_slopes: list[float]) -> tuple[float, float]:
    """One-sided p values of the hypotheses "no upward trend" and "no downward trend". The variance is widened by the
    significant positive autocorrelation of the ranks of the detrended series (Hamed and Rao 1998)."""
    n = len(points)
    s = len(sorted_slopes) - bisect_right(sorted_slopes, 0.0) - bisect_left(sorted_slopes, 0.0)
    slope = middle(sorted_slopes)
    ties = Counter(p.value for p in points).values()
    variance = (n * (n - 1) * (2 * n + 5) - sum(k * (k - 1) * (2 * k + 5) for k in ties if k > 1)) / 18.0
    if variance <= 0:
        return 1.0, 1.0
    ranks = _ranks([p.value - slope * p.t for p in points])
    significant = 1.645 / math.sqrt(n)
    inflation = 1.0
    for lag in range(1, n // 3):
        r = _autocorrelation(ranks, lag)
        if r < significant:
            break
        inflation += 2.0 / (n * (n - 1) * (n - 2)) * (n - lag) * (n - lag - 1) * (n - lag - 2) * r
    z = (s - (s > 0) + (s < 0)) / math.sqrt(variance * inflation)
    up = 1.0 - NormalDist().cdf(z)
    return up, 1.0 - up


def _ranks(values: Sequence[float]) -> list[float]:
    """The rank of each value; equal values have the mean of their ranks."""
    ordered = sorted(values)
    return [(bisect_left(ordered, v) + bisect_right(ordered, v)) / 2.0 for v in values]


def _autocorrelation(values: Sequence[float], lag: int) -> float:
    mean = sum(values) / len(values)
    centred = [v - mean for v in values]
    total = sum(c * c for c in centred)
    return sum(a * b for a, b in zip(centred, centred[lag:], strict=False)) / total if total > 0 else 0.0


# --- lower envelope -----------------------------------------------------------------------------------------------


def lows(points: list[Point]) -> list[Point]:
    """The lowest point of each of LOWS segments of equal length."""
    return [Point(p.t, p.low, p.low) for p in (min(part, key=lambda p: p.low) for part in _segments(points, LOWS))]


def _segments(points: list[Point], count: int) -> list[list[Point]]:
    """The points by segments of equal length; segments without points are left out."""
    start, width = points[0].t, (points[-1].t - points[0].t) / count
    found: dict[int, list[Point]] = {}
    for point in points:
        found.setdefault(min(int((point.t - start) / width), count - 1), []).append(point)
    return list(found.values())


def envelope_slope(points: list[Point]) -> float:
    """The slope of the minima, bytes a second: the lower of two estimates (second half against first half, last third
    against first third). The minimum of a rising line stands where its segment begins."""
    start, seconds = points[0].t, points[-1].t - points[0].t
    found = []
    for share in (1 / 2, 2 / 3):
        early = min(p.low for p in points if p.t <= start + (1 - share) * seconds)
        late = min(p.low for p in points if p.t >= start + share * seconds)
        found.append((late - early) / (share * seconds))
    return min(found)


def span(points: list[Point]) -> float:
    """The highest value less the lowest."""
    return max(p.value for p in points) - min(p.value for p in points)


def largest_fall(points: list[Point]) -> float:
    """The largest fall from a value to any later one."""
    top, fall = points[0].value, 0.0
    for point in points:
        top = max(top, point.value)
        fall = max(fall, top - point.value)
    return fall


def returns(points: list[Point]) -> bool:
    """Whether the series rises and falls: its largest fall is more than half of its span, which is not just noise."""
    whole = span(points)
    return whole >= MIN_RISE and largest_fall(points) > 0.5 * whole


# --- jumps --------------------------------------------------------------------------------------------------------


def is_step(points: list[Point]) -> bool:
    """Whether one or two jumps make up most of the rise, or two levels fit far better than a line."""
    whole = rise(points)
    if whole <= 0:
        return False
    at, jump = _largest_jump(points)
    if jump > JUMP_SHARE * whole:
        before, after = [p.value for p in points[:at]], [p.value for p in points[at:]]
        if jump > 2.0 * max(_spread(before), _spread(after)) or _two_levels(points) < 0.6:
            return True
        rest = without_largest_jump(points)
        second = _largest_jump(rest)[1]
        remaining = _spread([p.value for p in without_largest_jump(rest)])
        if jump + second > TWO_JUMPS_SHARE * whole and remaining < 0.2 * whole:
            return True
    return _two_levels(points) < 0.4


def _largest_jump(points: list[Point]) -> tuple[int, float]:
    """Index and size of the largest rise from one point to the next. Levels are medians of three points on either side,
    so a spike is not a jump. The rise of a line over the same time (a gap, or the distance of the medians of a short
    series) is subtracted."""
    values, times = [p.value for p in points], [p.t for p in points]
    step = median([b - a for a, b in itertools.pairwise(times)])
    few, k = len(points) < FEW_POINTS, _edge_points(points)
    seconds = median(times[-k:]) - median(times[:k]) if few else times[-1] - times[0]
    slope = max(rise(points), 0.0) / max(seconds, step)
    best, where = 0.0, 1
    for i in range(2, len(values) - 1):
        before, after = slice(max(0, i - 3), i), slice(i, i + 3)
        meanwhile = median(times[after]) - median(times[before]) - step if few else times[i] - times[i - 1] - 3 * step
        jump = median(values[after]) - median(values[before]) - slope * max(meanwhile, 0.0)
        if jump > best:
            best, where = jump, i
    return where, best


def without_largest_jump(points: list[Point]) -> list[Point]:
    """The series with the points after its largest jump lowered by the jump."""
    at, jump = _largest_jump(points)
    return points[:at] + [Point(p.t, p.value - jump, p.low - jump) for p in points[at:]]


def _two_levels(points: list[Point]) -> float:
    """The squared error of the best fit by two levels over that of the best line: above 1 for a line, near 0 for a
    step."""
    n = len(points)
    origin_t, origin_v = points[0].t, points[0].value
    t = [p.t - origin_t for p in points]
    v = [p.value - origin_v for p in points]
    sum_v, sum_vv = sum(v), sum(x * x for x in v)
    mean_t, mean_v = sum(t) / n, sum_v / n
    stt = sum((x - mean_t) ** 2 for x in t)
    stv = sum((x - mean_t) * (y - mean_v) for x, y in zip(t, v, strict=True))
    svv = sum_vv - n * mean_v * mean_v
    line = svv - stv * stv / stt if stt > 0 else svv
    left, best = 0.0, svv
    for i in range(1, n):
        left += v[i - 1]
        best = min(best, sum_vv - left * left / i - (sum_v - left) ** 2 / (n - i))
    return best / line if line > 1.0 else math.inf


# --- levels and bend ----------------------------------------------------------------------------------------------


def rise(points: list[Point]) -> float:
    """The last level less the first."""
    return end_level(points) - _start_level(points)


def _start_level(points: list[Point]) -> float:
    return median([p.value for p in points[: _edge_points(points)]])


def end_level(points: list[Point]) -> float:
    """The median of the last tenth of the points, three at least."""
    return median([p.value for p in points[-_edge_points(points) :]])


def _edge_points(points: list[Point]) -> int:
    return max(3, len(points) // 10)


def bend(points: list[Point]) -> float:
    """The rise of the second half over that of the first: 1 for a line, 0 for a series that has leveled off."""
    at_middle = _level_at(points, (points[0].t + points[-1].t) / 2.0)
    first, second = at_middle - _start_level(points), end_level(points) - at_middle
    return second / first if first > 0 else math.inf


def bend_of_minima(points: list[Point]) -> float:
    """The bend of the lower envelope."""
    start, count = points[0].t, 2 * HALF_MINIMA
    width = (points[-1].t - start) / count
    minima = [(min(int((part[0].t - start) / width), count - 1), part) for part in _segments(points, count)]
    return bend(
        [Point(start + (at + 0.5) * width, low, low) for at, part in minima for low in [min(p.low for p in part)]]
    )


def _level_at(points: list[Point], t: float) -> float:
    """The median of the points within a twentieth of the window; in a gap, the line between its edges."""
    near = (points[-1].t - points[0].t) / 20.0
    there = [p.value for p in points if abs(p.t - t) <= near]
    if len(there) >= 3:
        return median(there)
    after = min(max(bisect_left([p.t for p in points], t), 1), len(points) - 1)
    a, b = points[after - 1], points[after]
    return a.value + (b.value - a.value) * (t - a.t) / (b.t - a.t) if b.t > a.t else a.value


def noise(points: list[Point]) -> float:
    """The standard deviation from point to point, by second differences: a smooth curve has none."""
    v = [p.value for p in points]
    return _spread([v[i + 1] - 2 * v[i] + v[i - 1] for i in range(1, len(v) - 1)]) / math.sqrt(6.0)


def _spread(values: Sequence[float]) -> float:
    """A robust standard deviation: 1.48 times the median absolute deviation."""
    if len(values) < 3:
        return 0.0
    centre = median(values)
    return 1.4826 * median([abs(v - centre) for v in values])


def median(values: Sequence[float]) -> float:
    """0 for an empty sequence."""
    return middle(sorted(values))


def middle(ordered: Sequence[float]) -> float:
    """The median of a sorted sequence; 0 if it is empty."""
    at = len(ordered) // 2
    if not ordered:
        return 0.0
    return ordered[at] if len(ordered) % 2 else (ordered[at - 1] + ordered[at]) / 2.0
