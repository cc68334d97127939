"""The live screen of watch. Pure: a tick in, rich renderables out."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from memforensics.case.model import Layer, LayerRow, MappingGroup, Rate, Sample, Target
from memforensics.report import observed as say
from memforensics.report import terminal_parts as parts
from memforensics.report.text import visible
from memforensics.report.watch_line import WatchTick
from memforensics.units import change_text, duration_text, rate_text, size_text

_BARS = "▁▂▃▄▅▆▇█"
_DOWN = "↓"
_MEMBERS_SHOWN = 6
_EVENTS_SHOWN = 4
_GROUPS_SHOWN = 5
_WIDE = 100  # columns from which intervals have one of their own
_WIDEST = 140
_LABEL = 9  # columns of a fact's label
_OLD_S = 2.0  # from which an age is told


class WatchScreen:
    """The screen as parts, top to bottom. What a tick did not change is the very object of before, so that it need not
    be drawn again: most ticks bring new sizes and nothing else."""

    def __init__(self) -> None:
        self._width = 0
        self._fixed: tuple[list[RenderableType], list[RenderableType], list[RenderableType]] = ([], [], [])

    def parts(self, tick: WatchTick, *, footer: str, width: int) -> list[RenderableType]:
        width = min(width, _WIDEST)
        if tick.is_news or width != self._width:
            self._width = width
            self._fixed = (
                list(_who(tick, width)),
                [_facts(_growth(tick)), Text()],
                list(_where(tick, footer, width)),
            )
        above, middle, below = self._fixed
        return [*above, *_sizes(tick, width), *middle, _layers_heading(tick), *below]


def sparkline(values: Sequence[float], width: int) -> str:
    """Values as bars of eight heights between their least and greatest, the newest at the right."""
    if not values:
        return ""
    count = min(width, len(values))
    shown = [values[(i + 1) * len(values) // count - 1] for i in range(count)]
    low, high = min(shown), max(shown)
    if high <= low:
        return _BARS[0] * count
    return "".join(_BARS[min(int((v - low) / (high - low) * len(_BARS)), len(_BARS) - 1)] for v in shown)


def fallback_rows(tick: WatchTick) -> tuple[LayerRow, ...]:
    """RssAnon, RssFile and RssShmem of the tree, for when the mappings cannot be read: a layer of the anonymous part
    is then not known."""
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


def _who(tick: WatchTick, width: int) -> Iterator[RenderableType]:
    case, diagnosis = tick.case, tick.diagnosis
    yield parts.headline(diagnosis.verdict, diagnosis.headline)
    yield Text()
    root = case.target(case.meta.root_pid) if case.meta.root_pid is not None else None
    if root is not None:
        command = parts.fit_end(visible(" ".join(root.cmdline) or root.comm), width - _LABEL - 4)
        yield _facts([("process", say.target_sentence(case, root)), ("command", command)])


def _sizes(tick: WatchTick, width: int) -> Iterator[RenderableType]:
    """What every tick changes."""
    words = [size_text(tick.rss) + (f" in {len(tick.now)} processes" if len(tick.now) > 1 else "")]
    words.append(f"seen for {duration_text(round(tick.elapsed_s))}")
    stopped = [str(pid) for pid, sample in tick.now.items() if sample.is_stopped]
    if stopped:
        words.append(f"stopped: {', '.join(stopped[:_MEMBERS_SHOWN])}")
    judged_s = tick.age_s(tick.ages.verdict_ns) or 0.0
    if judged_s >= _OLD_S:
        words.append(f"judged {duration_text(round(judged_s))} ago")
    if tick.search:
        words.append(tick.search)
    rows: list[tuple[str, Text | str]] = [("RSS", ", ".join(words))]
    if tick.line:
        bars = Text(sparkline(tick.line, max(10, width - _LABEL - 40)), style="cyan")
        bars.append(f"  {size_text(min(tick.line))} to {size_text(max(tick.line))} anonymous", style="dim")
        rows.append(("", bars))
    yield _facts(rows)


def _growth(tick: WatchTick) -> Iterator[tuple[str, Text | str]]:
    diagnosis = tick.diagnosis
    yield "growth", say.growth_sentence(diagnosis.growth)
    limit = diagnosis.growth.limit_bytes if diagnosis.growth else None
    if limit is not None:
        yield "limit", say.limit_sentence(diagnosis.growth) or f"{size_text(limit)} for the cgroup"
    if diagnosis.next_step and diagnosis.verdict in ("growing", "leak") and not tick.search:
        yield "next", diagnosis.next_step
    for loss in tick.case.losses:
        yield "not seen", f"{loss.count} {loss.what}" + (f"; less with {loss.reduce}" if loss.reduce else "")


def _layers_heading(tick: WatchTick) -> Text:
    if not tick.diagnosis.layers:
        return parts.heading("Layers", "mappings not read: totals only")
    read_s, oldest_s = tick.age_s(tick.ages.layers_ns) or 0.0, tick.age_s(tick.ages.oldest_ns) or 0.0
    note = "those in RSS sum to the kernel's figure"
    if read_s >= _OLD_S:
        note += f", as read {duration_text(round(read_s))} ago"
    if oldest_s >= read_s + _OLD_S:
        note += f" (mappings that did not change: up to {duration_text(round(oldest_s))})"
    return parts.heading("Layers", note)


def _where(tick: WatchTick, footer: str, width: int) -> Iterator[RenderableType]:
    """Layers, mappings, processes, and what happened."""
    case, diagnosis = tick.case, tick.diagnosis
    rows = diagnosis.layers or fallback_rows(tick)
    yield Padding(_waterfall([row for row in rows if row.bytes or row.change_bytes], width), (0, 0, 0, 2))
    sums = say.beside_sentence(diagnosis.beside)
    if sums is not None:
        yield Padding(Text(sums, style="dim"), (0, 0, 0, 2))
    grown = [group for group in diagnosis.groups if group.change_bytes > 0][:_GROUPS_SHOWN]
    if grown:
        yield Text()
        moved = f"; {_DOWN} its start moves down, its end stays" if any(group.moved for group in grown) else ""
        yield parts.heading("Mappings that grew", f"since the first look at them{moved}")
        yield Padding(_groups(grown, width), (0, 0, 0, 2))
    if len(case.targets) > 1:
        yield Text()
        yield parts.heading("Processes", "the quickest growing first")
        yield Padding(_members(tick, width), (0, 0, 0, 2))
    shown = [event for event in tick.events if event[1] != "joined"][-_EVENTS_SHOWN:]
    if shown:
        yield Text()
        for pid, what in shown:
            yield Text(f"  process {pid}: {visible(what)}", style="yellow")
    yield Text()
    yield Text(visible(footer), style="dim")


def short_command(target: Target) -> str:
    """Its role where it has one, and its command line without the folders of what it names."""
    words = " ".join(word.rpartition("/")[2] or word for word in target.cmdline) or target.comm
    return f"{target.role}: {words}" if target.role else words


def _facts(rows: Iterable[tuple[str, Text | str]]) -> Padding:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(style="dim", no_wrap=True, width=_LABEL - 1)
    table.add_column(ratio=1)
    for label, value in rows:
        table.add_row(label, Text(visible(value)) if isinstance(value, str) else value)
    return Padding(table, (0, 0, 0, 2))


def _waterfall(rows: Sequence[LayerRow], width: int) -> Table:
    """The layers, those in RSS first, and their sum, which is the kernel's figure."""
    wide = width >= _WIDE
    table = _table("layer", "now", "change", "rate", *(("its interval",) if wide else ()))
    table.columns[0].justify = "left"
    table.add_column("verdict", no_wrap=True)
    for row in sorted(rows, key=lambda row: not row.in_rss):
        grows = row.verdict in ("leak", "growing")
        cells: list[Text | str] = [
            Text(row.layer if row.in_rss else f"{row.layer} (beside RSS)", style="bold" if grows else ""),
            size_text(row.bytes) if row.bytes is not None else "not read",
            change_text(row.change_bytes) if row.change_bytes is not None else "",
            rate_text(row.rate.estimate) if row.rate is not None and _moves(row.rate) else "",
        ]
        style = "bold red" if row.verdict == "leak" else "yellow" if grows else "dim"
        word = Text("" if row.bytes is None or row.verdict == "insufficient-data" else row.verdict, style=style)
        table.add_row(*cells, *((_interval(row.rate),) if wide else ()), word)
    total = sum(row.bytes or 0 for row in rows if row.in_rss)
    changes = [row.change_bytes for row in rows if row.in_rss and row.change_bytes is not None]
    table.add_row(
        Text("sum, in RSS", style="dim"), size_text(total), change_text(sum(changes)) if changes else "", style="dim"
    )
    return table


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


def _members(tick: WatchTick, width: int) -> Table:
    case, diagnosis, now = tick.case, tick.diagnosis, tick.now
    table = _table("pid", "RSS", "change", "rate")
    table.add_column("command", no_wrap=True, ratio=1)
    alive = [m for m in diagnosis.members if m.pid in now]
    for member in alive[:_MEMBERS_SHOWN]:
        target = case.target(member.pid)
        command = short_command(target) if target is not None else ""
        table.add_row(
            str(member.pid),
            size_text(now[member.pid].rss),
            change_text(member.change_bytes),
            rate_text(member.rate.estimate) if member.rate else "",
            Text(parts.fit_end(visible(command), max(20, width - 48))),
        )
    rest = alive[_MEMBERS_SHOWN:]
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
        Text(f"{len(alive)} processes", style="dim"),
    )
    return table
