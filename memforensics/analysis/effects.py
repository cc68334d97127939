"""The effect of each variant of an experiment: its growth rate, pooled over runs, compared with the plain command.
Pure."""

from collections.abc import Sequence
from math import sqrt
from signal import Signals
from statistics import NormalDist
from typing import Literal

from memforensics.analysis.series import Series, tree_series
from memforensics.analysis.trend import fit_trend, minimum_rate, verdict_of_trend
from memforensics.case.model import Case, Rate, Trend, VariantResult, VariantRun
from memforensics.units import duration_text, rate_text

PLAIN = "plain"
WORKS_SHARE = 0.1  # of the plain growth: a variant that leaves less works
PARTLY_SHARE = 0.8  # of the plain rate's lower limit: a variant below it works partly
WORSE_SHARE = 1.25
WARM_UP_SHARE = 0.25  # of a run: left out
WARM_UP_SECONDS = 8.0  # at most
SLOWER_SHARE = 0.7  # of the plain throughput: a variant that does less work may leak less for that reason

Effect = Literal["baseline", "works", "partly", "none", "worse", "not-shown"]


def compare_variants(case: Case, *, confidence: float = 0.95) -> tuple[VariantResult, ...]:
    """One result per variant: the plain command first, the others in the order of their first runs."""
    names = list(dict.fromkeys(run.variant for run in sorted(case.runs, key=lambda r: (r.variant != PLAIN, r.order))))
    runs = {name: [run for run in case.runs if run.variant == name] for name in names}
    trends = {name: [_trend(case, run) for run in runs[name]] for name in names}
    pooled = {name: _pool(trends[name], confidence) for name in names}
    base = pooled.get(PLAIN)
    grows = base is not None and base.low > 0 and _mostly_growing(trends[PLAIN])
    results = []
    for name in names:
        work = _throughput(runs[name])
        if name == PLAIN:
            effect: Effect = "baseline"
            why = "" if grows else "memory does not grow here, so no effect can be shown"
            ended = next((run for run in runs[name] if run.exit_code is not None), None)
            if ended is not None and (ended.exit_code or base is None):
                why = _ended(ended)
        elif not grows or base is None:
            effect, why = "not-shown", "the plain command does not grow here"
        else:
            effect, why = _effect(base, pooled[name], trends[name], runs[name])
            plain_work = _throughput(runs[PLAIN])
            if work is not None and plain_work and work < SLOWER_SHARE * plain_work and effect in ("works", "partly"):
                effect, why = "not-shown", f"it did only {work / plain_work:.0%} of the plain command's work"
        results.append(
            VariantResult(
                name=name,
                env=runs[name][0].env,
                runs=len(runs[name]),
                growth=pooled[name],
                throughput=work,
                effect=effect,
                why=why,
            )
        )
    return tuple(results)


def _effect(base: Rate, mine: Rate | None, trends: Sequence[Trend], runs: Sequence[VariantRun]) -> tuple[Effect, str]:
    failed = next((run for run in runs if run.exit_code not in (None, 0)), None)
    if failed is not None:
        return "not-shown", _ended(failed)
    if mine is None:
        ended = next((run for run in runs if run.exit_code is not None), None)
        return "not-shown", f"{_ended(ended)}: too short to measure" if ended else "the runs were too short to measure"
    floor = minimum_rate(0, max(trend.seconds for trend in trends))
    share = mine.estimate / base.estimate
    left = f"{max(share, 0.0):.0%} of the growth remains"
    if mine.estimate <= max(WORKS_SHARE * base.estimate, floor) and mine.high < 0.5 * base.low:
        return "works", "no significant growth remains" if mine.estimate <= floor else left
    if mine.high < PARTLY_SHARE * base.low:
        return "partly", left
    if mine.low > WORSE_SHARE * base.high:
        return "worse", f"it grows {share:.1f} times as fast"
    if mine.high - mine.low > base.estimate:
        return (
            "not-shown",
            f"too noisy ({rate_text(mine.low)} to {rate_text(mine.high)}): use more --rounds or a longer --duration",
        )
    return "none", left


def _ended(run: VariantRun) -> str:
    return f"the command {exit_text(run.exit_code or 0)} after {duration_text(run.seconds)}"


def exit_text(code: int) -> str:
    """How a process ended, from the return code of subprocess: e.g. `was killed by SIGKILL`."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _trend(case: Case, run: VariantRun) -> Trend:
    line = tree_series(case.samples, pids=tree_pids(case, run.root_pid))
    return fit_trend(*_after_warm_up(line))


def tree_pids(case: Case, root: int) -> frozenset[int]:
    """The root and all its descendants, by the parent of each process when it was first seen."""
    parents = {target.pid: target.ppid for target in case.targets}
    found = {root}
    while True:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        if not more:
            return frozenset(found)
        found |= more


def _after_warm_up(line: Series) -> tuple[tuple[float, ...], tuple[int, ...]]:
    if not line.times_s:
        return (), ()
    seconds = line.times_s[-1] - line.times_s[0]
    begin = line.times_s[0] + min(WARM_UP_SHARE * seconds, WARM_UP_SECONDS)
    kept = [(t, v) for t, v in zip(line.times_s, line.values, strict=True) if t >= begin]
    return tuple(t for t, _ in kept), tuple(v for _, v in kept)


def _pool(trends: Sequence[Trend], confidence: float) -> Rate | None:
    """The mean rate of the runs. Its interval includes the variance within runs and the variance between runs."""
    rates = [trend.rate for trend in trends if trend.rate is not None]
    if not rates:
        return None
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    n = len(rates)
    mean = sum(rate.estimate for rate in rates) / n
    within = sum(((rate.high - rate.low) / (2.0 * z)) ** 2 for rate in rates) / (n * n)
    between = sum((rate.estimate - mean) ** 2 for rate in rates) / (n - 1) / n if n > 1 else 0.0
    half = z * sqrt(within + between)
    return Rate(estimate=mean, low=mean - half, high=mean + half, confidence=confidence)


def _mostly_growing(trends: Sequence[Trend]) -> bool:
    return 2 * sum(verdict_of_trend(trend) == "growing" for trend in trends) >= max(len(trends), 1)


def _throughput(runs: Sequence[VariantRun]) -> float | None:
    reported = [run for run in runs if run.units_done is not None and run.seconds > 0]
    if not reported:
        return None
    return sum(run.units_done or 0.0 for run in reported) / sum(run.seconds for run in reported)
