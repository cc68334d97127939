"""The shape of one line, and what the line alone allows to say. Pure: the same points give the same answer.

A line is called `linear` only when five tests of the same readings agree, each of which a kind of healthy memory fails
(they are not independent: docs/calibration.md has what they do together):

1. the rate's interval (Theil-Sen slope; errors that are an autoregression) lies above the minimum effect: noise;
2. Mann-Kendall, its variance corrected for autocorrelation, sees an upward trend: slow wobble;
3. the lower envelope (rolling minima) rises along: saw-teeth, bursts;
4. no single jump makes up most of the rise: a step;
5. the second half rises like the first: a warm-up that levels off.

RSS grows in chunks (144 KiB to some MiB at a time): at least three rises make a line, fewer are a `step`. A line that
starts with a warm-up, or is broken by one jump, is judged without that part. A straight end of any length, from 10 s
and 8 samples on, that rises above all that was before it is judged by itself: a leak that began late.

No shape that stands for an end of growth has a rate whose interval lies above the minimum effect: the rate is then that
of the flat end of the window or, where there is none, the shape is `irregular`. A cache that fills for the whole window
*is* linear; what tells it from a leak is not in the line.
"""

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

from memforensics.case.model import Rate, Shape, Trend, Verdict
from memforensics.units import KIB, MIB

MIN_SAMPLES = 8
MIN_SECONDS = 7.0
MAX_POINTS = 80  # after thinning: pairwise slopes are quadratic in it
ALPHA = 0.01  # Mann-Kendall, one-sided, for `linear`
DOUBT_ALPHA = 0.05  # below it a rise that fails another look is `irregular`, not `flat`
ENVELOPE_SHARE = 0.5  # of the rate: how much of it the rolling minima must show
JUMP_SHARE = 0.45  # of the rise: more in one jump is a step; three even jumps have 0.33 each
TWO_JUMPS_SHARE = 0.85  # of the rise: more in two jumps is two steps, not yet a line
BENT_SHARE = 0.42  # second half's rise over the first's: an exponential warm-up of two time constants has 0.37
FEW_POINTS = 16
MINIMA = 5  # of each half of a window
STRAIGHT_SHARE = 0.8  # the same, asked of what is left after a warm-up was cut off
CUTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # of the window, tried in turn as the end of a warm-up
CURVED_SHARE = 1.5  # a line whose second half rises so much more is looked at from its bend on
LATE_SECONDS = 10.0  # the shortest end that is judged by itself
LATE_RATIO = 1.4  # how much longer the next one is
LATE_SHARE = 0.95  # of the window: the longest
MIN_BEFORE = 4  # samples
MOVED_LENGTHS = 3.0  # of the end: how far back it is asked how much the level moved about, and at most half way
MOVED_SHARE = 1.0
ENDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # of the window, tried in turn as the beginning of a flat end
ENDED = (0.5, 0.6, 0.7, 0.8)  # the same, of a line
ENDED_SHARE = 0.25
SETTLED_SHARE = 0.25  # of the rate of the whole: more at the end has not settled
SURE = 0.99  # of the interval that must lie above, for `linear`
SURE_OF_MANY = 0.998  # the same, of an end that was chosen
WALK = 1.9  # over the root of the number of points: autocorrelation that is so close to 1 is a random walk
LOWS = 20
GIVEN_BACK_SHARE = 0.25  # of the span, at once: the lower envelope is asked for its rate
MIN_RISE = 512 * KIB  # in the window; less is the working of any process


def minimum_rate(level_bytes: float, seconds: float) -> float:
    """The smallest rate that matters, bytes a minute: 1 MiB, or 0.05% of the level where that is more. In windows over
    ten minutes it falls with the window, as far as 64 KiB a minute (90 MiB a day): a long look is owed a finer
    answer."""
    finer = min(1.0, 600.0 / max(seconds, 1.0))
    return max(64 * KIB, MIB * finer, 0.0005 * level_bytes * finer)


