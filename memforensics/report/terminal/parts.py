"""Parts of a terminal screen that several commands use: a verdict, a stack, hooks, layers, remedies.

Text from the target goes through `visible` into rich Text, which has no markup, so it cannot change colours or move the
cursor. Widths are arguments, so a test, a pipe and a terminal show the same screen.
"""

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from memforensics.case.model import Culprit, Diagnosis, FindingSite, Frame, Hook, LayerRow, Remedy, Stack, Verdict
from memforensics.report import sentences
from memforensics.text import visible
from memforensics.units import change_text, rate_text, size_text

VERDICT_STYLES: dict[Verdict, str] = {
    "steady": "bold black on green",
    "bounded": "bold black on green",
    "retention": "bold black on yellow",
    "leak": "bold white on red",
    "growing": "bold black on yellow",
    "insufficient-data": "bold black on white",
}
_FRAME_STYLES = {"native": "", "python": "cyan", "hook": "magenta"}
_MAX_FRAMES = 26


def verdict_badge(verdict: Verdict) -> Text:
    return Text(f" {verdict.upper()} ", style=VERDICT_STYLES[verdict])


def heading(title: str, note: str = "") -> Text:
    text = Text(title, style="bold")
    if note:
        text.append(f"  {visible(note)}", style="dim not bold")
    return text


