"""A series of weeks in a few hundred readings: what is kept, and whether its trend stays the same."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memforensics.analysis.trend import fit_trend, verdict_of_trend
from memforensics.case.model import Trend
from memforensics.jobs.observe.tiered_samples import ONE_OF, TieredSamples
from memforensics.units import MIB

KEPT = 96


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 20_000), st.integers(2 * ONE_OF, 200), st.integers(0, 1 << 31))
def test_series_stays_small_and_ordered_and_returns_what_it_drops(count: int, most: int, seed: int) -> None:
    line: TieredSamples[int] = TieredSamples(most, seed=seed)
    gone = [old for number in range(count) for old in line.add(number)]
    kept = list(line)
    assert len(kept) == len(line)
    assert sorted(kept + gone) == list(range(count))
    assert kept == sorted(kept)
    assert kept[:1] == list(range(min(count, 1)))
    newest = min(count - 1, most - ONE_OF)
    assert newest <= 0 or kept[-newest:] == list(range(count - newest, count))
    levels, reach = 1, most
    while reach < count:
        levels, reach = levels + 1, reach * ONE_OF
    assert len(kept) <= 1 + (levels + 1) * most


def test_newest_tier_may_keep_more() -> None:
    line: TieredSamples[int] = TieredSamples(KEPT, newest=192)
    for second in range(20_000):
        line.add(second)
    assert list(line)[-192:] == list(range(20_000 - 192, 20_000))
    assert len(line) < 1000


def test_two_days_at_one_second_are_under_a_thousand_readings() -> None:
    line: TieredSamples[int] = TieredSamples(KEPT)
    for second in range(200_000):
        line.add(second)
    assert len(line) < 1000


def test_oldest_half_is_still_present() -> None:
    line: TieredSamples[int] = TieredSamples(KEPT)
    for second in range(100_000):
        line.add(second)
    assert len([second for second in line if second < 50_000]) >= 40


def both(values: list[float], interval: float, seed: int) -> tuple[Trend, Trend]:
    """The trend of the whole line and of the thinned one."""
    line: TieredSamples[tuple[float, float]] = TieredSamples(KEPT, seed=seed)
    points = [(i * interval, value) for i, value in enumerate(values)]
    for point in points:
        line.add(point)
    kept = list(line)
    assert len(kept) < len(points)
    return (
        fit_trend([t for t, _ in points], [v for _, v in points], confidence=0.999),
        fit_trend([t for t, _ in kept], [v for _, v in kept], confidence=0.999),
    )


@settings(max_examples=40, deadline=None)
@given(
    st.floats(4.0, 200.0),
    st.floats(0.01, 0.5),
    st.floats(0.0, 40.0),
    st.integers(1200, 12_000),
    st.integers(0, 1 << 31),
)
def test_leak_has_the_same_verdict_in_tiers(rate: float, noise: float, teeth: float, count: int, seed: int) -> None:
    """MiB a minute, noise and saw-teeth in MiB, readings a second."""
    rng = random.Random(seed)
    height = min(teeth, rate * count / 60 / 4)
    values = [
        300 * MIB + MIB * (rate * t / 60 + rng.gauss(0, noise) + height * (t % 37) / 37)
        for t in map(float, range(count))
    ]
    whole, thinned = both(values, 1.0, seed)
    assert verdict_of_trend(whole) == verdict_of_trend(thinned) == "growing"
    assert whole.rate is not None
    assert thinned.rate is not None
    assert thinned.rate.estimate == pytest.approx(whole.rate.estimate, rel=0.1)
    assert thinned.rate.low <= whole.rate.high
    assert whole.rate.low <= thinned.rate.high


@settings(max_examples=40, deadline=None)
@given(
    st.floats(0.01, 20.0),
    st.floats(2.0, 90.0),
    st.floats(7.0, 70.0),
    st.integers(1200, 12_000),
    st.integers(0, 1 << 31),
)
def test_healthy_memory_is_healthy_in_tiers(noise: float, height: float, period: float, count: int, seed: int) -> None:
    """Saw-teeth whose period may be near the stride of the thinning, under noise (both in MiB)."""
    rng = random.Random(seed)
    values = [
        300 * MIB + MIB * (rng.gauss(0, noise) + height * (t % period) / period) for t in map(float, range(count))
    ]
    for trend in both(values, 1.0, seed):
        assert verdict_of_trend(trend) in ("steady", "bounded")


def test_leak_that_starts_on_the_third_day_shows_within_the_hour() -> None:
    """Known answer: 200,000 s level at 2 GiB with a wobble of 3 MiB, then 3 MiB a minute."""
    rng, line = random.Random(3), TieredSamples[tuple[float, float]](KEPT)
    for t in range(203_600):
        line.add((float(t), 2048 * MIB + rng.gauss(0, 3 * MIB) + max(t - 200_000, 0) * 3 * MIB / 60))
        if t == 200_000:
            before = fit_trend([t for t, _ in line], [v for _, v in line])
    after = fit_trend([t for t, _ in line], [v for _, v in line])
    assert verdict_of_trend(before) == "steady"
    assert verdict_of_trend(after) == "growing"
    assert after.rate is not None
    assert after.rate.estimate == pytest.approx(3 * MIB, rel=0.25)
