"""The report on a terminal. The first screen answers: what grows, how fast, in which layer, through whose code, what to
set."""

import io
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.text import Text

from memforensics.case.model import Case, Diagnosis, Finding
from memforensics.report import sentences
from memforensics.report.terminal import parts
from memforensics.report.terminal.console import Console
from memforensics.text import visible
from memforensics.units import counted_text, duration_text

_MAX_SITES = 2


@dataclass(frozen=True, slots=True)
class Report:
    """A rich renderable: `console.print(Report(case, diagnosis))`."""

    case: Case
    diagnosis: Diagnosis

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from _screen(self.case, self.diagnosis, options.max_width)


def report_text(case: Case, diagnosis: Diagnosis, width: int = 100) -> str:
    """The screen as plain text of that width."""
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, force_terminal=False, legacy_windows=False).print(
        Report(case, diagnosis)
    )
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _screen(case: Case, diagnosis: Diagnosis, width: int) -> Iterator[RenderableType]:
    yield parts.headline(diagnosis.verdict, diagnosis.headline)
    yield Text()
    yield _indent(parts.facts_table(_summary(case, diagnosis)))
    for index in range(len(diagnosis.findings)):
        yield Text()
        yield from _finding(diagnosis, index, width)
    if diagnosis.hooks:
        yield Text()
        yield parts.heading("Intercepted functions")
        yield _indent(parts.hooks_of(diagnosis))
    for index, finding in enumerate(diagnosis.findings):
        number = f" (finding {index + 1})" if len(diagnosis.findings) > 1 else ""
        yield from _reasons(finding, number, sentences.same_remedies_as(diagnosis, index) is None)
    if diagnosis.layers:
        yield Text()
        yield parts.heading("Layers", "rows in RSS sum to the RSS of the kernel")
        yield _indent(parts.layers_table(diagnosis.layers))
        sums = sentences.kernel_totals_sentence(diagnosis.kernel_totals)
        if sums is not None:
            yield _indent(Text(sums, style="dim"))
    yield from _limits(case, diagnosis)


def _summary(case: Case, diagnosis: Diagnosis) -> Iterator[tuple[str, Text | str]]:
    seen = sentences.observed(case)
    yield "growth", sentences.growth_sentence(diagnosis.growth)
    limit = sentences.limit_sentence(diagnosis.growth)
    if limit:
        yield "limit", limit
    if seen.root is not None:
        yield (
            "process",
            parts.fit_end(f"{sentences.target_sentence(case, seen.root)}  {' '.join(seen.root.cmdline)}", 160),
        )
    tree = sentences.members_sentence(diagnosis, case)
    if tree:
        yield "tree", tree
    first = next(iter(diagnosis.findings), None)
    if first is not None:
        yield "layer", f"{first.layer}{f', {first.share:.0%} of the growth' if first.share is not None else ''}"
        if first.culprit is not None:
            yield sentences.culprit_label(first), sentences.culprit_sentence(first.culprit)
            caller = sentences.caller_sentence(first.culprit)
            if caller:
                yield "called from", Text(visible(caller), style="bold cyan")
    for hooks, _ in sentences.same_hooks(diagnosis)[:3]:
        yield "hooks", Text(visible(sentences.hook_summary(hooks)), style="magenta")
    yield "observed", f"{duration_text(seen.seconds)}, {seen.samples} samples"
    if diagnosis.next_step:
        yield "next", diagnosis.next_step


def _finding(diagnosis: Diagnosis, index: int, width: int) -> Iterator[RenderableType]:
    finding = diagnosis.findings[index]
    count = f"{index + 1}. " if len(diagnosis.findings) > 1 else ""
    yield parts.heading(f"{count}{visible(finding.title)}", f"{finding.cause}" if finding.cause else "")
    yield _indent(Text(sentences.finding_sentence(finding), style="dim"))
    for site in finding.sites[:_MAX_SITES]:
        yield Text()
        yield _indent(Text(visible(sentences.site_sentence(site)), style="bold"))
        yield _indent(parts.site_table(site, finding.culprit, width - 2))
    if len(finding.sites) > _MAX_SITES:
        more = counted_text(len(finding.sites) - _MAX_SITES, "more site")
        yield _indent(Text(f"and {more} (all with --json)", style="dim"))
    earlier = sentences.same_remedies_as(diagnosis, index)
    if earlier is not None:
        yield Text()
        yield parts.heading("What to do", f"the same as for finding {earlier + 1}")
    elif finding.remedies:
        yield Text()
        yield parts.heading("What to do, in this order")
        yield _indent(parts.remedies_table(finding.remedies, sentences.evidence_of(finding).no_help))
    if finding.next_step and finding.next_step != diagnosis.next_step:
        yield Text()
        yield parts.heading("Next")
        yield _indent(Text(visible(finding.next_step)))


def _reasons(finding: Finding, number: str, with_cause: bool) -> Iterator[RenderableType]:
    evidence = sentences.evidence_of(finding)
    for title, texts, mark in (
        ("Why it grows", evidence.why if with_cause else (), ""),
        ("Evidence", evidence.facts, "-"),
        ("What speaks against it", finding.against, "-"),
    ):
        if texts:
            yield Text()
            yield parts.heading(title + number)
            yield _indent(parts.bullets(texts, mark) if mark else Text(visible(" ".join(texts))))


def _limits(case: Case, diagnosis: Diagnosis) -> Iterator[RenderableType]:
    for title, texts in (
        ("Not observed", sentences.not_seen_sentences(diagnosis)),
        ("Lost", sentences.losses_sentences(case)),
        ("Cost of the observation", sentences.cost_sentences(case)),
    ):
        if texts:
            yield Text()
            yield parts.heading(title)
            yield _indent(parts.bullets(texts))


def _indent(renderable: RenderableType) -> Padding:
    return Padding(renderable, (0, 0, 0, 2), expand=False)
