"""The screens of trace-mmap and trace-faults: live with keys, and the result with stacks, coverage and losses."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from memforensics.case.model import AllocationSite
from memforensics.case.views import SiteGroup, TraceTick, TraceView
from memforensics.report import sentences
from memforensics.report.labels import (
    LABELS,
    Labels,
    coverage_text,
    group_name,
    group_name_in,
    kind_text,
    observed_text,
)
from memforensics.report.terminal.parts import facts_table, fit_end, heading, stack_table
from memforensics.text import visible
from memforensics.units import change_text, count_text, duration_text, rate_text, size_text

SortWord = Literal["outstanding", "rate", "count", "age"]
SORTS: tuple[SortWord, ...] = get_args(SortWord)
STACKS_SHOWN = 3  # without --stacks
FILE_ROWS = 5
FRAMES_SHOWN = 12  # of a stack without --stacks, but always to the application's function and its caller
_WIDE = 110  # columns; from here on the table has resident, allocations and kind


@dataclass(frozen=True, slots=True)
class Screen:
    """What the keys have set. `at`: the selected row; `open`: whether one of its stacks is shown; `nth`: which one."""

    sort: SortWord = "outstanding"
    paused: bool = False
    at: int = 0
    open: bool = False
    nth: int = 0
    ending: bool = False


def after_key(screen: Screen, key: str, rows: int) -> Screen:
    """The screen after a key. Unknown keys change nothing."""
    if key in (" ", "p"):
        return replace(screen, paused=not screen.paused)
    if key == "s":
        return replace(screen, sort=SORTS[(SORTS.index(screen.sort) + 1) % len(SORTS)])
    if key in ("j", "down"):
        return replace(screen, at=min(screen.at + 1, max(rows - 1, 0)), nth=0)
    if key in ("k", "up"):
        return replace(screen, at=max(screen.at - 1, 0), nth=0)
    if key in ("e", "enter"):
        return replace(screen, open=not screen.open, nth=0)
    if key == "n":
        return replace(screen, open=True, nth=screen.nth + screen.open)
    if key == "q":
        return replace(screen, ending=True)
    return screen


# --- live -------------------------------------------------------------------------------------------------------------


def live_screen(
    tick: TraceTick,
    groups: Sequence[SiteGroup],
    screen: Screen,
    *,
    title: str,
    keys: bool,
    top: int,
    width: int,
    height: int,
) -> RenderableType:
    """One line for each group, in the given order, within the size of the screen, with fixed columns. `keys`: whether
    the terminal can send keys."""
    view, labels, room = tick.view, LABELS[tick.view.family], height - 6
    several = len(view.case.targets) > 1
    shown = groups[: min(top, max(3, room // 3 if screen.open else room))]
    at = min(screen.at, max(len(shown) - 1, 0))
    head = Text(visible(title), style="bold")
    state = f"  {tick.phase} {duration_text(tick.elapsed_s)}, {duration_text(tick.seconds_left)} left"
    head.append(state, style="not bold")
    if tick.growth_bytes is not None:
        head.append(f", RSS {change_text(tick.growth_bytes)}", style="not bold")
    parts: list[RenderableType] = [_one_line(head, width), Text()]
    parts.append(_live_table(shown, at if keys else None, screen, labels, several, width))
    more = [f"{len(groups) - len(shown)} more sites"] if len(groups) > len(shown) else []
    if view.file_groups:
        more.append(f"{size_text(_held(view.file_groups))} of mapped files, not listed")
    if view.left_out:
        more.append(_left_out_text(view.left_out))
    parts.append(Text(visible("   " + "; ".join(more)), style="dim") if more else Text())
    if screen.open and shown:
        nth = screen.nth % len(shown[at].sites)
        site = shown[at].sites[nth]
        note = f"stack {nth + 1} of {len(shown[at].sites)}, {_held_text(site, labels)}"
        parts += [
            heading(f"site {at + 1}", note),
            stack_table(site.stack, frames=max(3, room - len(shown) - 3), width=width),
        ]
    parts.append(_one_line(_keys_line(screen, labels) if keys else Text("Ctrl-C ends", style="dim"), width))
    return Lines(*parts)


def _keys_line(screen: Screen, labels: Labels) -> Text:
    if screen.paused:
        return Text("PAUSED, tracing goes on   p resumes   e stack   j, k select   q ends", style="bold yellow")
    by = labels.held if screen.sort == "outstanding" else screen.sort
    stack = "e closes, n next" if screen.open else "e stack"
    return Text(f"p pauses   s sorts (by {by})   j, k select   {stack}   q ends", style="dim")


def _live_table(
    groups: Sequence[SiteGroup], at: int | None, screen: Screen, labels: Labels, several: bool, width: int
) -> Table:
    gap = 2 if width >= _WIDE else 1
    columns: list[tuple[str, str, int]] = [("", "", 1), *([("", "pid", 7)] if several else [])]
    columns += [
        ("outstanding", labels.column, 11),
        ("rate", "per minute", 10),
        ("count", "count", 7),
        ("age", "age", 9),
    ]
    site_width = max(10, width - sum(size + gap for *_, size in columns) - 1)
    table = Table(box=None, padding=(0, gap, 0, 0), show_edge=False, header_style="dim")
    for key, name, size in columns:
        style = "bold not dim" if key == screen.sort else ""
        table.add_column(Text(name, style=style), width=size, justify="right", no_wrap=True)
    table.add_column("site", width=site_width, no_wrap=True)
    for number, group in enumerate(groups):
        selected = number == at
        table.add_row(
            "▸" if selected else "",
            *([f"{group.pid}"] if several else []),
            size_text(group.outstanding_bytes),
            change_text(group.bytes_per_minute) if group.bytes_per_minute is not None else "",
            count_text(group.outstanding_count),
            _age_text(group),
            Text(_in_columns(group, site_width)),
            style="bold" if selected else "",
        )
    if not groups:
        table.add_row(*([""] * len(columns)), Text(f"nothing {labels.held} yet", style="dim"))
    return table


def _in_columns(group: SiteGroup, width: int) -> str:
    stacks = _stacks_text(group)
    return fit_end(visible(group_name_in(group, width - len(stacks))), max(1, width - len(stacks))) + stacks


# --- the end ----------------------------------------------------------------------------------------------------------


def result(view: TraceView, *, top: int, all_stacks: bool, width: int) -> RenderableType:
    """The table of sites, full stacks, coverage, losses and cost."""
    groups, file_groups, left_out, labels = view.groups, view.file_groups, view.left_out, LABELS[view.family]
    several = len({summary.pid for summary in view.case.traces}) > 1
    parts: list[RenderableType] = []
    if groups:
        parts.append(sites_table(groups[:top], max(0, len(groups) - top), labels, several, width))
    else:
        parts.append(Text("No site matches --filter and --min-age." if left_out else labels.nothing))
    if file_groups:
        few = min(FILE_ROWS, top)
        parts.append(Text("\nPages of mapped files (page cache):", style="dim"))
        parts.append(sites_table(file_groups[:few], max(0, len(file_groups) - few), labels, several, width))
    if left_out:
        parts.append(Text(f"{_left_out_text(left_out)}.", style="dim"))
    parts += stacks(groups[: top if all_stacks else min(STACKS_SHOWN, top)], labels, all_stacks, width)
    return Lines(*parts, Text(), trace_facts(view))


def sites_table(groups: Sequence[SiteGroup], more: int, labels: Labels, several: bool, width: int) -> Table:
    """A row for each group."""
    wide = width >= _WIDE
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    table.add_column("#", justify="right", style="dim")
    if several:
        table.add_column("pid", justify="right")
    figures = (
        labels.held,
        "rate",
        "count",
        "age",
        *((labels.resident or labels.allocated, labels.allocations) if wide else ()),
    )
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    if wide:
        table.add_column("kind", no_wrap=True)
    table.add_column("site", overflow="fold")
    for number, group in enumerate(groups, 1):
        table.add_row(
            f"{number}",
            *([f"{group.pid}"] if several else []),
            *_figures(group),
            *(_more_figures(group, labels) if wide else ()),
            Text(visible(group_name(group, plain=True) + _stacks_text(group))),
        )
    if more:
        cells = [""] * (1 + several + len(figures) + wide)
        table.add_row(*cells, Text(f"and {more} more sites (--top, --json)", style="dim"))
    return table


def stacks(groups: Sequence[SiteGroup], labels: Labels, all_of_each: bool, width: int) -> Iterable[Text | Table]:
    """All stacks of each group, or its largest one."""
    for number, group in enumerate(groups, 1):
        shown = group.sites if all_of_each else group.sites[:1]
        for nth, site in enumerate(shown, 1):
            note = _held_text(site, labels)
            if len(group.sites) > 1:
                note += f"; stack {nth} of {len(group.sites)}" + ("" if all_of_each else " (all with --stacks)")
            if site.stack.doubtful:
                note += "; Python and native frames did not match one to one"
            yield Text()
            yield heading(f"site {number}", note)
            yield stack_table(site.stack, frames=None if all_of_each else _frame_count(group, site), width=width)


def _frame_count(group: SiteGroup, site: AllocationSite) -> int:
    """How many frames to show, from the leaf: at least to the application's function and its caller."""
    of_application = (
        at
        for at, frame in enumerate(site.stack.frames)
        if group.caller is not None and (frame.file, frame.function) == (group.caller.file, group.caller.function)
    )
    return max(FRAMES_SHOWN, next(of_application, 0) + 2)