def fit_trend(
    times_s: Sequence[float],
    values_bytes: Sequence[float],
    *,
    confidence: float = 0.95,
    minimum_effect: float | None = None,
) -> Trend:
    """The shape of a series. Times in seconds, rising, in any spacing and with gaps; rates in bytes a minute.
    `minimum_effect`: the rate below which nothing matters (default: `minimum_rate`)."""
    times_s, values_bytes = _rising(times_s, values_bytes)
    points = _without_strays(_thin(times_s, values_bytes))
    if not points:
        return Trend(shape="too-short", rate=None, p=None, samples=0, seconds=0.0, seconds_to_decide=2 * MIN_SECONDS)
    seconds = times_s[-1] - times_s[0]
    if len(times_s) < MIN_SAMPLES or seconds < MIN_SECONDS:
        missing = max(MIN_SECONDS - seconds, (MIN_SAMPLES - len(times_s)) * seconds / max(len(times_s) - 1, 1), 1.0)
        return Trend(
            shape="too-short", rate=None, p=None, samples=len(times_s), seconds=seconds, seconds_to_decide=missing
        )
    floor = minimum_effect if minimum_effect is not None else minimum_rate(_median([p.value for p in points]), seconds)
    judge_once = _Judge(floor, confidence)
    trend = judge_once.whole(points)
    if trend.shape != "linear" or _bend(points) > CURVED_SHARE:
        late = _late(times_s, values_bytes, judge_once, minimum_effect)
        if late is not None and (trend.shape != "linear" or trend.cut_seconds or _differ(late, trend)):
            trend = late
    return replace(judge_once.consistent(trend, points), samples=len(times_s), seconds=seconds)


