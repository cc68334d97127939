"""The interval and the p value of a line hold on both sides. Small samples with fixed seeds; docs/calibration.md has
the measured rates."""

import itertools
import random

from memforensics.analysis.trend import fit_trend
from memforensics.units import MIB

SERIES = 80
SAMPLES = 61


def wobble(seed: int, memory: float) -> list[float]:
    """Noise of 1 MiB, each value of which keeps this share of the one before."""
    noise = random.Random(seed)
    kicks = (noise.gauss(0, MIB * (1 - memory * memory) ** 0.5) for _ in range(SAMPLES))
    return list(itertools.accumulate(kicks, lambda before, kick: memory * before + kick))


def test_the_interval_misses_the_true_rate_equally_often_on_both_sides() -> None:
    times = [float(t) for t in range(SAMPLES)]
    true = 60 * MIB
    rates = []
    for seed in range(SERIES):
        values = [900 * MIB + t * true / 60 + w for t, w in zip(times, wobble(seed, 0.5), strict=True)]
        rate = fit_trend(times, values).rate
        assert rate is not None
        assert rate.low < rate.estimate < rate.high
        rates.append(rate)
    assert sum(rate.high < true for rate in rates) <= SERIES // 8
    assert sum(rate.low > true for rate in rates) <= SERIES // 8
    assert 0.3 * SERIES <= sum(rate.estimate > true for rate in rates) <= 0.7 * SERIES


def test_autocorrelated_noise_has_no_significant_trend() -> None:
    times = [float(t) for t in range(SAMPLES)]
    found = [fit_trend(times, [900 * MIB + w for w in wobble(seed, 0.7)]).p for seed in range(SERIES)]
    assert None not in found
    assert sum(p is not None and p < 0.05 for p in found) <= SERIES // 6, "16 of 80 where samples count as independent"
