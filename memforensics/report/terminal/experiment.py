"""The outcome of prove: a table of growth rates."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from memforensics.case.model import VariantResult
from memforensics.text import visible
from memforensics.units import change_text, rate_text

_STYLES = {"works": "bold green", "partly": "yellow", "none": "red", "worse": "bold red", "not-shown": "dim"}


def experiment_table(results: Sequence[VariantResult]) -> RenderableType:
    """The growth rate of each variant with its interval, and a sentence."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    table.add_column("variant", overflow="fold")
    for name in ("growth", "interval"):
        table.add_column(name, justify="right", no_wrap=True)
    if any(result.throughput is not None for result in results):
        table.add_column("units/s", justify="right", no_wrap=True)
    table.add_column("effect", no_wrap=True)
    table.add_column("")
    for result in results:
        rate = result.growth
        cells: list[str | Text] = [
            Text(visible(result.name)),
            rate_text(rate.estimate) if rate else "not known",
            f"{change_text(rate.low)} to {change_text(rate.high)}" if rate else "",
        ]
        if any(other.throughput is not None for other in results):
            cells.append(f"{result.throughput:.1f}" if result.throughput is not None else "")
        cells += [Text(result.effect, style=_STYLES.get(result.effect, "")), Text(visible(result.why), style="dim")]
        table.add_row(*cells)
    return Group(table, Text(), Text(experiment_sentence(results), style="bold"))


def experiment_sentence(results: Sequence[VariantResult]) -> str:
    """Which variants stop the growth."""
    working = [visible(result.name) for result in results if result.effect == "works"]
    if working:
        return f"These variants stop the growth: {'; '.join(working)}."
    if all(result.effect in ("baseline", "not-shown") for result in results):
        return "No conclusion: no variant could be compared with the baseline."
    return "No variant stops the growth."