def _late(
    times: Sequence[float], values: Sequence[float], judge_once: "_Judge", minimum_effect: float | None
) -> Trend | None:
    """A line that begins anywhere in the window: a straight end that rises above all that was before it, and by more
    than the level moved about before. Ends of many lengths are tried, the shortest first; the line of the first that is
    straight tells where it began, and the end from there on is judged."""
    first, last = times[0], times[-1]
    highest = list(itertools.accumulate(values, max))
    length = LATE_SECONDS
    while length <= LATE_SHARE * (last - first):
        at = bisect_left(times, last - length)
        length *= LATE_RATIO
        if len(times) - at < MIN_SAMPLES or at < MIN_BEFORE or last - times[at] < 0.8 * LATE_SECONDS:
            continue
        tail = values[at:]
        middle = (times[at - 1] + first) / 2.0
        back = min(bisect_left(times, max(times[at] - MOVED_LENGTHS * (last - times[at]), middle)), at - MIN_BEFORE)
        moved = max(values[back:at]) - min(values[back:at])
        risen = _median(tail[-max(3, len(tail) // 10) :]) - highest[at - 1]
        if risen < max(MIN_RISE, MOVED_SHARE * moved):
            continue
        found = _straight(times, values, at, judge_once, minimum_effect)
        if found is None:
            continue
        earlier = _began(times, values, at, found)
        if MIN_BEFORE <= earlier < at:
            found = _straight(times, values, earlier, judge_once, minimum_effect) or found
        return found
    return None


def _began(times: Sequence[float], values: Sequence[float], at: int, trend: Trend) -> int:
    """Where the line that is straight from there on began: before it, two readings in a row lie further off than any
    that belongs to it."""
    assert trend.rate is not None
    slope = trend.rate.estimate / 60.0
    off = [v - slope * t for t, v in zip(times[at:], values[at:], strict=True)]
    level = _median(off)
    most = max(abs(o - level) for o in off)
    far = 0
    for i in range(at - 1, -1, -1):
        far = far + 1 if abs(values[i] - slope * times[i] - level) > most else 0
        if far == 2:
            return i + 2
    return 0


def _straight(
    times: Sequence[float], values: Sequence[float], at: int, judge_once: "_Judge", minimum_effect: float | None
) -> Trend | None:
    """The end from there on, where it is a line by itself."""
    points = _thin(times[at:], values[at:])
    if _bend(points) < STRAIGHT_SHARE:
        return None
    floor = minimum_effect
    if floor is None:
        floor = minimum_rate(_median([p.value for p in points]), times[-1] - times[at])
    trend = replace(judge_once, floor=floor, sure=SURE_OF_MANY).part(points)
    if trend.shape != "linear":
        return None
    return replace(trend, cut_seconds=times[at] - times[0])


def _differ(end: Trend, whole: Trend) -> bool:
    """Whether the end has a rate of its own: noise alone bends a line, but not by so much."""
    if end.rate is None or whole.rate is None:
        return False
    return end.rate.low > whole.rate.high or end.rate.high < whole.rate.low


def rises(trend: Trend, level_bytes: float, seconds: float) -> bool:
    """Whether the rate's interval lies above what matters: such memory is never `steady` or `bounded`."""
    return trend.rate is not None and trend.rate.low > minimum_rate(level_bytes, seconds)


def verdict_of_trend(trend: Trend) -> Verdict:
    """What a line alone allows to say. Never `leak`: that needs something beside the line."""
    if trend.shape in ("too-short", "irregular"):
        return "insufficient-data"
    if trend.shape == "linear":
        return "growing"
    if trend.shape == "plateau":
        return "bounded"
    return "steady"


# --- points -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Point:
    """Some neighbouring samples: their median, and the least of them for the lower envelope."""

    t: float  # seconds
    value: float
    low: float


def _without_strays(points: list[_Point]) -> list[_Point]:
    """One or two points that stand alone before a long gap say nothing of a line's shape: a jump, and a line that went
    on unseen, look alike."""
    if len(points) <= MIN_SAMPLES:
        return points
    usual = _median([b.t - a.t for a, b in itertools.pairwise(points)])
    for lone in (2, 1):
        gap = points[lone].t - points[lone - 1].t
        if gap > max(5.0 * usual, 0.2 * (points[-1].t - points[0].t)):
            return points[lone:]
    return points


def _rising(times: Sequence[float], values: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """Without what a damaged case may hold: times that do not rise, and numbers without an end."""
    if len(times) != len(values):
        raise ValueError("a series needs a value for each time")
    if all(map(math.isfinite, (*times, *values))) and all(a < b for a, b in itertools.pairwise(times)):
        return times, values
    kept: list[tuple[float, float]] = []
    for t, v in zip(times, values, strict=True):
        if math.isfinite(t) and math.isfinite(v) and (not kept or t > kept[-1][0]):
            kept.append((t, v))
    return [t for t, _ in kept], [v for _, v in kept]


def _thin(times: Sequence[float], values: Sequence[float]) -> list[_Point]:
    """At most MAX_POINTS points, of bins of equal time; empty bins (gaps) give none."""
    if len(times) <= MAX_POINTS:
        return [_Point(t, float(v), float(v)) for t, v in zip(times, values, strict=True)]
    width = (times[-1] - times[0]) / MAX_POINTS or 1.0
    bins: dict[int, list[int]] = {}
    for i, t in enumerate(times):
        bins.setdefault(min(int((t - times[0]) / width), MAX_POINTS - 1), []).append(i)
    return [
        _Point(
            sum(times[i] for i in members) / len(members),
            _median([float(values[i]) for i in members]),
            float(min(values[i] for i in members)),
        )
        for members in bins.values()
    ]


# --- judging ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Judge:
    floor: float  # bytes a minute
    confidence: float
    sure: float = SURE

    def whole(self, points: list[_Point]) -> Trend:
        """The whole window; then, where it is bent or jumps, what is left without that part."""
        trend = self.part(points)
        if trend.shape == "linear" and (ended := self.ended(trend, points)) is not None:
            return ended
        slows = trend.shape == "linear" and _bend(points) < STRAIGHT_SHARE and not _returns(points)
        if trend.shape not in ("step", "plateau") and not slows:
            return trend
        if trend.shape == "step":
            mended = self.part(_without_largest_jump(points))
            if mended.shape == "linear":
                return mended
        start, seconds = points[0].t, points[-1].t - points[0].t
        for cut in CUTS:
            rest = [p for p in points if p.t >= start + cut * seconds]
            if len(rest) < MIN_SAMPLES or rest[-1].t - rest[0].t < MIN_SECONDS:
                break
            if _level(rest) <= max((p.value for p in points if p.t < rest[0].t), default=0.0):
                continue
            if _bend(rest) < STRAIGHT_SHARE:
                continue
            tail = replace(self, sure=SURE_OF_MANY).part(rest)
            if tail.shape != "linear":
                continue
            if not slows or _differ(tail, trend):
                return replace(tail, cut_seconds=rest[0].t - start)
        return trend

    def ended(self, trend: Trend, points: list[_Point]) -> Trend | None:
        """A line that stands still since some time within the window."""
        assert trend.rate is not None
        start, seconds = points[0].t, points[-1].t - points[0].t
        for cut in ENDED:
            rest = [p for p in points if p.t >= start + cut * seconds]
            if len(rest) < MIN_SAMPLES or rest[-1].t - rest[0].t < MIN_SECONDS:
                return None
            rate, _ = self.rate(rest)
            surely, _ = replace(self, confidence=self.sure).rate(rest)
            if surely.high < ENDED_SHARE * trend.rate.estimate and rate.low <= self.floor:
                return replace(
                    trend, shape="plateau", rate=rate, cut_seconds=rest[0].t - start, bound_bytes=_level(rest)
                )
        return None

    def consistent(self, trend: Trend, points: list[_Point]) -> Trend:
        """The same, but no shape that stands for an end of growth has a rate that lies above what matters: either the
        end of the window is flat, and its rate is the one to tell, or it cannot be told yet."""
        if trend.shape not in ("step", "plateau", "saw-tooth", "flat") or trend.rate is None:
            return trend
        if trend.shape != "plateau" and trend.rate.low <= self.floor:
            return trend
        start, seconds = points[0].t, points[-1].t - points[0].t
        for cut in ENDS:
            rest = [p for p in points if p.t >= start + cut * seconds]
            if len(rest) < MIN_SAMPLES:
                break
            rate, _ = self.rate(rest)
            if rate.low <= self.floor and rate.estimate < SETTLED_SHARE * max(trend.rate.estimate, 0.0):
                level = _level(rest) if trend.shape == "plateau" else None
                return replace(trend, rate=rate, cut_seconds=rest[0].t - start, bound_bytes=level)
        if trend.rate.low <= self.floor:
            return trend
        return replace(trend, shape="irregular", seconds_to_decide=trend.seconds_to_decide or seconds)

    def rate(self, points: list[_Point]) -> tuple[Rate, float]:
        """The rate of a stretch, and the lower limit that it must pass to be called a line."""
        return self.rate_of(points, _slopes(points))

    def rate_of(self, points: list[_Point], slopes: list[float]) -> tuple[Rate, float]:
        slope = _middle(slopes)
        error, freedom = _standard_error(points, slope)
        half, most = (_student((1.0 + c) / 2.0, freedom) * error * 60.0 for c in (self.confidence, self.sure))
        estimate = slope * 60.0
        return Rate(
            estimate=estimate, low=estimate - half, high=estimate + half, confidence=self.confidence
        ), estimate - most

    def part(self, points: list[_Point]) -> Trend:
        """One stretch, as it is."""
        seconds = points[-1].t - points[0].t
        slopes = _slopes(points)
        rate, surely = self.rate_of(points, slopes)
        estimate, low = rate.estimate, rate.low
        slope = estimate / 60.0
        up, down = _mann_kendall(points, slopes)

        def trend(shape: Shape, *, decide: float | None = None, bound: int | None = None) -> Trend:
            return Trend(
                shape=shape,
                rate=rate,
                p=up,
                samples=len(points),
                seconds=seconds,
                bound_bytes=bound,
                seconds_to_decide=decide,
            )

        if rate.high < -self.floor and down < ALPHA:
            return trend("falling")
        rise = _rise(points)
        if rise < MIN_RISE and estimate < self.floor:
            return trend("flat")
        if _is_step(points) and rise > self.floor * seconds / 60.0:
            return trend("step", decide=seconds)
        if max(rise, slope * seconds) < max(MIN_RISE, self.floor * seconds / 60.0):
            return trend("flat")
        envelope = _envelope_slope(points) * 60.0
        if envelope < ENVELOPE_SHARE * estimate or envelope < 0.5 * self.floor:
            return trend("saw-tooth" if _returns(points) else "flat")
        if rise > 2.0 * _noise(points) and _levels_off(points, rise):
            return trend("plateau", bound=_bound(points))
        if estimate > self.floor and up < ALPHA:
            if surely > 0.5 * self.floor:
                return trend("linear")
            lows = _lows(points) if _fall(points) > GIVEN_BACK_SHARE * _span(points) else []
            if len(lows) >= MIN_SAMPLES:
                below, surely = self.rate(lows)
                if below.estimate > self.floor and surely > 0.5 * self.floor:
                    rate = below
                    return trend("linear")
        if estimate > self.floor and up < DOUBT_ALPHA:
            narrower = ((estimate - low) / max(estimate - 0.5 * self.floor, 1.0)) ** (2 / 3)
            return trend("irregular", decide=seconds * min(max(narrower - 1.0, 0.25), 9.0))
        return trend("flat")


# --- the looks ----------------------------------------------------------------------------------------------------


def _slopes(points: list[_Point]) -> list[float]:
    """The slopes of all pairs, bytes a second, in order. Their median is Theil and Sen's estimate; how many of them
    rise is Mann and Kendall's count."""
    slopes = []
    for i, a in enumerate(points):
        t, v = a.t, a.value
        slopes += [(b.value - v) / (b.t - t) for b in points[i + 1 :] if b.t > t]
    slopes.sort()
    return slopes


def _standard_error(points: list[_Point], slope: float) -> tuple[float, int]:
    """The standard error of the slope, bytes a second, and its degrees of freedom, when the residuals are an
    autoregression of the first order. Its coefficient is corrected for the bias of short series (Kendall 1954), and
    taken for 1 (a random walk) when it cannot be told from it (Perron and Yabu 2009): too wide, rather than too
    narrow."""
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
    if keep > 1.0 - WALK / math.sqrt(n):
        keep = 1.0
    noise = sum((b - keep * a) ** 2 for a, b in itertools.pairwise(residuals)) / max(n - 3, 1)
    stt = sum((x - mean_t) ** 2 for x in t)
    carried = variance = 0.0  # of the slope, per shock: what each shock adds to it, from the last back
    for x in reversed(t[1:]):
        carried = (x - mean_t) / stt + keep * carried
        variance += carried * carried
    if keep < 1.0:
        carried = (t[0] - mean_t) / stt + keep * carried
        variance += carried * carried / (1.0 - keep * keep)
    # Readings that resemble each other count for fewer; a walk's shocks count in full.
    freedom = n - 3 if keep >= 1.0 else max(round((n - 3) * (1.0 - keep) / (1.0 + keep)), 3)
    return math.sqrt(noise * variance), freedom


def _student(p: float, freedom: int) -> float:
    """Student's quantile, by expansion about the normal one (Abramowitz and Stegun 26.7.5)."""
    z, f = NormalDist().inv_cdf(p), float(max(freedom, 1))
    return z * (
        1.0
        + (z**2 + 1) / (4 * f)
        + (5 * z**4 + 16 * z**2 + 3) / (96 * f**2)
        + (3 * z**6 + 19 * z**4 + 17 * z**2 - 15) / (384 * f**3)
    )


def _lows(points: list[_Point]) -> list[_Point]:
    """The lower envelope by stretches of equal length, LOWS in all."""
    start, width = points[0].t, (points[-1].t - points[0].t) / LOWS
    lowest: dict[int, _Point] = {}
    for point in points:
        at = min(int((point.t - start) / width), LOWS - 1)
        if at not in lowest or point.low < lowest[at].low:
            lowest[at] = point
    return [_Point(p.t, p.low, p.low) for p in lowest.values()]


def _mann_kendall(points: list[_Point], slopes: list[float]) -> tuple[float, float]:
    """One-sided p of no upward and of no downward trend. The variance is widened by the autocorrelation of the ranks
    of the detrended series (Hamed and Rao 1998), its significant positive lags only."""
    n = len(points)
    values = [p.value for p in points]
    s = len(slopes) - bisect_right(slopes, 0.0) - bisect_left(slopes, 0.0)
    slope = _middle(slopes)
    ties: dict[float, int] = {}
    for v in values:
        ties[v] = ties.get(v, 0) + 1
    variance = (n * (n - 1) * (2 * n + 5) - sum(k * (k - 1) * (2 * k + 5) for k in ties.values() if k > 1)) / 18.0
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


def _envelope_slope(points: list[_Point]) -> float:
    """How fast the minima rise, bytes a second: second half against first, and last third against first, the less of
    the two. A minimum of a rising line stands where its stretch begins."""
    start, seconds = points[0].t, points[-1].t - points[0].t
    slopes = []
    for share in (1 / 2, 2 / 3):
        early = min(p.low for p in points if p.t <= start + (1 - share) * seconds)
        late = min(p.low for p in points if p.t >= start + share * seconds)
        slopes.append((late - early) / (share * seconds))
    return min(slopes)


def _levels_off(points: list[_Point], rise: float) -> bool:
    """Whether its second half rises less. Where in a saw-tooth a window ends says nothing of that: there its minima
    are asked, and a rise within one tooth says nothing either."""
    if not _returns(points):
        return _bend(points) < BENT_SHARE
    return rise > _fall(points) and _bend(_minima(points)) < BENT_SHARE


def _minima(points: list[_Point]) -> list[_Point]:
    """The lower envelope by stretches of equal length, of which each half of the window has MINIMA."""
    start, width = points[0].t, (points[-1].t - points[0].t) / (2 * MINIMA)
    stretches: dict[int, list[_Point]] = {}
    for point in points:
        stretches.setdefault(min(int((point.t - start) / width), 2 * MINIMA - 1), []).append(point)
    return [
        _Point(start + (at + 0.5) * width, low, low)
        for at, members in stretches.items()
        for low in [min(p.low for p in members)]
    ]


def _returns(points: list[_Point]) -> bool:
    """Whether it went up and came back, rather than wobbled: more than half of its range given back at once."""
    span = _span(points)
    return span >= MIN_RISE and _fall(points) > 0.5 * span


def _span(points: list[_Point]) -> float:
    return max(p.value for p in points) - min(p.value for p in points)


def _fall(points: list[_Point]) -> float:
    """The most that was given back, from a top to what came after."""
    top, fall = points[0].value, 0.0
    for point in points:
        top = max(top, point.value)
        fall = max(fall, top - point.value)
    return fall


def _is_step(points: list[_Point]) -> bool:
    """Whether one or two jumps make up most of the rise, or two levels fit far better than a line."""
    rise = _rise(points)
    if rise <= 0:
        return False
    at, jump = _largest_jump(points)
    if jump > JUMP_SHARE * rise:
        before, after = [p.value for p in points[:at]], [p.value for p in points[at:]]
        if jump > 2.0 * max(_spread(before), _spread(after)) or _two_levels(points) < 0.6:
            return True
        rest = _without_largest_jump(points)
        second = _largest_jump(rest)[1]
        left = _spread([p.value for p in _without_largest_jump(rest)])
        if jump + second > TWO_JUMPS_SHARE * rise and left < 0.2 * rise:
            return True
    return _two_levels(points) < 0.4


def _largest_jump(points: list[_Point]) -> tuple[int, float]:
    """Where the level rises most from one point to the next, and by how much: medians of three points either side, so
    a spike is none. What a line would have risen across a gap is taken off; of a few points, whose medians lie a good
    part of the window apart, what it would have risen between those."""
    values, times = [p.value for p in points], [p.t for p in points]
    step = _median([b - a for a, b in itertools.pairwise(times)])
    few, k = len(points) < FEW_POINTS, _ends(points)
    seconds = _median(times[-k:]) - _median(times[:k]) if few else times[-1] - times[0]
    slope = max(_rise(points), 0.0) / max(seconds, step)
    best, where = 0.0, 1
    for i in range(2, len(values) - 1):
        before, after = slice(max(0, i - 3), i), slice(i, i + 3)
        meanwhile = _median(times[after]) - _median(times[before]) - step if few else times[i] - times[i - 1] - 3 * step
        jump = _median(values[after]) - _median(values[before]) - slope * max(meanwhile, 0.0)
        if jump > best:
            best, where = jump, i
    return where, best


def _without_largest_jump(points: list[_Point]) -> list[_Point]:
    at, jump = _largest_jump(points)
    return points[:at] + [_Point(p.t, p.value - jump, p.low - jump) for p in points[at:]]


def _two_levels(points: list[_Point]) -> float:
    """The squared error of the best two levels over that of the best straight line: over 1 for a line, near 0 for a
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


def _rise(points: list[_Point]) -> float:
    """From the first level to the last: medians of a tenth of the window (three points at least) at either end."""
    k = _ends(points)
    values = [p.value for p in points]
    return _median(values[-k:]) - _median(values[:k])


def _ends(points: list[_Point]) -> int:
    """How many points at either end tell the level there."""
    return max(3, len(points) // 10)


def _bend(points: list[_Point]) -> float:
    """The rise of the second half over that of the first. 1 for a line; 0 for one that has levelled off."""
    k = max(3, len(points) // 10)
    values = [p.value for p in points]
    at_middle = _level_at(points, (points[0].t + points[-1].t) / 2.0)
    first, second = at_middle - _median(values[:k]), _median(values[-k:]) - at_middle
    return second / first if first > 0 else math.inf


def _level_at(points: list[_Point], t: float) -> float:
    """The level at a time: the median of what was read within a twentieth of the window; in a gap, what lies between
    its edges."""
    near = (points[-1].t - points[0].t) / 20.0
    there = [p.value for p in points if abs(p.t - t) <= near]
    if len(there) >= 3:
        return _median(there)
    after = min(max(bisect_left([p.t for p in points], t), 1), len(points) - 1)
    a, b = points[after - 1], points[after]
    return a.value + (b.value - a.value) * (t - a.t) / (b.t - a.t) if b.t > a.t else a.value


def _bound(points: list[_Point]) -> int | None:
    """Where a bent line levels off, by its halves: an exponential's rises fall by the same factor each half."""
    ratio = _bend(points)
    if not 0.0 <= ratio < 1.0:
        return _level(points)
    rise = _rise(points)
    return round(_level(points) + rise * ratio * ratio / (1.0 - ratio * ratio))


def _level(points: list[_Point]) -> int:
    """The level at the end."""
    return round(_median([p.value for p in points[-max(3, len(points) // 10) :]]))


# --- arithmetic ---------------------------------------------------------------------------------------------------


def _median(values: Sequence[float]) -> float:
    return _middle(sorted(values))


def _middle(ordered: Sequence[float]) -> float:
    """The median of what is in order; 0 of nothing."""
    middle = len(ordered) // 2
    if not ordered:
        return 0.0
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2.0


def _spread(values: Sequence[float]) -> float:
    """A robust standard deviation: 1.48 times the median distance from the median."""
    if len(values) < 3:
        return 0.0
    centre = _median(values)
    return 1.4826 * _median([abs(v - centre) for v in values])


def _noise(points: list[_Point]) -> float:
    """The size of the point-to-point wobble: second differences, so that any smooth curve counts as none."""
    v = [p.value for p in points]
    return _spread([v[i + 1] - 2 * v[i] + v[i - 1] for i in range(1, len(v) - 1)]) / math.sqrt(6.0)


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    for rank, i in enumerate(order):
        ranks[i] = float(rank)
    return ranks


def _autocorrelation(values: Sequence[float], lag: int) -> float:
    n = len(values)
    mean = sum(values) / n
    centred = [v - mean for v in values]
    total = sum(c * c for c in centred)
    return sum(a * b for a, b in zip(centred, centred[lag:], strict=False)) / total if total > 0 else 0.0


def _correlation_length(residuals: Sequence[float]) -> int:
    """The lag at which neighbours have ceased to resemble each other, in points."""
    for lag in range(1, len(residuals) // 3):
        if _autocorrelation(residuals, lag) < 0.2:
            return lag
    return max(1, len(residuals) // 3)
