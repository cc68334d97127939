"""What prove concludes from the runs of a command: on constructed lines whose growth is known exactly."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from fixtures.constructed import BASE, SECOND, case

from memforensics.analysis.effects import compare_variants, exit_text
from memforensics.case.model import Case, Sample, VariantResult, VariantRun
from memforensics.jobs.experiment.runs import Variant, run_order
from memforensics.units import MIB

Line = Callable[[float], float]  # seconds to MiB
SECONDS = 24


def grows(mib_per_minute: float) -> Line:
    return lambda seconds: 100 + mib_per_minute * seconds / 60


def experiment(*runs: tuple[str, Line]) -> Case:
    """Each run is a process of its own, in this order, sampled twice a second."""
    samples = []
    for order, (_, line) in enumerate(runs):
        began = BASE + order * 60 * SECOND
        samples += [
            Sample(
                pid=100 + order,
                t_ns=began + n * SECOND // 2,
                rss_anon=int(line(n / 2) * MIB),
                rss_file=0,
                rss_shmem=0,
                swap=0,
            )
            for n in range(2 * SECONDS + 1)
        ]
    made = tuple(
        VariantRun(variant=name, env=(), order=order, root_pid=100 + order, seconds=SECONDS)
        for order, (name, _) in enumerate(runs)
    )
    return replace(case(), targets=(), samples=tuple(samples), runs=made)


def effects(*runs: tuple[str, Line]) -> dict[str, VariantResult]:
    return {result.name: result for result in compare_variants(experiment(*runs))}


@pytest.mark.parametrize(
    ("rate", "effect"), [(0, "works"), (5, "works"), (60, "partly"), (120, "none"), (400, "worse")]
)
def test_effect_by_rate_compared_with_120_mib_a_minute(rate: float, effect: str) -> None:
    found = effects(("plain", grows(120)), ("A=1", grows(rate)), ("plain", grows(121)), ("A=1", grows(rate)))
    assert found["A=1"].effect == effect


def test_widely_differing_runs_show_no_effect() -> None:
    """Their mean is zero; the interval is as wide as the growth of the plain command."""
    found = effects(
        ("plain", grows(120)), ("A=1", grows(90)), ("A=1", grows(-90)), ("plain", grows(120)), ("A=1", grows(0))
    )
    rate = found["A=1"].growth
    assert rate is not None
    assert abs(rate.estimate) < MIB
    assert rate.high > 60 * MIB
    assert found["A=1"].effect == "not-shown"
    assert "too noisy" in found["A=1"].why


def test_a_warm_up_is_not_growth() -> None:
    def warms_up(seconds: float) -> float:
        return 100 + 40 * min(seconds, 5.5)

    found = effects(("plain", grows(120)), ("A=1", warms_up))
    rate = found["A=1"].growth
    assert rate is not None
    assert rate.high < MIB
    assert found["A=1"].effect == "works"


def test_a_plain_command_that_only_warms_up_does_not_grow() -> None:
    def warms_up(seconds: float) -> float:
        return 100 + 40 * min(seconds, 5.5)

    found = effects(("plain", warms_up), ("A=1", grows(0)))
    assert (found["plain"].effect, found["A=1"].effect) == ("baseline", "not-shown")


def test_variants_run_in_a_new_order_each_round() -> None:
    variants = [Variant(name) for name in "abcd"]
    orders = [run_order(variants, rounds=3, seed=seed) for seed in range(20)]
    for order in orders:
        for at in (0, 4, 8):
            assert sorted(v.name for v in order[at : at + 4]) == ["a", "b", "c", "d"]
    assert len({tuple(v.name for v in order[:4]) for order in orders}) > 5
    assert any(order[:4] != order[4:8] for order in orders)
    assert run_order(variants, rounds=3, seed=7) == orders[7]


@pytest.mark.parametrize(
    ("code", "text"),
    [(0, "ended with exit code 0"), (7, "ended with exit code 7"), (-9, "was killed by SIGKILL"), (-40, "signal 40")],
)
def test_exit_text(code: int, text: str) -> None:
    assert text in exit_text(code)


@pytest.mark.parametrize("name", ["plain", "A=1"])
def test_a_run_too_short_to_judge_says_how_the_command_ended(name: str) -> None:
    made = experiment(("plain", grows(120)), ("A=1", grows(0)))
    short = next(run for run in made.runs if run.variant == name)
    samples = tuple(s for s in made.samples if s.pid != short.root_pid or s.t_ns <= BASE + short.order * 60 * SECOND)
    runs = tuple(replace(run, exit_code=0, seconds=0.4) if run is short else run for run in made.runs)
    found = {result.name: result for result in compare_variants(replace(made, samples=samples, runs=runs))}
    assert found[name].why.startswith("the command ended with exit code 0 after 400 ms")
