"""The trend judge: its error rates on known kinds (a reduced benchmarks/calibrate.py), and its edges."""

import importlib.util
import math
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memforensics.analysis.trend import fit_trend, minimum_rate, verdict_of_trend
from memforensics.case.model import Shape, Trend
from memforensics.units import KIB, MIB

_SPEC = importlib.util.spec_from_file_location("calibrate", Path(__file__).parents[2] / "benchmarks" / "calibrate.py")
assert _SPEC is not None
assert _SPEC.loader is not None
calibrate = importlib.util.module_from_spec(_SPEC)
sys.modules["calibrate"] = calibrate
_SPEC.loader.exec_module(calibrate)

SERIES = 50  # a kind
CALLED_AT_MOST = {  # a line as far as the window goes: docs/calibration.md
    "AR(0.9 to 0.99)": 0.05,
    "random walk": 0.08,
    "warm-up, logarithmic": 0.5,
    "three to six steps": 0.06,
    "one tooth": 0.22,
}
SEEN_AT_LEAST = {"leak, bursts": 0.75, "leak and a step": 0.85, "leak after warm-up": 0.85}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [k for k in calibrate.KINDS if not k.grows], ids=lambda k: k.name)
def test_false_upward_trends_are_rare(kind: object) -> None:
    found = calibrate.shapes(kind, SERIES)
    assert found["linear"] <= max(1, CALLED_AT_MOST.get(kind.name, 0.01) * SERIES), found  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [k for k in calibrate.KINDS if k.grows], ids=lambda k: k.name)
def test_growth_is_detected(kind: object) -> None:
    found = calibrate.shapes(kind, SERIES)
    assert found["linear"] >= SEEN_AT_LEAST.get(kind.name, 0.98) * SERIES, found  # type: ignore[attr-defined]


def line(rate_mib_a_minute: float, seconds: float, interval: float = 0.5, base: int = 100 * MIB) -> Trend:
    times = [i * interval for i in range(int(seconds / interval) + 1)]
    return fit_trend(times, [base + rate_mib_a_minute * MIB * t / 60 for t in times])


def test_the_rate_of_a_line_is_its_rate() -> None:
    trend = line(37.0, 30)
    assert trend.shape == "linear"
    assert trend.rate is not None
    assert trend.rate.estimate == pytest.approx(37 * MIB)
    assert trend.rate.low <= trend.rate.estimate <= trend.rate.high
    assert trend.p is not None
    assert trend.p < 0.001


