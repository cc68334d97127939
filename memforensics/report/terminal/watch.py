"""The live screen of watch: rich renderables made from a tick."""

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from memforensics.case.model import Layer, LayerRow, MappingGroup, Rate, Sample, Target
from memforensics.case.views import WatchTick
from memforensics.report import sentences
from memforensics.report.terminal import parts
from memforensics.text import visible
from memforensics.units import change_text, duration_text, rate_text, size_text

_BARS = "▁▂▃▄▅▆▇█"
_DOWN = "↓"
_MEMBERS_SHOWN = 6
_MEMBERS_IF_SHORT = 2  # on a short screen
_LAYERS_IF_SHORT = 4
_EVENTS_SHOWN = 4
_GROUPS_SHOWN = 5
_WIDE = 100  # columns; from here on intervals have a column
_WIDEST = 140
_LABEL = 9  # columns of a label
_OLD_S = 2.0  # an age below it is not shown


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A part of a screen. If the screen is too short, parts are replaced by `short` and then left out, those with
    higher numbers first. 0: never."""

    shown: RenderableType
    short: RenderableType | None = None
    shortened: int = 0
    left_out: int = 0


class WatchScreen:
    """The screen as parts, from top to bottom. Most ticks change sizes only: a part that did not change stays the same
    object and is not drawn again."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._fixed: tuple[list[Part], list[Part], list[Part]] = ([], [], [])

    def parts(self, tick: WatchTick, *, footer: str, width: int, case_file: str | None = None) -> list[Part]:
        """`case_file`: where the case is recorded."""
        width = min(width, _WIDEST)
        if tick.is_news or self._key != (width, footer):
            self._key = width, footer
            ending = _ending(tick, case_file) if tick.ended else ()
            self._fixed = (
                list(_process(tick, width)),
                [*_growth(tick), *ending, _blank()],
                list(_details(tick, footer, width)),
            )
        above, middle, below = self._fixed
        return [*above, *_sizes(tick, width), *middle, Part(_layers_heading(tick, width)), *below]


def help_parts(tick: WatchTick, *, footer: str) -> list[Part]:
    """What the keys do and what the words mean."""
    rows: list[tuple[str, Text | str]] = [
        ("q", "end the watch and show the result"),
        ("?", "show or hide this help"),
        ("Ctrl-C", "stop at once"),
        ("", ""),
        ("growth", "rate of anonymous, shared and swapped memory, with its 95% interval"),
        ("layers", "RSS by owner; `memforensics snapshot` shows the mappings"),
        ("growing", "Growth alone does not prove a leak: a cache that is filling looks the same."),
        ("leak", "There is more evidence than growth, such as a known cause."),
        ("bounded", "It grew and stopped, or has a known limit."),
        ("cause", "with --until leak or --on-leak CMD, watch also searches for the cause"),
    ]
    return [
        Part(parts.headline(tick.diagnosis.verdict, tick.diagnosis.headline)),
        _blank(),
        Part(_facts(rows)),
        _blank(),
        Part(Text(visible(footer), style="dim")),
    ]


