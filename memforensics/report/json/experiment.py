"""The JSON of `prove` and `ci`."""

from collections.abc import Iterable
from typing import Annotated, Literal

from memforensics.case.model import VariantResult
from memforensics.case.views import Scenario
from memforensics.report.json import report, shapes
from memforensics.report.json.shapes import Rate, Verdict, doc, shaped


class VariantGrowth(shapes.Shape):
    """Growth under one variant."""

    bytes_per_minute: Rate


class Variant(shapes.Shape):
    """One variant of the experiment, all its runs together."""

    name: Annotated[str, doc("Its name: plain, or what it sets.")]
    env: Annotated[dict[str, str], doc("The environment variables that it sets.")]
    runs: Annotated[int, doc("How often it ran.")]
    growth: VariantGrowth
    throughput: Annotated[float | None, doc("Work units a second; null: the command reports none.")]
    effect: Annotated[
        Literal["baseline", "works", "partly", "none", "worse", "not-shown"], doc("Compared with the baseline.")
    ]
    why: Annotated[str, doc("The effect as a sentence.")]


class Prove(shapes.Shape):
    """What prove prints."""

    variants: Annotated[tuple[Variant, ...], doc("The baseline first.")]


def prove(results: Iterable[VariantResult]) -> Prove:
    return Prove(
        variants=tuple(
            shaped(
                Variant,
                result,
                env=dict(result.env),
                growth=VariantGrowth(bytes_per_minute=shapes.rate(result.growth)),
            )
            for result in results
        )
    )


class GateScenario(shapes.Shape):
    """One command that went through the gate."""

    name: Annotated[str, doc("Its name.")]
    verdict: Verdict
    growth: report.Growth
    limit: Annotated[int | None, doc("The lowest memory limit, bytes; null: none.")]
    passed: Annotated[bool, doc("Whether the gate passed.")]
    failed_to_observe: Annotated[bool, doc("The command could not be observed for the whole time.")]
    case: Annotated[str | None, doc("The case file.")]
    message: Annotated[str, doc("The result as a sentence.")]


class Gate(shapes.Shape):
    """What ci prints."""

    scenarios: Annotated[tuple[GateScenario, ...], doc("One for each command.")]


def gate(outcomes: Iterable[Scenario]) -> Gate:
    return Gate(
        scenarios=tuple(
            shaped(
                GateScenario,
                outcome,
                growth=report.growth(outcome.growth),
                limit=outcome.growth.limit_bytes if outcome.growth else None,
                case=str(outcome.case_file) if outcome.case_file else None,
            )
            for outcome in outcomes
        )
    )
