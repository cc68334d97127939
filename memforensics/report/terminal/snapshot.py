"""A snapshot and a diff on a terminal: the layers with bars, then the largest groups."""

from collections.abc import Iterable, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from memforensics.case.model import KernelTotals, LayerRow, Loss, MappingGroup, Snapshot, Target
from memforensics.case.views import DiffView, OwnedGroup, ProcessChange, SnapshotView
from memforensics.report.sentences import kernel_total_facts, loss_text
from memforensics.text import visible
from memforensics.units import change_text, duration_text, size_text

_BAR = 24
WIDE = 100  # columns
_EIGHTHS = " ▏▎▍▌▋▊▉"
_WHAT_STYLES = {"grew": "bold yellow", "appeared": "bold yellow", "shrank": "green", "went": "green", "same": "dim"}


def snapshot_screen(view: SnapshotView, target: Target | None, top: int) -> Group:
    """The layers and the `top` largest groups of a snapshot."""
    return Group(
        title(target, view.snapshot),
        "",
        waterfall(view.layers, view.kernel_totals),
        "",
        owned_table(view.groups, top),
        footnotes(view.losses),
    )


def diff_screen(view: DiffView, width: int) -> Group:
    """The groups, layers and, if there are several, the processes of a diff. `width`: columns."""
    changed = view.change_bytes
    return Group(
        diff_title(view.before.name, view.after.name, changed, view.seconds, len(view.processes)),
        "",
        *((processes_table(view.processes), "") if len(view.processes) > 1 else ()),
        groups_table(view.groups, width),
        "",
        layer_changes(view.layers),
        footnotes(view.losses),
    )


def title(target: Target | None, taken: Snapshot) -> Text:
    """The process, and how its mappings were read."""
    text = Text(f"PID {taken.pid}", style="bold")
    if target is not None:
        text.append(f"  {visible(target.role or target.comm)}", style="bold cyan")
        text.append(f"  {visible(' '.join(target.cmdline))}", style="not bold dim")
    how = f"{len(taken.mappings):,} mappings, read by {taken.reader}"
    took = f" in {taken.read_ms:.0f} ms" if taken.read_ms is not None else ""
    text.append(f"\n{how}{took}", style="not bold dim")
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def diff_title(before: str, after: str, change_bytes: int, seconds: float | None, processes: int = 1) -> Text:
    """What is compared, and the change. `seconds`: between the two; None for different processes."""
    text = Text(f"{visible(before)} → {visible(after)}: ", style="bold")
    text.append(change_text(change_bytes), style="bold yellow" if change_bytes > 0 else "bold green")
    if processes > 1:
        text.append(f", {processes:,} processes", style="not bold")
    if seconds is None:
        text.append(
            "\ndifferent processes: mappings are paired by owner and size, not by address", style="not bold dim"
        )
    elif seconds > 0:
        text.append(f" in {duration_text(seconds)}", style="not bold")
    return text


def footnotes(losses: Iterable[Loss]) -> Text:
    """A line for each loss."""
    return Text("\n".join(f"not seen: {visible(loss_text(loss))}" for loss in losses), style="yellow", end="")


def waterfall(rows: Sequence[LayerRow], kernel_totals: KernelTotals) -> Table:
    """A row for each layer with a bar for its share of RSS, the sum, and what the kernel counts across the layers."""
    total = sum(row.bytes or 0 for row in rows if row.in_rss)
    table = _table(("layer", "left"), ("bytes", "right"), ("share", "right"), ("", "left"))
    shown = [row for row in rows if row.bytes or row.layer == "unattributed"]
    for row in sorted(shown, key=lambda row: (not row.in_rss, row.layer == "unattributed", -(row.bytes or 0))):
        size = row.bytes or 0
        if row.in_rss:
            share = size / total if total else 0.0
            style = "yellow" if row.layer == "unattributed" else "cyan"
            table.add_row(row.layer, size_text(size), f"{share:.1%}", Text(_bar(share), style=style))
        else:
            table.add_row(Text(f"{row.layer} (not in RSS)", style="dim"), Text(size_text(size), style="dim"))
    table.add_section()
    table.add_row(Text("RSS", style="bold"), Text(size_text(total), style="bold"), "", "")
    for name, size in kernel_total_facts(kernel_totals):
        table.add_row(Text(name, style="dim"), Text(size_text(size), style="dim"))
    return table