def sparkline(values: Sequence[float], width: int) -> str:
    """Values as bars of eight heights, the newest at the right."""
    if not values:
        return ""
    count = min(width, len(values))
    shown = [values[(i + 1) * len(values) // count - 1] for i in range(count)]
    low, high = min(shown), max(shown)
    if high <= low:
        return _BARS[0] * count
    return "".join(_BARS[min(int((v - low) / (high - low) * len(_BARS)), len(_BARS) - 1)] for v in shown)


def fallback_rows(tick: WatchTick) -> tuple[LayerRow, ...]:
    """RssAnon, RssFile and RssShmem of the tree, for when the mappings cannot be read. The layers of the anonymous part
    are then unknown."""
    now = list(tick.now.values())
    if not now:
        return ()
    first = {s.pid: s for s in reversed(tick.case.samples)}
    kinds: tuple[tuple[Layer, Callable[[Sample], int]], ...] = (
        ("unattributed", lambda s: s.rss_anon),
        ("shmem", lambda s: s.rss_shmem),
        ("file", lambda s: s.rss_file),
    )
    return tuple(
        LayerRow(
            layer=layer,
            in_rss=True,
            bytes=sum(map(size, now)),
            change_bytes=sum(size(s) - size(first.get(s.pid, s)) for s in now),
        )
        for layer, size in kinds
    )


def _blank() -> Part:
    return Part(Text(), left_out=9)


def _process(tick: WatchTick, width: int) -> Iterator[Part]:
    case, diagnosis = tick.case, tick.diagnosis
    yield Part(parts.headline(diagnosis.verdict, diagnosis.headline))
    yield _blank()
    root = case.target(case.meta.root_pid) if case.meta.root_pid is not None else None
    if root is not None:
        command = parts.fit_end(visible(" ".join(root.cmdline) or root.comm), width - _LABEL - 4)
        who = parts.fit_end(visible(sentences.target_sentence(case, root)), width - _LABEL - 4)
        yield Part(_facts([("process", who)]))
        yield Part(_facts([("command", command)]), left_out=2)


def _sizes(tick: WatchTick, width: int) -> Iterator[Part]:
    """What changes at every tick."""
    facts = [size_text(tick.rss) + (f" in {len(tick.now)} processes" if len(tick.now) > 1 else "")]
    facts.append(f"watched for {duration_text(round(tick.elapsed_s))}")
    stopped = [str(pid) for pid, sample in tick.now.items() if sample.is_stopped]
    if stopped:
        facts.append(f"stopped: {', '.join(stopped[:_MEMBERS_SHOWN])}")
    judged_s = tick.age_s(tick.ages.verdict_ns) or 0.0
    if judged_s >= _OLD_S:
        facts.append(f"verdict as of {duration_text(round(judged_s))} ago")
    if tick.search:
        facts.append(tick.search)
    yield Part(_facts([("RSS", ", ".join(facts))]))
    if tick.line:
        bars = Text(sparkline(tick.line, max(10, width - _LABEL - 40)), style="cyan")
        bars.append(f"  {size_text(min(tick.line))} to {size_text(max(tick.line))} anonymous", style="dim")
        yield Part(_facts([("", bars)]), left_out=1)


def _growth(tick: WatchTick) -> Iterator[Part]:
    diagnosis = tick.diagnosis
    rows: list[tuple[str, Text | str]] = [("growth", sentences.growth_sentence(diagnosis.growth))]
    limit = diagnosis.growth.limit_bytes if diagnosis.growth else None
    if limit is not None:
        rows.append(("limit", sentences.limit_sentence(diagnosis.growth) or f"{size_text(limit)} for the cgroup"))
    if not tick.ended:
        rows += _next(tick)
    yield Part(_facts(rows))
    lost = [loss for loss in tick.case.losses if loss.count]
    if lost:
        short = f"{len(lost)} kinds of losses; a taller terminal or --json shows them"
        shorter = _facts([("not seen", short)]) if len(lost) > 1 else None
        yield Part(_facts([("not seen", sentences.loss_text(loss)) for loss in lost]), short=shorter, shortened=6)


def _next(tick: WatchTick) -> list[tuple[str, Text | str]]:
    """What to do: for a leak the settings that help, in the order to try them; else the next step."""
    diagnosis = tick.diagnosis
    remedies = next((finding.remedies for finding in diagnosis.findings if finding.remedies), ())
    if diagnosis.verdict == "leak" and remedies:
        return [("to do", "; or ".join(sentences.remedy_setting(remedy) for remedy in remedies))]
    root = tick.case.target(tick.case.meta.root_pid) if tick.case.meta.root_pid is not None else None
    if root is not None and root.exited_ns is not None:
        return []  # the next step needs the living process
    if diagnosis.next_step and diagnosis.verdict in ("growing", "leak") and not tick.search:
        return [("next", diagnosis.next_step)]
    return []


def _ending(tick: WatchTick, case_file: str | None) -> Iterator[Part]:
    """For the last screen: what to do, and where the case is."""
    found = next((finding for finding in tick.diagnosis.findings if finding.remedies), None)
    rows = _next(tick)
    short = _facts(rows)
    if found is not None and tick.diagnosis.verdict == "leak":
        yield _blank()
        title = parts.heading("What to do", visible(found.title))
        ladder = _indented(parts.remedies_table(found.remedies))
        yield Part(Group(title, ladder), short=short, shortened=10)
    elif rows:
        yield Part(short)
    if case_file is not None:
        yield Part(_facts([("case", f"memforensics report {shlex.quote(case_file)}")]))
    elif tick.diagnosis.verdict in ("leak", "growing"):
        yield Part(_facts([("case", "not recorded; use --record FILE")]))


def _layers_heading(tick: WatchTick, width: int) -> Text:
    if not tick.diagnosis.layers:
        return parts.heading("Layers", "totals only, because the mappings could not be read")
    read_s, oldest_s = tick.age_s(tick.ages.layers_ns) or 0.0, tick.age_s(tick.ages.oldest_ns) or 0.0
    notes = []
    if read_s >= _OLD_S:
        notes.append(f"as of {duration_text(round(read_s))} ago")
    if oldest_s >= read_s + _OLD_S:
        notes.append(f"partly as of {duration_text(round(oldest_s))} ago")
    return parts.heading("Layers", parts.fit_end(", ".join(notes), width - 8))


def _details(tick: WatchTick, footer: str, width: int) -> Iterator[Part]:
    """Layers, mappings, processes and events."""
    case, diagnosis = tick.case, tick.diagnosis
    rows = [row for row in diagnosis.layers or fallback_rows(tick) if row.bytes or row.change_bytes]
    few = _indented(_waterfall(rows, width, _LAYERS_IF_SHORT)) if len(rows) > _LAYERS_IF_SHORT + 1 else None
    yield Part(_indented(_waterfall(rows, width)), short=few, shortened=4)
    sums = sentences.kernel_totals_sentence(diagnosis.kernel_totals)
    if sums is not None:
        yield Part(_indented(Text(sums, style="dim")), left_out=7)
    grown = [group for group in diagnosis.groups if group.change_bytes > 0][:_GROUPS_SHOWN]
    if grown:
        yield _blank()
        moved = f"; {_DOWN}: grows downward" if any(g.moved for g in grown) else ""
        grew = parts.heading("Mappings that grew", f"since the start{moved}")
        yield Part(Group(grew, _indented(_groups(grown, width))), left_out=8)
    if len(case.targets) > 1:
        yield _blank()
        yield Part(parts.heading("Processes", "fastest growing first"), left_out=3)
        shown = _indented(_members(tick, width, _MEMBERS_SHOWN))
        yield Part(shown, _indented(_members(tick, width, _MEMBERS_IF_SHORT)), shortened=5, left_out=2)
    happened = [event for event in tick.events if event[1] != "joined"][-_EVENTS_SHOWN:]
    if happened:
        yield _blank()
        for pid, what in happened:
            yield Part(Text(f"  process {pid}: {visible(what)}", style="yellow"), left_out=6)
    yield _blank()
    yield Part(Text(visible(footer), style="dim"))


def _indented(what: RenderableType) -> Padding:
    return Padding(what, (0, 0, 0, 2))


def short_command(target: Target) -> str:
    """The role, if known, and the command line without folders."""
    words = " ".join(word.rpartition("/")[2] or word for word in target.cmdline) or target.comm
    return f"{target.role}: {words}" if target.role else words


def _facts(rows: Iterable[tuple[str, Text | str]]) -> Padding:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(style="dim", no_wrap=True, width=_LABEL - 1)
    table.add_column(ratio=1)
    for label, value in rows:
        table.add_row(label, Text(visible(value)) if isinstance(value, str) else value)
    return Padding(table, (0, 0, 0, 2))


def _waterfall(rows: Sequence[LayerRow], width: int, most: int | None = None) -> Table:
    """The layers, those in RSS first, and their sum, which is the kernel's figure. If there are more than `most`, it
    shows those that grow and the largest, and sums the others in one row."""
    wide = width >= _WIDE
    table = _table("layer", "now", "change", "rate", *(("95% interval",) if wide else ()))
    table.columns[0].justify = "left"
    table.add_column("verdict", no_wrap=True)
    rows = sorted(rows, key=lambda row: not row.in_rss)
    shown = {id(row) for row in sorted(rows, key=_weight, reverse=True)[:most]}
    for row in rows:
        if id(row) not in shown:
            continue
        grows = row.verdict in ("leak", "growing")
        cells: list[Text | str] = [
            Text(row.layer if row.in_rss else f"{row.layer} (not in RSS)", style="bold" if grows else ""),
            size_text(row.bytes) if row.bytes is not None else "not read",
            change_text(row.change_bytes) if row.change_bytes is not None else "",
            rate_text(row.rate.estimate) if row.rate is not None and _moves(row.rate) else "",
        ]
        style = "bold red" if row.verdict == "leak" else "yellow" if grows else "dim"
        word = Text("" if row.bytes is None or row.verdict == "insufficient-data" else row.verdict, style=style)
        table.add_row(*cells, *((_interval(row.rate),) if wide else ()), word)
    rest = [row for row in rows if id(row) not in shown and row.in_rss]
    if rest:
        table.add_row(Text(f"{len(rest)} more layers", style="dim"), *_sums(rest), style="dim")
    table.add_row(Text("sum = RSS", style="dim"), *_sums([row for row in rows if row.in_rss]), style="dim")
    return table


def _weight(row: LayerRow) -> tuple[bool, bool, int]:
    """Sort key: which layers a short screen shows."""
    return row.in_rss, row.verdict in ("leak", "growing"), max(row.bytes or 0, abs(row.change_bytes or 0))


def _sums(rows: Sequence[LayerRow]) -> tuple[str, str]:
    """Now, and the change."""
    changes = [row.change_bytes for row in rows if row.change_bytes is not None]
    return size_text(sum(row.bytes or 0 for row in rows)), change_text(sum(changes)) if changes else ""


def _interval(rate: Rate | None) -> str:
    return f"{change_text(rate.low)} to {change_text(rate.high)}" if rate is not None and _moves(rate) else ""


def _moves(rate: Rate) -> bool:
    return bool(rate.low or rate.high)


def _groups(grown: Sequence[MappingGroup], width: int) -> Table:
    table = _table("now", "change")
    table.add_column("what", no_wrap=True)
    for group in grown:
        name = group.name + (f", {group.count_after} of them" if group.count_after > 1 else "")
        name = f"{_DOWN} {name}" if group.moved else name
        table.add_row(
            size_text(group.after_bytes) if group.after_bytes is not None else "",
            change_text(group.change_bytes),
            Text(parts.fit_end(visible(name), max(20, width - 25))),
        )
    return table


def _table(*names: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _members(tick: WatchTick, width: int, most: int) -> Table:
    case, diagnosis, now = tick.case, tick.diagnosis, tick.now
    table = _table("pid", "RSS", "change", "rate")
    table.add_column("command", no_wrap=True, ratio=1)
    alive = [m for m in diagnosis.members if m.pid in now]
    for member in alive[:most]:
        target = case.target(member.pid)
        command = short_command(target) if target is not None else ""
        table.add_row(
            str(member.pid),
            size_text(now[member.pid].rss),
            change_text(member.change_bytes),
            rate_text(member.rate.estimate) if member.rate else "",
            Text(parts.fit_end(visible(command), max(20, width - 48))),
        )
    rest = alive[most:]
    if rest:
        table.add_row(
            "",
            size_text(sum(now[member.pid].rss for member in rest)),
            change_text(sum(member.change_bytes for member in rest)),
            "",
            Text(f"{len(rest)} more", style="dim"),
        )
    table.add_row(
        Text("sum", style="dim"),
        size_text(sum(now[member.pid].rss for member in alive)),
        change_text(sum(member.change_bytes for member in alive)),
        "",
        Text("1 process" if len(alive) == 1 else f"{len(alive)} processes", style="dim"),
    )
    return table
