"""The shape of one series, and the verdict that the series alone allows. Pure: the same points give the same answer.

A series is `linear` only if five tests of it agree, each of which some kind of healthy memory fails (they are not
independent; docs/calibration.md has their joint error rates):

1. the interval of the rate (Theil-Sen slope with autoregressive errors) lies above the minimum rate: excludes noise;
2. the Mann-Kendall test, with its variance corrected for autocorrelation, shows an upward trend: excludes slow drift;
3. the lower envelope (rolling minima) rises too: excludes saw-teeth and bursts;
4. no single jump makes up most of the rise: excludes a step;
5. the second half rises like the first: excludes a warm-up that levels off.

RSS grows in chunks of 144 KiB to some MiB, so a line needs three rises; fewer are a `step`. A line after a warm-up, or
with one jump, is judged without that part. A straight end of the window, at least 10 s and 8 samples long, that rises
above all values before it is judged by itself: a leak that began late.

A shape that means an end of growth never has a rate whose interval lies above the minimum rate. If the end of the
window is flat, the rate is that of the end; if not, the shape is `irregular`. A cache that fills during the whole
window is `linear`; the series does not distinguish it from a leak."""

import itertools
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from memforensics.analysis.line_statistics import (
    MIN_RISE,
    Point,
    bend,
    bend_of_minima,
    binned,
    end_level,
    envelope_slope,
    is_step,
    largest_fall,
    lows,
    mann_kendall,
    median,
    middle,
    noise,
    returns,
    rise,
    slopes,
    span,
    standard_error,
    student_quantile,
    without_largest_jump,
)
from memforensics.case.model import Rate, Trend, Verdict
from memforensics.units import KIB, MIB

MIN_SAMPLES = 8
MIN_SECONDS = 7.0
ALPHA = 0.01  # Mann-Kendall, one-sided, for `linear`
DOUBT_ALPHA = 0.05  # a rise below it that fails another test is `irregular`, not `flat`
LINE_CONFIDENCE = 0.99  # of the lower limit of the rate, for `linear`
SELECTED_CONFIDENCE = 0.998  # the same, for an end of the window that was selected among several
ENVELOPE_SHARE = 0.5  # of the rate: the minima must rise by at least this
BENT_SHARE = 0.42  # rise of the second half over the first; an exponential warm-up of two time constants has 0.37
STRAIGHT_SHARE = 0.8  # the same, required of what remains after a warm-up
CURVED_SHARE = 1.5  # the same: above it, the window may have a late line
GIVEN_BACK_SHARE = 0.25  # of the span: after a larger fall the rate of the lower envelope counts
WARM_UP_ENDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # of the window, tried in turn
FLAT_STARTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # of the window, tried in turn
LINE_FLAT_STARTS = (0.5, 0.6, 0.7, 0.8)  # the same, for a line
FLAT_SHARE = 0.25  # of the rate of the line: its flat end has less
SETTLED_SHARE = 0.25  # of the rate of the window: an end with more has not settled
LATE_SECONDS = 10.0  # the shortest end that is judged by itself
LATE_RATIO = 1.4  # length of each end over the one before
LATE_SHARE = 0.95  # of the window: the longest end
MIN_BEFORE = 4  # samples before the end
BEFORE_LENGTHS = 3.0  # of the end: the stretch before it whose range counts, up to half of the time before
BEFORE_SHARE = 1.0  # of that range: the end must rise by more


def minimum_rate(level_bytes: float, seconds: float) -> float:
    """The smallest rate that matters, in bytes a minute: 1 MiB, or 0.05% of the level if that is more. In windows
    longer than ten minutes it falls with their length, down to 64 KiB a minute (90 MiB a day)."""
    finer = min(1.0, 600.0 / max(seconds, 1.0))
    return max(64 * KIB, MIB * finer, 0.0005 * level_bytes * finer)