def owned_table(groups: Sequence[OwnedGroup], top: int) -> Table:
    """The largest groups of mappings. The last row sums the rest."""
    table = _table(("group", "left"), ("layer", "left"), ("mappings", "right"), ("bytes", "right"))
    inside = [group for group in groups if group.in_rss]
    kept = top if len(inside) <= top else top - 1
    for group in inside[:kept]:
        table.add_row(
            Text(visible(group.name)), Text(group.layer, style="dim"), f"{group.count:,}", size_text(group.bytes)
        )
    rest = inside[kept:]
    if rest:
        count, size = sum(group.count for group in rest), sum(group.bytes for group in rest)
        table.add_row(Text(f"{len(rest)} smaller groups", style="dim"), "", f"{count:,}", size_text(size))
    for group in groups:
        if not group.in_rss:
            note = Text(f"{visible(group.name)} (mapped, not in RSS)", style="dim")
            table.add_row(note, Text(group.layer, style="dim"), f"{group.count:,}", size_text(group.bytes))
    return table


def groups_table(groups: Sequence[MappingGroup], width: int = WIDE) -> Table:
    """What changed, largest change first, and one row for what did not. Below `WIDE` columns there is no column
    of layers; `layer_changes` shows them."""
    layer = (("layer", "left"),) if width >= WIDE else ()
    sizes = (("change", "right"), ("before", "right"), ("after", "right"), ("mappings", "right"))
    table = _table(*sizes, ("what", "left"), ("group", "left"), *layer)
    for group in groups:
        if not group.change_bytes:
            continue
        style = _WHAT_STYLES[group.what]
        name = Text(visible(group.name))
        if group.moved:
            name.append(" (downwards)" if group.change_bytes > 0 else " (from below)", style="dim")
        cells: list[Text | str] = [
            Text(change_text(group.change_bytes), style=style),
            _size(group.before_bytes),
            _size(group.after_bytes),
            _counts(group.count_before, group.count_after),
            Text(group.what, style=style),
            name,
            Text("" if group.summed and group.layer == "unattributed" else group.layer, style="dim"),
        ]
        table.add_row(*cells[: len(table.columns)])
    unchanged = [group for group in groups if not group.change_bytes]
    for what, same in (("moved", [g for g in unchanged if g.moved]), ("same", [g for g in unchanged if not g.moved])):
        if same:
            size = size_text(sum(group.after_bytes or 0 for group in same))
            counts = _counts(sum(g.count_before for g in same), sum(g.count_after for g in same))
            number = sum(max(1, group.summed) for group in same)
            words = f"{number} group{'s' if number > 1 else ''} "
            words += "with the same size at other addresses" if what == "moved" else "without change"
            table.add_row("0 B", size, size, counts, what, Text(words), style="dim")
    return table


def processes_table(processes: Sequence[ProcessChange], most: int = 10) -> Table:
    """A row for each process of a tree, largest change first. The last row sums the rest."""
    table = _table(
        ("change", "right"),
        ("before", "right"),
        ("after", "right"),
        ("what", "left"),
        ("PID", "right"),
        ("process", "left"),
    )
    shown = processes if len(processes) <= most else processes[: most - 1]
    for process in shown:
        table.add_row(
            Text(change_text(process.change_bytes), style=_WHAT_STYLES[process.what]),
            _size(process.before_bytes),
            _size(process.after_bytes),
            process.what,
            str(process.pid),
            visible(process.name),
        )
    rest = processes[len(shown) :]
    if rest:
        change = sum(process.change_bytes for process in rest)
        table.add_row(change_text(change), "", "", "", "", f"{len(rest):,} more processes", style="dim")
    return table


def layer_changes(rows: Sequence[LayerRow]) -> Table:
    """The layers that changed, before and after."""
    table = _table(("layer", "left"), ("before", "right"), ("after", "right"), ("change", "right"))
    changed = [row for row in rows if row.in_rss and row.change_bytes]
    for row in sorted(changed, key=lambda row: -abs(row.change_bytes or 0)):
        size, change = row.bytes or 0, row.change_bytes or 0
        table.add_row(row.layer, size_text(size - change), size_text(size), change_text(change))
    total = sum(row.bytes or 0 for row in rows if row.in_rss)
    change = sum(row.change_bytes or 0 for row in rows if row.in_rss)
    table.add_section()
    table.add_row(
        Text("RSS", style="bold"), size_text(total - change), size_text(total), Text(change_text(change), style="bold")
    )
    return table


def _size(size: int | None) -> str:
    return "-" if size is None else size_text(size)


def _counts(before: int, after: int) -> str:
    return f"{after:,}" if before == after else f"{before:,} → {after:,}"


def _bar(share: float) -> str:
    eighths = round(min(max(share, 0.0), 1.0) * _BAR * 8)
    whole, part = divmod(eighths, 8)
    return "█" * whole + (_EIGHTHS[part] if part else "")


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    for name, side in columns:
        table.add_column(name, justify="right" if side == "right" else "left", no_wrap=name != "group", overflow="fold")
    return table
