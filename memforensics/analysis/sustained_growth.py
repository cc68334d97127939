"""Growth that was observed for so long that it is a leak without a known cause. Pure.

All conditions are about observed memory; nothing is extrapolated:

- at least LEAST_SECONDS were observed, and the line is straight;
- memory grew by LEAST_GROWTH, or by its size at the start (at least LEAST_SIZE);
- each of four disjoint quarters rises by the minimum rate and by at least EVEN_SHARE of the mean quarter, and its
  minima rise too; the minimum of each quarter is above that of the quarter before, and the last quarter rises by at
  least LAST_SHARE of the first;
- no finding says that the growth is bounded;
- if allocations and frees were traced, fewer than 5% of the older blocks of the top site were freed (upper limit).

A cache that fills in a straight line during the whole observation meets these conditions too. docs/calibration.md has
the error rates."""

from collections.abc import Sequence
from itertools import pairwise

from memforensics.analysis import series
from memforensics.analysis.line_statistics import MIN_RISE
from memforensics.analysis.survival import FEW_DEATHS, Share, deaths_over_births
from memforensics.analysis.trend import minimum_rate
from memforensics.case.model import Case, EvidenceItem, Finding, Growth
from memforensics.units import GIB, MIB, duration_text, size_text

LEAST_SECONDS = 1800.0
LEAST_GROWTH = 1 * GIB
LEAST_SIZE = 128 * MIB  # a smaller process must grow by this much
QUARTERS = 4
LAST_SHARE = 0.75  # of the rise of the first quarter; a warm-up of one time constant has 0.47
EVEN_SHARE = 0.5  # of the mean rise of a quarter: each quarter must have it
MINIMA_SHARE = 0.25  # of the mean rise of a quarter: rise of the minima of its halves; a line has 0.5
EDGE = 0.1  # of a quarter, at either end: the median there is the level
LEAST_POINTS = 8  # in a quarter


def sustained_growth(case: Case, growth: Growth, findings: Sequence[Finding]) -> EvidenceItem | None:
    """The evidence with its figures. None if a condition is not met."""
    if growth.trend.shape != "linear" or any(f.verdict in ("bounded", "retention") for f in findings):
        return None
    times = [sample.t_ns for sample in case.samples]
    if not times or (max(times) - min(times)) / 1e9 < LEAST_SECONDS:
        return None
    line = series.current_tree_series(case)
    rises = quarter_rises(line)
    if rises is None:
        return None
    deaths = _deaths_of_top_site(case, findings)
    if deaths is not None and deaths.upper >= FEW_DEATHS:
        return None
    each = ", ".join(size_text(rise) for rise in rises)
    watched = duration_text(line.times_s[-1] - line.times_s[0])
    freed = f"; fewer than {deaths.upper:.1%} of the traced blocks were freed" if deaths is not None else ""
    return EvidenceItem(
        kind="outlasted",
        text=f"memory grew by {size_text(line.change_bytes)} from {size_text(line.values[0])} in {watched}; it grew by "
        f"{each} in the four quarters of that time{freed}",
        ref="samples",
    )


def quarter_rises(line: series.Series) -> list[float] | None:
    """The rise of each quarter in bytes. None if the series does not meet the conditions."""
    seconds = line.times_s[-1] - line.times_s[0] if line.times_s else 0.0
    if seconds < LEAST_SECONDS:
        return None
    quarters = _quarters(line, seconds)
    if any(len(values) < LEAST_POINTS for values in quarters):
        return None
    edges = [_edges(values) for values in quarters]
    rises = [last - first for first, last in edges]
    total = edges[-1][1] - edges[0][0]
    if total < min(LEAST_GROWTH, max(line.values[0], LEAST_SIZE)):
        return None
    if rises[-1] < LAST_SHARE * rises[0]:
        return None
    enough = max(MIN_RISE, minimum_rate(line.values[-1], seconds) * seconds / QUARTERS / 60.0)
    least = max(enough, EVEN_SHARE * total / QUARTERS)
    for values, rise in zip(quarters, rises, strict=True):
        half = len(values) // 2
        if rise < least or min(values[half:]) - min(values[:half]) < MINIMA_SHARE * total / QUARTERS:
            return None
    minima = [min(values) for values in quarters]
    return rises if all(a < b for a, b in pairwise(minima)) else None


def _quarters(line: series.Series, seconds: float) -> list[list[int]]:
    out: list[list[int]] = [[] for _ in range(QUARTERS)]
    for t, value in zip(line.times_s, line.values, strict=True):
        out[min(int((t - line.times_s[0]) / seconds * QUARTERS), QUARTERS - 1)].append(value)
    return out


def _edges(values: Sequence[int]) -> tuple[float, float]:
    """The levels at the start and at the end."""
    k = max(3, round(len(values) * EDGE))
    return sorted(values[:k])[k // 2], sorted(values[-k:])[k // 2]


def _deaths_of_top_site(case: Case, findings: Sequence[Finding]) -> Share | None:
    """For the first finding with traced sites. None if allocations and frees were not traced."""
    known = {(site.pid, site.site_id): site for site in case.sites if site.kind != "fault"}
    for finding in findings:
        for cited in finding.sites:
            site = known.get((cited.pid, cited.site_id)) if cited.site_id is not None else None
            if site is not None:
                return deaths_over_births(site)
    return None