def fit_trend(
    times_s: Sequence[float],
    values_bytes: Sequence[float],
    *,
    confidence: float = 0.95,
    minimum_effect: float | None = None,
) -> Trend:
    """The trend of a series. Times in seconds, rising, with any spacing and gaps; rates in bytes a minute.
    `minimum_effect`: the smallest rate that matters (default: `minimum_rate`)."""
    times_s, values_bytes = _valid(times_s, values_bytes)
    points = _without_stray_start(binned(times_s, values_bytes))
    seconds = times_s[-1] - times_s[0] if points else 0.0
    if len(times_s) < MIN_SAMPLES or seconds < MIN_SECONDS:
        missing = max(MIN_SECONDS - seconds, (MIN_SAMPLES - len(times_s)) * seconds / max(len(times_s) - 1, 1), 1.0)
        return Trend(
            shape="too-short",
            rate=None,
            p=None,
            samples=len(times_s),
            seconds=seconds,
            seconds_to_decide=missing if points else 2 * MIN_SECONDS,
        )
    classifier = _Classifier(_floor(points, seconds, minimum_effect), confidence)
    trend = classifier.window(points)
    if trend.shape != "linear" or bend(points) > CURVED_SHARE:
        late = _late_line(times_s, values_bytes, classifier, minimum_effect)
        if late is not None and (trend.shape != "linear" or trend.cut_seconds or _rates_differ(late, trend)):
            trend = late
    return replace(classifier.consistent(trend, points), samples=len(times_s), seconds=seconds)


def verdict_of_trend(trend: Trend) -> Verdict:
    """The verdict that a series alone allows. Never `leak`, which needs other evidence."""
    if trend.shape in ("too-short", "irregular"):
        return "insufficient-data"
    if trend.shape == "linear":
        return "growing"
    if trend.shape == "plateau":
        return "bounded"
    return "steady"


# --- input --------------------------------------------------------------------------------------------------------