def trace_facts(view: TraceView) -> Table:
    """What the sites mean, coverage, losses and overhead."""
    rows: list[tuple[str, Text | str]] = [
        ("meaning", LABELS[view.family].meaning),
        ("observed", observed_text(view)),
        ("coverage", coverage_text(view)),
        *(("lost", sentences.loss_text(loss)) for loss in view.case.losses),
    ]
    if not view.case.losses:
        rows.append(("lost", "nothing"))
    for cost in view.case.costs:
        rows += [("overhead", text) for text in sentences.kernel_cost(cost, view.seconds)]
        if cost.observer_cpu_s is not None:
            rows.append(("", f"memforensics used {duration_text(cost.observer_cpu_s)} of CPU time"))
    return facts_table(rows)


# --- figures ----------------------------------------------------------------------------------------------------------


def _figures(group: SiteGroup) -> tuple[str, str, str, str]:
    return (
        size_text(group.outstanding_bytes),
        rate_text(group.bytes_per_minute) if group.bytes_per_minute is not None else "",
        f"{group.outstanding_count:,}",
        _age_text(group),
    )


def _age_text(group: SiteGroup) -> str:
    return duration_text(group.age_s) if group.age_s is not None else ""


def _more_figures(group: SiteGroup, labels: Labels) -> tuple[str, str, str]:
    if labels.resident is None:
        second = size_text(group.allocated_bytes)
    else:
        second = size_text(group.resident_bytes) if group.resident_bytes is not None else "not read"
    return second, f"{group.allocated_count:,}", kind_text(group.sites)


def _stacks_text(group: SiteGroup) -> str:
    return f" ({len(group.sites)} stacks)" if len(group.sites) > 1 else ""


def _held_text(site: AllocationSite, labels: Labels) -> str:
    kind = kind_text([site])
    units = labels.unit if site.outstanding_count == 1 else labels.units
    return f"{size_text(site.outstanding_bytes)} {labels.held} in {site.outstanding_count:,} {units}, {kind}"


def _left_out_text(groups: Sequence[SiteGroup]) -> str:
    sites = "1 site" if len(groups) == 1 else f"{len(groups)} sites"
    return f"{sites} with {size_text(_held(groups))} left out by --filter or --min-age"


def _held(groups: Sequence[SiteGroup]) -> int:
    return sum(group.outstanding_bytes for group in groups)


def _one_line(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis")
    return text
