"""The report as Markdown, for an issue, a chat or a step summary. Names from the target are escaped."""

import re
from collections.abc import Iterable, Iterator

from memforensics.case.model import Case, Diagnosis, Finding, FindingSite, Remedy
from memforensics.report import sentences
from memforensics.text import visible
from memforensics.units import change_text, duration_text, rate_text, size_text

# An underscore inside a word and a heading or list mark that does not begin the line are not markup.
_MARKDOWN = re.compile(r"([\\`*\[\]<>|~]|(?<![^\W_])_|_(?![^\W_])|^[#+=-])")
_MAX_FRAMES = 60
_MAX_SITES = 3


def report_markdown(case: Case, diagnosis: Diagnosis) -> str:
    """The whole report."""
    return "\n".join(_lines(case, diagnosis)) + "\n"


def _lines(case: Case, diagnosis: Diagnosis) -> Iterator[str]:
    seen = sentences.observed(case)
    yield f"# {diagnosis.verdict}: {markdown(diagnosis.headline)}"
    yield ""
    yield f"- Growth: {sentences.growth_sentence(diagnosis.growth)}"
    limit = sentences.limit_sentence(diagnosis.growth)
    if limit:
        yield f"- Limit: {limit}"
    if seen.root is not None:
        line = code(" ".join(seen.root.cmdline) or seen.root.comm)
        yield f"- Process: {markdown(sentences.target_sentence(case, seen.root))}, {line}"
    tree = sentences.members_sentence(diagnosis, case)
    if tree:
        yield f"- Tree: {markdown(tree)}"
    yield f"- Observed: {duration_text(seen.seconds)}, {seen.samples} samples"
    if diagnosis.next_step:
        yield f"- Next: {markdown(diagnosis.next_step)}"
    for index in range(len(diagnosis.findings)):
        yield from _finding(diagnosis, index)
    if diagnosis.hooks:
        yield from _hooks(diagnosis)
    if diagnosis.layers:
        yield from _layers(diagnosis)
    yield from _list("Not observed", sentences.not_seen_sentences(diagnosis))
    yield from _list("Lost", sentences.losses_sentences(case))
    yield from _list("Cost of the observation", sentences.cost_sentences(case))


def _finding(diagnosis: Diagnosis, index: int) -> Iterator[str]:
    finding, earlier = diagnosis.findings[index], sentences.same_remedies_as(diagnosis, index)
    yield ""
    yield f"## {index + 1}. {markdown(finding.title)}"
    yield ""
    yield f"{markdown(sentences.finding_sentence(finding))}{f', cause {code(finding.cause)}' if finding.cause else ''}."
    culprit = finding.culprit
    if culprit is not None:
        yield ""
        yield f"- {sentences.culprit_label(finding).capitalize()}: {markdown(sentences.culprit_sentence(culprit))}"
        if culprit.path:
            yield f"- File: {code(culprit.path)}{f', build id {code(culprit.build_id)}' if culprit.build_id else ''}"
        caller = sentences.caller_sentence(culprit)
        if caller:
            yield f"- Called from: {markdown(caller)}"
    evidence = sentences.evidence_of(finding)
    for text in evidence.why if earlier is None else ():
        yield ""
        yield f"**Why:** {markdown(text)}"
    for site in finding.sites[:_MAX_SITES]:
        yield from _site(site, finding)
    if len(finding.sites) > _MAX_SITES:
        yield ""
        yield f"{len(finding.sites) - _MAX_SITES} further sites are in the JSON report."
    if earlier is not None:
        yield ""
        yield f"What to do: the same as for finding {earlier + 1}."
    elif finding.remedies:
        yield ""
        yield "### What to do, in this order"
        for rung, remedy in enumerate(finding.remedies, 1):
            yield from _remedy(rung, remedy)
        for text in evidence.no_help:
            yield ""
            yield f"{markdown(text)}."
    if finding.next_step and finding.next_step != diagnosis.next_step:
        yield ""
        yield f"**Next:** {markdown(finding.next_step)}"
    yield from _list("Evidence", evidence.facts, level=3)
    yield from _list("What speaks against it", finding.against, level=3)


def _site(site: FindingSite, finding: Finding) -> Iterator[str]:
    yield ""
    yield f"**{markdown(sentences.site_sentence(site))}**"
    yield ""
    yield "```text"
    entry = sentences.hook_entry(site)
    shown, left_out = sentences.shown_frames(site, finding.culprit, _MAX_FRAMES)
    for index, frame in enumerate(site.stack.frames[:shown]):
        notes = ""
        if index == entry:
            notes += f"   <== {site.kind} inside {site.inside}"
        elif frame.kind == "hook":
            notes += "   (hook)"
        if sentences.is_caller(frame, finding.culprit):
            notes += "   <== the application"
        if frame.guessed:
            notes += "   (guessed)"
        # Each line begins with its number, so no line can end the fence.
        yield f"#{index:<3} {visible(sentences.frame_name(frame))}  {visible(sentences.frame_place(frame))}{notes}"
    if left_out:
        yield f"...  {left_out} more frames"
    if not site.stack.complete:
        yield "...  more frames could not be read"
    yield "```"


def _remedy(rung: int, remedy: Remedy) -> Iterator[str]:
    yield ""
    setting = code(sentences.remedy_setting(remedy))
    yield f"{rung}. {setting} ({remedy.kind}, {sentences.scope_sentence(remedy)}). {markdown(remedy.text)}"
    for caveat in remedy.caveats:
        yield f"   - Note: {markdown(caveat)}"
    if remedy.source:
        yield f"   - Source: {remedy.source}"


def _hooks(diagnosis: Diagnosis) -> Iterator[str]:
    yield ""
    yield "## Intercepted functions"
    yield ""
    for hooks, meanings in sentences.same_hooks(diagnosis):
        functions = ", ".join(code(hook.function) for hook in hooks)
        yield f"- {functions}: {markdown(sentences.hook_sentence(hooks))}"
        for meaning in meanings:
            yield f"  - {markdown(meaning)}"


def _layers(diagnosis: Diagnosis) -> Iterator[str]:
    yield ""
    yield "## Layers"
    yield ""
    yield "| layer | bytes | change | rate | verdict |"
    yield "|---|---:|---:|---:|---|"
    for row in diagnosis.layers:
        size = size_text(row.bytes) if row.bytes is not None else "not read"
        change = change_text(row.change_bytes) if row.change_bytes is not None else ""
        rate = rate_text(row.rate.estimate) if row.rate is not None else ""
        outside = "" if row.in_rss else " (not in RSS)"
        verdict = row.verdict if row.bytes is not None else ""
        yield f"| {row.layer}{outside} | {size} | {change} | {rate} | {verdict} |"
    sums = sentences.kernel_totals_sentence(diagnosis.kernel_totals)
    if sums is not None:
        yield ""
        yield sums


def _list(title: str, texts: Iterable[str], level: int = 2) -> Iterator[str]:
    items = list(texts)
    if not items:
        return
    yield ""
    yield f"{'#' * level} {title}"
    yield ""
    for text in items:
        yield f"- {markdown(text)}"


def markdown(text: str) -> str:
    """One line of Markdown in which no part of the text is markup."""
    return _MARKDOWN.sub(r"\\\1", visible(text))


def code(text: str) -> str:
    """A Markdown code span whose fence is longer than any run of backticks in the text."""
    shown = visible(text)
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if shown.startswith("`") or shown.endswith("`") or not shown.strip() else ""
    return f"{fence}{pad}{shown}{pad}{fence}"