def test_growth_in_chunks_of_1_mib_is_linear() -> None:
    times = [i * 0.5 for i in range(41)]
    trend = fit_trend(times, [50 * MIB + (10 * MIB * t / 60) // MIB * MIB for t in times])
    assert trend.shape == "linear"
    assert trend.rate is not None
    assert trend.rate.estimate == pytest.approx(10 * MIB, rel=0.3)


def test_two_rises_are_a_step() -> None:
    times = [i * 0.5 for i in range(41)]
    trend = fit_trend(times, [50 * MIB + (t > 6) * 2 * MIB + (t > 13) * 2 * MIB for t in times])
    assert trend.shape == "step"
    assert trend.seconds_to_decide is not None


@pytest.mark.parametrize("interval", [0.1, 0.5, 5.0, 60.0])
def test_a_warm_up_that_leveled_off_has_a_bound(interval: float) -> None:
    times = [i * interval for i in range(120)]
    tau = times[-1] / 9
    trend = fit_trend(times, [MIB * 500 * (1 - 2.718281828 ** (-t / tau)) for t in times])
    assert trend.shape == "plateau"
    assert trend.bound_bytes == pytest.approx(500 * MIB, rel=0.05)


def test_a_warm_up_that_still_rises_is_not_bounded() -> None:
    """Known answer: four time constants of 500 MiB in a minute; at the end it rises by 36 MiB/min."""
    times = [i * 0.5 for i in range(121)]
    trend = fit_trend(times, [MIB * 500 * (1 - 2.718281828 ** (-t / 15)) for t in times])
    assert trend.shape == "irregular"
    assert trend.seconds_to_decide is not None


@pytest.mark.parametrize("onset", [0.3, 0.5, 0.6, 0.7, 0.8])
@pytest.mark.parametrize("seconds", [60.0, 300.0, 3600.0])
def test_a_late_leak_has_its_onset_and_its_rate(onset: float, seconds: float) -> None:
    """Known answer: 200 MiB/min from a share of the window on."""
    rng, interval = random.Random(8), seconds / 120
    times = [i * interval for i in range(121)]
    values = [300 * MIB + rng.gauss(0, MIB / 5) + max(t - onset * seconds, 0) * 200 * MIB / 60 for t in times]
    trend = fit_trend(times, values)
    assert verdict_of_trend(trend) == "growing"
    assert trend.cut_seconds == pytest.approx(onset * seconds, abs=0.1 * seconds)
    assert trend.rate is not None
    assert trend.rate.estimate == pytest.approx(200 * MIB, rel=0.05)
    assert trend.rate.low > 190 * MIB


def test_growth_after_a_warm_up_has_its_own_rate() -> None:
    times = [i * 0.5 for i in range(121)]
    trend = fit_trend(times, [MIB * (min(t, 6) * 50 + max(t - 6, 0)) for t in times])
    assert trend.shape == "linear"
    assert trend.cut_seconds >= 6
    assert trend.rate is not None
    assert trend.rate.estimate == pytest.approx(60 * MIB, rel=0.05)


def test_a_line_with_a_gap_is_linear() -> None:
    times = [i * 0.5 for i in range(40)] + [300 + i * 0.5 for i in range(40)]
    trend = fit_trend(times, [100 * MIB + 5 * MIB * t / 60 for t in times])
    assert trend.shape == "linear"


def test_three_days_of_samples_per_minute() -> None:
    rng = random.Random(5)
    times = [i * 60.0 for i in range(3 * 1440)]
    grows = fit_trend(times, [2048 * MIB + 0.4 * MIB * t / 60 + rng.gauss(0, 20 * MIB) for t in times])
    assert grows.shape == "linear"
    flat = fit_trend(times, [2048 * MIB + rng.gauss(0, 20 * MIB) for _ in times])
    assert verdict_of_trend(flat) == "steady"


@pytest.mark.parametrize(("times", "values"), [([], []), ([0.0], [1]), ([0.0, 0.5, 1.0], [1, 2, 3])])
def test_too_short_series_say_how_much_longer_to_observe(times: list[float], values: list[float]) -> None:
    trend = fit_trend(times, values)
    assert trend.shape == "too-short"
    assert trend.rate is None
    assert trend.seconds_to_decide is not None
    assert trend.seconds_to_decide > 0
    assert verdict_of_trend(trend) == "insufficient-data"


def test_the_minimum_rate_falls_with_the_window() -> None:
    assert minimum_rate(0, 60) == MIB
    assert minimum_rate(20 * 1024 * MIB, 60) > 10 * MIB
    assert minimum_rate(0, 86400) == 64 * KIB


@pytest.mark.parametrize("shape", Shape.__args__)  # type: ignore[attr-defined]
def test_a_line_alone_is_never_a_leak(shape: Shape) -> None:
    word = verdict_of_trend(Trend(shape=shape, rate=None, p=None, samples=9, seconds=9.0))
    assert word in ("steady", "bounded", "growing", "insufficient-data")
    assert (word == "growing") == (shape == "linear")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(0, 1 << 44)), max_size=120),
    st.integers(0, 1 << 30),
)
def test_any_series_has_a_reproducible_trend(points: list[tuple[float, int]], seed: int) -> None:
    times, t = [], 0.0
    for gap, _ in points:
        t += gap
        times.append(t)
    values = [v for _, v in points]
    trend = fit_trend(times, values)
    assert trend == fit_trend(times, values)
    if trend.rate is not None:
        assert trend.rate.low <= trend.rate.estimate <= trend.rate.high


@pytest.mark.parametrize("gap_s", [5.0, 11.0, 40.0])
@pytest.mark.parametrize("lone", [1, 2])
def test_a_gap_after_the_first_samples_does_not_hide_a_line(gap_s: float, lone: int) -> None:
    """Known answer: 48 MiB a minute, in the bends of a heap that grows by pools, and nothing read for a while."""
    times = [0.5 * n for n in range(lone)] + [gap_s + 0.5 * n for n in range(18)]
    values = [6 * MIB + 48 * MIB / 60 * t + 60_000 * (n % 3) for n, t in enumerate(times)]
    trend = fit_trend(times, values)
    assert trend.shape == "linear"
    assert trend.rate is not None
    assert 40 * MIB < trend.rate.estimate < 56 * MIB


def test_nine_points_can_be_linear() -> None:
    """Known answer: a pool that grows by whole chunks, read nine times in as many seconds, as a trace tells it."""
    times = [0.0, 0.45, 1.94, 2.94, 3.95, 5.46, 6.96, 8.44, 9.06]
    chunks = [0, 2, 9, 14, 19, 26, 33, 41, 44]
    trend = fit_trend(times, [147456 * n for n in chunks])
    assert trend.shape == "linear"


@pytest.mark.parametrize("at", [3, 4, 5, 6])
def test_nine_points_can_be_a_step(at: int) -> None:
    trend = fit_trend([float(n) for n in range(9)], [100 * MIB + (20 * MIB if n >= at else 0) for n in range(9)])
    assert trend.shape == "step"