def _valid(times: Sequence[float], values: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """The series without samples that only a damaged case has: times that do not rise, and numbers that are not
    finite."""
    if len(times) != len(values):
        raise ValueError("a series needs a value for each time")
    if all(map(math.isfinite, (*times, *values))) and all(a < b for a, b in itertools.pairwise(times)):
        return times, values
    kept: list[tuple[float, float]] = []
    for t, v in zip(times, values, strict=True):
        if math.isfinite(t) and math.isfinite(v) and (not kept or t > kept[-1][0]):
            kept.append((t, v))
    return [t for t, _ in kept], [v for _, v in kept]


def _without_stray_start(points: list[Point]) -> list[Point]:
    """The points without one or two that stand alone before a long gap: a jump and a line across the gap look alike."""
    if len(points) <= MIN_SAMPLES:
        return points
    usual = median([b.t - a.t for a, b in itertools.pairwise(points)])
    for lone in (2, 1):
        gap = points[lone].t - points[lone - 1].t
        if gap > max(5.0 * usual, 0.2 * (points[-1].t - points[0].t)):
            return points[lone:]
    return points


def _floor(points: list[Point], seconds: float, minimum_effect: float | None) -> float:
    return minimum_effect if minimum_effect is not None else minimum_rate(median([p.value for p in points]), seconds)


# --- a line that begins late --------------------------------------------------------------------------------------


def _late_line(
    times: Sequence[float], values: Sequence[float], classifier: "_Classifier", minimum_effect: float | None
) -> Trend | None:
    """A straight end of the window that rises above all values before it, and by more than the range of the values just
    before it. Ends are tried from the shortest to the longest. The line through the first one that is straight gives
    its onset, and the end from there on is judged."""
    first, last = times[0], times[-1]
    highest = list(itertools.accumulate(values, max))
    length = LATE_SECONDS
    while length <= LATE_SHARE * (last - first):
        at = bisect_left(times, last - length)
        length *= LATE_RATIO
        if len(times) - at < MIN_SAMPLES or at < MIN_BEFORE or last - times[at] < 0.8 * LATE_SECONDS:
            continue
        tail = values[at:]
        half_way = (times[at - 1] + first) / 2.0
        back = min(bisect_left(times, max(times[at] - BEFORE_LENGTHS * (last - times[at]), half_way)), at - MIN_BEFORE)
        moved = max(values[back:at]) - min(values[back:at])
        risen = median(tail[-max(3, len(tail) // 10) :]) - highest[at - 1]
        if risen < max(MIN_RISE, BEFORE_SHARE * moved):
            continue
        found = _straight_end(times, values, at, classifier, minimum_effect)
        if found is None:
            continue
        onset = _onset(times, values, at, found)
        if MIN_BEFORE <= onset < at:
            found = _straight_end(times, values, onset, classifier, minimum_effect) or found
        return found
    return None


def _onset(times: Sequence[float], values: Sequence[float], at: int, trend: Trend) -> int:
    """The index at which the line that is straight from `at` on begins: before it, two readings in a row are farther
    from the line than any reading after `at`."""
    assert trend.rate is not None
    slope = trend.rate.estimate / 60.0
    residuals = [v - slope * t for t, v in zip(times[at:], values[at:], strict=True)]
    level = median(residuals)
    most = max(abs(r - level) for r in residuals)
    far = 0
    for i in range(at - 1, -1, -1):
        far = far + 1 if abs(values[i] - slope * times[i] - level) > most else 0
        if far == 2:
            return i + 2
    return 0


def _straight_end(
    times: Sequence[float], values: Sequence[float], at: int, classifier: "_Classifier", minimum_effect: float | None
) -> Trend | None:
    """The trend from `at` on, if that part is linear."""
    points = binned(times[at:], values[at:])
    if bend(points) < STRAIGHT_SHARE:
        return None
    floor = _floor(points, times[-1] - times[at], minimum_effect)
    trend = replace(classifier, floor=floor, line_confidence=SELECTED_CONFIDENCE).classify(points)
    return replace(trend, cut_seconds=times[at] - times[0]) if trend.shape == "linear" else None


def _rates_differ(end: Trend, whole: Trend) -> bool:
    """Whether the intervals of the rates are disjoint: noise bends a line, but by less."""
    if end.rate is None or whole.rate is None:
        return False
    return end.rate.low > whole.rate.high or end.rate.high < whole.rate.low


# --- shape --------------------------------------------------------------------------------------------------------


def _ends(points: list[Point], starts: Sequence[float]) -> Iterator[list[Point]]:
    """The end of the window from each of these shares of it on."""
    first, seconds = points[0].t, points[-1].t - points[0].t
    for share in starts:
        yield [p for p in points if p.t >= first + share * seconds]


def _is_short(points: list[Point]) -> bool:
    return len(points) < MIN_SAMPLES or points[-1].t - points[0].t < MIN_SECONDS


@dataclass(frozen=True, slots=True)
class _Classifier:
    floor: float  # the smallest rate that matters, bytes a minute
    confidence: float  # of the interval of the rate
    line_confidence: float = LINE_CONFIDENCE

    def window(self, points: list[Point]) -> Trend:
        """The trend of the window; if it is bent or has a jump, of the part without the bend or the jump."""
        trend = self.classify(points)
        if trend.shape == "linear" and (flat := self.flat_end(trend, points)) is not None:
            return flat
        slows = trend.shape == "linear" and bend(points) < STRAIGHT_SHARE and not returns(points)
        if trend.shape not in ("step", "plateau") and not slows:
            return trend
        if trend.shape == "step":
            without_jump = self.classify(without_largest_jump(points))
            if without_jump.shape == "linear":
                return without_jump
        for rest in _ends(points, WARM_UP_ENDS):
            if _is_short(rest):
                break
            if round(end_level(rest)) <= max((p.value for p in points if p.t < rest[0].t), default=0.0):
                continue
            if bend(rest) < STRAIGHT_SHARE:
                continue
            tail = replace(self, line_confidence=SELECTED_CONFIDENCE).classify(rest)
            if tail.shape == "linear" and (not slows or _rates_differ(tail, trend)):
                return replace(tail, cut_seconds=rest[0].t - points[0].t)
        return trend

    def flat_end(self, trend: Trend, points: list[Point]) -> Trend | None:
        """A plateau, if the line has a flat end."""
        assert trend.rate is not None
        for rest in _ends(points, LINE_FLAT_STARTS):
            if _is_short(rest):
                return None
            rate, _ = self.rate(rest)
            wider, _ = replace(self, confidence=self.line_confidence).rate(rest)
            if wider.high < FLAT_SHARE * trend.rate.estimate and rate.low <= self.floor:
                cut, bound = rest[0].t - points[0].t, round(end_level(rest))
                return replace(trend, shape="plateau", rate=rate, cut_seconds=cut, bound_bytes=bound)
        return None

    def consistent(self, trend: Trend, points: list[Point]) -> Trend:
        """The trend. If its shape means an end of growth but its rate lies above the floor: with the rate of the flat
        end of the window, or as `irregular` if there is none."""
        if trend.shape not in ("step", "plateau", "saw-tooth", "flat") or trend.rate is None:
            return trend
        if trend.shape != "plateau" and trend.rate.low <= self.floor:
            return trend
        for rest in _ends(points, FLAT_STARTS):
            if len(rest) < MIN_SAMPLES:
                break
            rate, _ = self.rate(rest)
            if rate.low <= self.floor and rate.estimate < SETTLED_SHARE * max(trend.rate.estimate, 0.0):
                bound = round(end_level(rest)) if trend.shape == "plateau" else None
                return replace(trend, rate=rate, cut_seconds=rest[0].t - points[0].t, bound_bytes=bound)
        if trend.rate.low <= self.floor:
            return trend
        return replace(
            trend, shape="irregular", seconds_to_decide=trend.seconds_to_decide or points[-1].t - points[0].t
        )

    def rate(self, points: list[Point], sorted_slopes: list[float] | None = None) -> tuple[Rate, float]:
        """The rate, and the lower limit at `line_confidence`."""
        slope = middle(slopes(points) if sorted_slopes is None else sorted_slopes)
        error, freedom = standard_error(points, slope)
        half, most = (
            student_quantile((1.0 + c) / 2.0, freedom) * error * 60.0 for c in (self.confidence, self.line_confidence)
        )
        estimate = slope * 60.0
        return Rate(
            estimate=estimate, low=estimate - half, high=estimate + half, confidence=self.confidence
        ), estimate - most

    def classify(self, points: list[Point]) -> Trend:
        """The trend of these points, without cutting."""
        seconds = points[-1].t - points[0].t
        sorted_slopes = slopes(points)
        rate, lower_limit = self.rate(points, sorted_slopes)
        up, down = mann_kendall(points, sorted_slopes)
        trend = Trend(shape="flat", rate=rate, p=up, samples=len(points), seconds=seconds)
        if rate.high < -self.floor and down < ALPHA:
            return replace(trend, shape="falling")
        risen, enough = rise(points), self.floor * seconds / 60.0
        if risen < MIN_RISE and rate.estimate < self.floor:
            return trend
        if is_step(points) and risen > enough:
            return replace(trend, shape="step", seconds_to_decide=seconds)
        if max(risen, rate.estimate / 60.0 * seconds) < max(MIN_RISE, enough):
            return trend
        envelope = envelope_slope(points) * 60.0
        if envelope < ENVELOPE_SHARE * rate.estimate or envelope < 0.5 * self.floor:
            return replace(trend, shape="saw-tooth") if returns(points) else trend
        if risen > 2.0 * noise(points) and _levels_off(points, risen):
            return replace(trend, shape="plateau", bound_bytes=_bound(points))
        if rate.estimate > self.floor and up < ALPHA:
            if lower_limit > 0.5 * self.floor:
                return replace(trend, shape="linear")
            envelope_points = lows(points) if largest_fall(points) > GIVEN_BACK_SHARE * span(points) else []
            if len(envelope_points) >= MIN_SAMPLES:
                envelope_rate, lower_limit = self.rate(envelope_points)
                if envelope_rate.estimate > self.floor and lower_limit > 0.5 * self.floor:
                    return replace(trend, shape="linear", rate=envelope_rate)
        if rate.estimate > self.floor and up < DOUBT_ALPHA:
            narrower = ((rate.estimate - rate.low) / max(rate.estimate - 0.5 * self.floor, 1.0)) ** (2 / 3)
            decide = seconds * min(max(narrower - 1.0, 0.25), 9.0)
            return replace(trend, shape="irregular", seconds_to_decide=decide)
        return trend


def _levels_off(points: list[Point], risen: float) -> bool:
    """Whether the second half rises less. The bend of a saw-tooth depends on where the window ends, so there the minima
    count, if the rise is more than one tooth."""
    if not returns(points):
        return bend(points) < BENT_SHARE
    return risen > largest_fall(points) and bend_of_minima(points) < BENT_SHARE


def _bound(points: list[Point]) -> int:
    """The limit of an exponential with this bend: its rise falls by the same factor in each half of the window."""
    ratio, level = bend(points), round(end_level(points))
    if not 0.0 <= ratio < 1.0:
        return level
    return round(level + rise(points) * ratio * ratio / (1.0 - ratio * ratio))