def stack_table(
    stack: Stack,
    *,
    culprit: Culprit | None = None,
    hook_entry: int | None = None,
    inside: str | None = None,
    frames: int | None = None,
    width: int = 100,
) -> Table:
    """A stack, leaf first, with marks at the application's function and at the start of a hook. `frames`: at most so
    many."""
    shown = stack.frames if frames is None else stack.frames[:frames]
    name_width = min(max((len(visible(sentences.frame_name(f))) for f in shown), default=1), max(20, width * 45 // 100))
    table = _grid()
    table.add_column(width=3, justify="right", style="dim", no_wrap=True)
    table.add_column(width=name_width, no_wrap=True)
    table.add_column(width=max(20, width - name_width - 8), no_wrap=True)
    for index, frame in enumerate(shown):
        marked = sentences.is_caller(frame, culprit)
        note = _note(frame, marked=marked, entry=index == hook_entry, inside=inside)
        table.add_row(
            f"{index}",
            Text(fit_end(visible(sentences.frame_name(frame)), name_width), style=_style(frame, marked=marked)),
            _place(frame, note, max(20, width - name_width - 8), marked=marked),
        )
    left_out = len(stack.frames) - len(shown)
    if left_out:
        table.add_row("", "...", Text(f"{left_out} more frames (all with --json)", style="dim"))
    if not stack.complete:
        table.add_row("", "...", Text("more frames could not be read", style="dim"))
    return table


def site_table(site: FindingSite, culprit: Culprit | None, width: int) -> Table:
    """The stack of a finding's site, up to a few frames beyond the application's function."""
    shown, _ = sentences.shown_frames(site, culprit, _MAX_FRAMES)
    entry = sentences.hook_entry(site)
    inside = f"{site.kind} inside {site.inside}" if site.inside else None
    return stack_table(site.stack, culprit=culprit, hook_entry=entry, inside=inside, frames=shown, width=width)


def hooks_table(groups: Iterable[tuple[Sequence[Hook], Sequence[str]]]) -> Table:
    """Intercepted functions: a row for the hooks of each owner and mechanism, with what they mean below."""
    table = _grid()
    table.add_column(style="bold magenta", max_width=24)
    table.add_column(ratio=1)
    for hooks, meanings in groups:
        table.add_row(
            Text(", ".join(visible(h.function) for h in hooks)), Text(visible(sentences.hook_sentence(hooks)))
        )
        for meaning in meanings:
            table.add_row("", Text(visible(meaning), style="dim"))
    return table


def remedies_table(remedies: Iterable[Remedy], no_help: Iterable[str] = ()) -> Table:
    """The remedies in the order to try them, with caveats and sources."""
    table = _grid()
    table.add_column(style="bold green", no_wrap=True)
    table.add_column(ratio=1)
    for rung, remedy in enumerate(remedies, 1):
        first = Text(visible(sentences.remedy_setting(remedy)), style="bold green")
        first.append(f"   {remedy.kind}, {sentences.scope_sentence(remedy)}", style="dim not bold")
        table.add_row(f"{rung}", first)
        table.add_row("", Text(visible(remedy.text)))
        for caveat in remedy.caveats:
            table.add_row("", Text("! ", style="yellow").append(visible(caveat), style="default"))
        if remedy.source:
            table.add_row("", Text(visible(remedy.source), style="dim"))
    for text in no_help:
        table.add_row(Text("x", style="bold red"), Text(visible(text)))
    return table


def layers_table(rows: Iterable[LayerRow]) -> Table:
    """The waterfall."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    for name, justify in (("layer", "left"), ("bytes", "right"), ("change", "right"), ("rate", "right")):
        table.add_column(name, justify="left" if justify == "left" else "right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for row in rows:
        grows = row.verdict in ("leak", "growing")
        table.add_row(
            Text(row.layer, style="bold" if grows else ""),
            size_text(row.bytes) if row.bytes is not None else "not read",
            change_text(row.change_bytes) if row.change_bytes is not None else "",
            rate_text(row.rate.estimate) if row.rate is not None else "",
            Text(_verdict_of(row), style="bold red" if row.verdict == "leak" else "yellow" if grows else "dim"),
        )
    return table


def _verdict_of(row: LayerRow) -> str:
    verdict = row.verdict if row.bytes is not None else ""
    return verdict if row.in_rss else ", ".join(filter(None, (verdict, "not in RSS")))


def facts_table(rows: Iterable[tuple[str, Text | str]]) -> Table:
    """Labelled facts, one a row."""
    table = _grid()
    table.add_column(style="dim", no_wrap=True)
    table.add_column(ratio=1)
    for label, value in rows:
        table.add_row(label, Text(visible(value)) if isinstance(value, str) else value)
    return table


def headline(verdict: Verdict, text: str) -> Table:
    """The first line of a screen."""
    table = _grid()
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    table.add_row(verdict_badge(verdict), Text(visible(text), style="bold"))
    return table


def bullets(texts: Iterable[str], mark: str = "-") -> Table:
    table = _grid()
    table.add_column(style="dim", no_wrap=True)
    table.add_column(ratio=1)
    for text in texts:
        table.add_row(mark, Text(visible(text)))
    return table


def hooks_of(diagnosis: Diagnosis) -> Table:
    return hooks_table(sentences.same_hooks(diagnosis))


def fit_end(text: str, width: int) -> str:
    """Cuts the end of a text that is too long (a function's name)."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def fit_start(text: str, width: int) -> str:
    """Cuts the beginning of a text that is too long (a path), between two folders if possible."""
    if len(text) <= width:
        return text
    end = text[len(text) - max(0, width - 1) :]
    _, slash, rest = end.partition("/")
    return f"…/{rest}" if slash and rest else f"…{end}"


def _grid() -> Table:
    return Table.grid(padding=(0, 1, 0, 0), expand=False)


def _style(frame: Frame, *, marked: bool) -> str:
    return "bold black on cyan" if marked else _FRAME_STYLES[frame.kind]


def _note(frame: Frame, *, marked: bool, entry: bool, inside: str | None) -> str:
    if entry and inside:
        return f"◄ {inside}"
    if marked:
        return "◄ the application"
    if frame.kind == "hook":
        return "hook"
    return "guessed" if frame.guessed else ""


def _place(frame: Frame, note: str, width: int, *, marked: bool) -> Text:
    room = width - (len(note) + 2 if note else 0)
    text = Text(fit_start(visible(sentences.frame_place(frame)), room), style="bold cyan" if marked else "dim")
    if note:
        text.append(f"  {note}", style="bold cyan" if marked else "bold magenta")
    return text