@pytest.mark.slow
def test_detection_grows_with_the_effect() -> None:
    """Ten times the noise is seen at any length; a tenth of it at none."""
    for window, interval in ((20.0, 0.5), (60.0, 1.0), (600.0, 1.0)):
        shapes = {
            effect: [fit_trend(*calibrate.leak(effect, window, interval, seed)).shape for seed in range(20)]
            for effect in (0.1, 10.0)
        }
        assert shapes[10.0].count("linear") >= 18
        assert shapes[0.1].count("linear") <= 1


def test_a_late_line_must_rise_above_all_earlier_values() -> None:
    """Two hours of slow waves whose last quarter of an hour rises in a line, as it did before; then a leak does."""
    times = [i * 10.0 for i in range(720)]
    waves = [300 * MIB + 40 * MIB * abs((t / 1700) % 2 - 1) for t in times]
    assert verdict_of_trend(fit_trend(times, waves)) != "growing"
    leaks = [300 * MIB + (t % 90) * 20_000 + max(t - 6300, 0) * 6 * MIB / 60 for t in times]
    late = fit_trend(times, leaks)
    assert verdict_of_trend(late) == "growing"
    assert late.cut_seconds >= 6000


# --- the interval -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.9, 0.95])
@pytest.mark.parametrize(("seconds", "count"), [(30.0, 120), (60.0, 60), (300.0, 40)])
def test_coverage_of_the_interval(keep: float, seconds: float, count: int) -> None:
    """It is 95% by its name; the page has 90% and more, of more series."""
    share, _ = calibrate.covered(keep, seconds, count)
    assert share >= 0.86


def steady_or_bounded(trend: Trend) -> bool:
    return verdict_of_trend(trend) in ("steady", "bounded")


@pytest.mark.slow
@pytest.mark.parametrize("kind", calibrate.KINDS, ids=lambda k: k.name)
def test_a_shape_without_growth_never_has_a_significant_rate(kind: object) -> None:
    for seed in range(8):
        times, values = calibrate.draw(kind, seed)
        trend = fit_trend(times, values)
        significant = trend.rate is not None and trend.rate.low > minimum_rate(min(values), trend.seconds)
        assert not (steady_or_bounded(trend) and significant), trend


SERIES_OF_ANY_KIND = st.tuples(st.sampled_from(calibrate.KINDS), st.integers(0, 1 << 20))


@settings(max_examples=30, deadline=None)
@given(SERIES_OF_ANY_KIND, st.integers(-1000, 1000), st.integers(0, 1 << 20))
def test_shifting_values_or_times_does_not_change_the_trend(drawn: tuple[object, int], mib: int, seconds: int) -> None:
    times, values = calibrate.draw(*drawn)
    # In whole bytes and 1/1024 s, so that sums and differences are exact.
    times, values = [round(t * 1024) / 1024 for t in times], [float(round(v)) for v in values]
    plain = fit_trend(times, values, minimum_effect=MIB)
    moved = fit_trend([t + seconds for t in times], [v + mib * MIB for v in values], minimum_effect=MIB)
    assert_same(plain, moved)


@settings(max_examples=30, deadline=None)
@given(SERIES_OF_ANY_KIND, st.sampled_from([2.0, 8.0, 64.0]))
def test_scaling_values_and_minimum_effect_keeps_the_shape(drawn: tuple[object, int], factor: float) -> None:
    """Where the rise is well above the least one that is looked at, which does not scale."""
    times, values = calibrate.draw(*drawn)
    values = [64.0 * round(v) for v in values]
    plain = fit_trend(times, values, minimum_effect=64.0 * MIB)
    scaled = fit_trend(times, [factor * v for v in values], minimum_effect=factor * 64.0 * MIB)
    if plain.shape == "linear":
        assert scaled.shape == "linear"
        assert plain.rate is not None
        assert scaled.rate is not None
        assert scaled.rate.estimate == pytest.approx(factor * plain.rate.estimate)
        assert scaled.rate.high == pytest.approx(factor * plain.rate.high)


def assert_same(a: Trend, b: Trend) -> None:
    assert (a.shape, a.samples) == (b.shape, b.samples)
    assert a.cut_seconds == pytest.approx(b.cut_seconds)
    assert (a.rate is None) == (b.rate is None)
    if a.rate is not None and b.rate is not None:
        for mine, other in ((a.rate.estimate, b.rate.estimate), (a.rate.low, b.rate.low), (a.rate.high, b.rate.high)):
            assert mine == pytest.approx(other, rel=1e-3, abs=KIB)


def test_infinite_values_and_unordered_times_are_ignored() -> None:
    times = [float(n) for n in range(60)]
    values = [MIB * n for n in range(60)]
    plain = fit_trend(times, values)
    assert fit_trend([*times, math.inf], [*values, 0]) == plain
    assert fit_trend([*times, 7.0, math.nan], [*values, 0, 0]) == plain
    assert fit_trend([*times, 60.0], [*values, math.inf]) == plain
    assert fit_trend([5.0] * 60, values).shape == "too-short"
    assert fit_trend([0.0, *(1e9 + t for t in times)], [0, *values]).shape
