"""The statistics of a series against scipy and pymannkendall, on random series."""

import random

import pymannkendall
import pytest
import scipy.stats

from memforensics.analysis.line_statistics import (
    binned,
    mann_kendall,
    middle,
    slopes,
    standard_error,
    student_quantile,
)

Series = tuple[list[float], list[float]]


def white_noise(seed: int, *, slope: float = 0.0, count: int = 60, digits: int = 3) -> Series:
    rng = random.Random(seed)
    times = [float(n) for n in range(count)]
    return times, [round(slope * t + rng.gauss(0.0, 5.0), digits) for t in times]


@pytest.mark.parametrize("slope", [-0.3, 0.0, 0.05, 2.0])
def test_the_slope_is_that_of_theil_and_sen(slope: float) -> None:
    for seed in range(10):
        times, values = white_noise(seed, slope=slope)
        expected = scipy.stats.theilslopes(values, times).slope
        assert middle(slopes(binned(times, values))) == pytest.approx(expected)


@pytest.mark.parametrize(("slope", "digits"), [(-0.1, 3), (0.0, 3), (0.05, 3), (0.2, 3), (0.0, -1), (0.05, -1)])
def test_the_p_value_is_that_of_mann_and_kendall_without_autocorrelation(slope: float, digits: int) -> None:
    """`digits` -1: many ties. Random autocorrelation makes our p value less extreme in some series of white noise."""
    equal = 0
    for seed in range(16):
        times, values = white_noise(seed, slope=slope, digits=digits)
        points = binned(times, values)
        up, down = mann_kendall(points, slopes(points))
        expected = scipy.stats.norm.sf(pymannkendall.original_test(values).z)
        assert up + down == pytest.approx(1.0)
        assert min(up, down) >= min(expected, 1.0 - expected) - 1e-9
        equal += up == pytest.approx(expected, abs=1e-9)
    assert equal >= 12


def test_autocorrelation_makes_the_p_value_as_cautious_as_that_of_hamed_and_rao() -> None:
    """Our correction takes positive lags only, so it is at least as wide as theirs in most series."""
    wider = 0
    for seed in range(16):
        rng, value, values = random.Random(seed), 0.0, []
        for _ in range(60):
            value = 0.7 * value + rng.gauss(0.0, 1.0)
            values.append(value)
        points = binned([float(n) for n in range(60)], values)
        up, down = mann_kendall(points, slopes(points))
        theirs = pymannkendall.hamed_rao_modification_test(values).p
        wider += 2.0 * min(up, down) >= 0.9 * theirs
    assert wider >= 12


@pytest.mark.parametrize(("freedom", "error"), [(3, 0.1), (5, 0.02), (10, 0.002), (77, 1e-5)])
@pytest.mark.parametrize("p", [0.9, 0.975, 0.995])
def test_quantiles_are_students(p: float, freedom: int, error: float) -> None:
    assert student_quantile(p, freedom) == pytest.approx(scipy.stats.t.ppf(p, freedom), rel=error)


def test_the_standard_error_of_white_noise_is_that_of_least_squares() -> None:
    """On average: the autoregression has one parameter more."""
    ratios = []
    for seed in range(30):
        times, values = white_noise(seed)
        fit = scipy.stats.linregress(times, values)
        ratios.append(standard_error(binned(times, values), fit.slope)[0] / fit.stderr)
    assert 0.9 < sorted(ratios)[15] < 1.3
