"""Medians and intervals of pairs. No assumption but that pairs scatter alike to both sides."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import exp, log

FEWEST = 6  # pairs: with fewer there is no 95% interval


@dataclass(frozen=True, slots=True)
class Estimate:
    """`low` and `high`: the 95% interval; None with fewer than 6 values."""

    median: float
    smallest: float
    largest: float
    low: float | None
    high: float | None
    count: int


def estimate(values: Sequence[float]) -> Estimate:
    """Median, range, and the interval of the centre by Wilcoxon's signed ranks (Hodges and Lehmann 1963): between the
    k-th smallest and the k-th largest of all means of two, k by the exact distribution. ValueError without values."""
    if not values:
        raise ValueError("no values")
    n = len(values)
    low = high = None
    if n >= FEWEST:
        means = sorted((values[i] + values[j]) / 2 for i in range(n) for j in range(i, n))
        k = _signed_rank_quantile(n)
        low, high = means[k - 1], means[-k]
    return Estimate(statistics.median(values), min(values), max(values), low, high, n)


def estimate_ratio(ratios: Sequence[float]) -> Estimate:
    """The same on logarithms: a ratio and its inverse are equally far from 1. All zero is kept as it is."""
    if min(ratios, default=0.0) <= 0.0:
        return estimate(ratios)
    found = estimate([log(ratio) for ratio in ratios])
    low, high = (None if end is None else exp(end) for end in (found.low, found.high))
    return Estimate(statistics.median(ratios), min(ratios), max(ratios), low, high, found.count)


@cache
def _signed_rank_quantile(n: int, tail: float = 0.025) -> int:
    """The largest k with P(W < k) <= tail, W the sum of positive ranks of n values around 0."""
    ways = [1] + [0] * (n * (n + 1) // 2)
    for rank in range(1, n + 1):
        for total in range(len(ways) - 1, rank - 1, -1):
            ways[total] += ways[total - rank]
    below, k = 0, 0
    while below + ways[k] <= tail * 2**n:
        below += ways[k]
        k += 1
    return k
