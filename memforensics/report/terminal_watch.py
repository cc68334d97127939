"""The live screen of watch. Pure: a case, its conclusion and some words in, a rich renderable out."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from memforensics.case.model import Case, Diagnosis, LayerRow, MappingGroup, Rate
from memforensics.report import observed as say
from memforensics.report import terminal_parts as parts
from memforensics.report.text import visible
from memforensics.report.watch_line import living
from memforensics.units import change_text, duration_text, rate_text, size_text

_BARS = "▁▂▃▄▅▆▇█"
_MEMBERS_SHOWN = 6
_EVENTS_SHOWN = 4
_GROUPS_SHOWN = 5
_WIDE = 100  # columns from which intervals have one of their own


def watch_screen(
    case: Case,
    diagnosis: Diagnosis,
    *,
    line: Sequence[int],
    events: Sequence[tuple[int, str]],
    elapsed_s: float,
    footer: str,
    width: int = 100,
) -> RenderableType:
    """The whole screen. `line`: the tree's growth metric over time; `events`: (pid, what happened)."""
    return Group(*_parts(case, diagnosis, line, events, elapsed_s, footer, min(width, 120)))


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


def fallback_rows(case: Case) -> tuple[LayerRow, ...]:
    """RssAnon, RssFile and RssShmem of the tree, for when the mappings cannot be read: a layer of the anonymous part
    is then not known."""
    now = list(living(case).values())
    if not now:
        return ()
    first = {s.pid: s for s in reversed(case.samples)}
    return (
        LayerRow(
            layer="unattributed",
            in_rss=True,
            bytes=sum(s.rss_anon for s in now),
            change_bytes=sum(s.rss_anon - first[s.pid].rss_anon for s in now),
        ),
        LayerRow(
            layer="shmem",
            in_rss=True,
            bytes=sum(s.rss_shmem for s in now),
            change_bytes=sum(s.rss_shmem - first[s.pid].rss_shmem for s in now),
        ),
        LayerRow(
            layer="file",
            in_rss=True,
            bytes=sum(s.rss_file for s in now),
            change_bytes=sum(s.rss_file - first[s.pid].rss_file for s in now),
        ),
    )


def _parts(
    case: Case,
    diagnosis: Diagnosis,
    line: Sequence[int],
    events: Sequence[tuple[int, str]],
    elapsed_s: float,
    footer: str,
    width: int,
) -> Iterator[RenderableType]:
    yield parts.headline(diagnosis.verdict, diagnosis.headline)
    yield Text()
    yield Padding(parts.facts_table(_facts(case, diagnosis, line, elapsed_s, width)), (0, 0, 0, 2))
    yield Text()
    known = bool(diagnosis.layers)
    yield parts.heading(
        "Layers", "those in RSS sum to the kernel's figure" if known else "mappings not read: totals only"
    )
    rows = [r for r in diagnosis.layers if r.bytes or r.change_bytes] if known else fallback_rows(case)
    yield Padding(_waterfall(rows, sum(s.rss for s in living(case).values()), width), (0, 0, 0, 2))
    sums = say.beside_sentence(diagnosis.beside)
    if sums is not None:
        yield Padding(Text(sums, style="dim"), (0, 0, 0, 2))
    grown = [group for group in diagnosis.groups if group.change_bytes > 0][:_GROUPS_SHOWN]
    if grown:
        yield Text()
        yield parts.heading("Mappings that grew", "since the first look at them, the most first")
        yield Padding(_groups(grown, width), (0, 0, 0, 2))
    if len(case.targets) > 1:
        yield Text()
        yield parts.heading("Processes", "the quickest growing first")
        yield Padding(_members(case, diagnosis, width), (0, 0, 0, 2))
    shown = [event for event in events if event[1] != "joined"][-_EVENTS_SHOWN:]
    if shown:
        yield Text()
        for pid, what in shown:
            yield Text(f"  process {pid}: {visible(what)}", style="yellow")
    yield Text()
    yield Text(visible(footer), style="dim")


def _facts(
    case: Case, diagnosis: Diagnosis, line: Sequence[int], elapsed_s: float, width: int
) -> Iterator[tuple[str, Text | str]]:
    root = case.target(case.meta.root_pid) if case.meta.root_pid is not None else None
    if root is not None:
        command = " ".join(root.cmdline) or root.comm
        yield "process", say.target_sentence(case, root)
        yield "command", parts.fit_end(visible(command), width - 14)
    rss = sum(s.rss for s in living(case).values())
    yield "RSS", f"{size_text(rss)}" + (f" in {len(living(case))} processes" if len(living(case)) > 1 else "")
    if line:
        bars = Text(sparkline(line, max(10, width - 50)), style="cyan")
        bars.append(f"  {size_text(min(line))} to {size_text(max(line))} anonymous", style="dim")
        yield "", bars
    yield "growth", f"{say.growth_sentence(diagnosis.growth)}, seen for {duration_text(elapsed_s)}"
    limit = diagnosis.growth.limit_bytes if diagnosis.growth else None
    if limit is not None:
        yield "limit", say.limit_sentence(diagnosis.growth) or f"{size_text(limit)} for the cgroup"
    if diagnosis.next_step and diagnosis.verdict in ("growing", "leak"):
        yield "next", diagnosis.next_step
    for loss in case.losses:
        yield "not seen", f"{loss.count} {loss.what}" + (f"; less with {loss.reduce}" if loss.reduce else "")


def _waterfall(rows: Sequence[LayerRow], rss: int, width: int) -> Table:
    """The layers, those in RSS first, and their sum beside the kernel's figure of now (read later than they were)."""
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
            rate_text(row.rate.estimate) if row.rate is not None else "",
        ]
        style = "bold red" if row.verdict == "leak" else "yellow" if grows else "dim"
        word = Text("" if row.bytes is None or row.verdict == "insufficient-data" else row.verdict, style=style)
        table.add_row(*cells, *((_interval(row.rate),) if wide else ()), word)
    total = sum(row.bytes or 0 for row in rows if row.in_rss)
    table.add_row(Text("sum, in RSS", style="dim"), size_text(total), Text(f"of {size_text(rss)} now", style="dim"))
    return table


def _interval(rate: Rate | None) -> str:
    return f"{change_text(rate.low)} to {change_text(rate.high)}" if rate is not None else ""


def _groups(grown: Sequence[MappingGroup], width: int) -> Table:
    table = _table("now", "change")
    table.add_column("what", no_wrap=True)
    for group in grown:
        name = f"{group.name}, {group.count_after}" + (" (the start moves down, the end stays)" if group.moved else "")
        table.add_row(
            size_text(group.after_bytes) if group.after_bytes is not None else "",
            change_text(group.change_bytes),
            Text(parts.fit_end(visible(name), max(20, width - 28))),
        )
    return table


def _table(*names: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _members(case: Case, diagnosis: Diagnosis, width: int) -> Table:
    table = _table("pid", "RSS", "change", "rate")
    table.add_column("command", no_wrap=True, ratio=1)
    now = living(case)
    alive = [m for m in diagnosis.members if m.pid in now]
    for member in alive[:_MEMBERS_SHOWN]:
        target = case.target(member.pid)
        command = " ".join(target.cmdline) or target.comm if target else ""
        if target is not None and target.role:
            command = f"{target.role}: {command}"
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
