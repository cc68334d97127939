"""The screen of trace-faults: what it can mean, tables of sites, full stacks of the first, how much to trust them."""

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from memforensics.case.model import AllocationSite, Cost, Frame, Loss
from memforensics.report import observed as say
from memforensics.report.terminal_parts import facts_table, heading, stack_table
from memforensics.report.text import library_name, visible
from memforensics.units import duration_text, rate_text, size_text

FILE_ROWS, FULL_STACKS = 5, 3
COVERAGE_NOISE = 0.02

Row = tuple[AllocationSite, float | None, Frame | None]  # site, bytes a minute, the frame that matters


def screen(
    rows: Sequence[Row], file_rows: Sequence[Row], top: int, width: int, *, several: bool
) -> Iterable[Text | Table]:
    """The tables, and the first stacks."""
    if rows:
        yield sites_table(rows[:top], max(0, len(rows) - top), several)
    else:
        yield Text("No new memory was touched that is still resident.")
    if file_rows:
        few = min(FILE_ROWS, top)
        yield Text("\nPages of mapped files (page cache):", style="dim")
        yield sites_table(file_rows[:few], max(0, len(file_rows) - few), several)
    yield from stacks(rows[: min(FULL_STACKS, top)], width)
    yield Text()


def sites_table(rows: Sequence[Row], left_out: int, several: bool) -> Table:
    """New resident memory by site, most first."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    table.add_column("#", justify="right", style="dim")
    if several:
        table.add_column("pid", justify="right")
    for name in ("still resident", "rate", "touched", "faults"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("touched by", overflow="fold")
    for number, (site, rate, named) in enumerate(rows, 1):
        table.add_row(
            f"{number}",
            *([f"{site.pid}"] if several else []),
            size_text(site.outstanding_bytes),
            rate_text(rate) if rate is not None else "",
            size_text(site.allocated_bytes),
            f"{site.allocated_count:,}",
            Text(visible(_by(site, named) + (", shared memory" if site.shared else ""))),
        )
    if left_out:
        table.add_row("", *([""] if several else []), "", "", "", "", f"and {left_out} more sites (--top, --json)")
    return table


def _by(site: AllocationSite, named: Frame | None) -> str:
    """The frame that matters, and the application's innermost Python function where that is another."""
    parts = [_frame_text(named)] if named is not None else []
    python = next((f for f in site.stack.frames if f.kind == "python"), None)
    if python is not None and python != named:
        parts.append(_frame_text(python))
    if not parts:
        parts = [_frame_text(f) for f in site.stack.frames[:2]]
    return " <- ".join(parts) or "unknown"


def _frame_text(frame: Frame) -> str:
    place = library_name(frame.file or frame.module or "")
    line = f":{frame.line}" if frame.line is not None and frame.file else ""
    return f"{say.frame_name(frame)} ({place}{line})" if place else say.frame_name(frame)


def stacks(rows: Sequence[Row], width: int) -> Iterable[Text | Table]:
    """The whole stack of each row."""
    for number, (site, _, _) in enumerate(rows, 1):
        note = f"{size_text(site.outstanding_bytes)} still resident, touched in {site.allocated_count:,} faults"
        if site.stack.doubtful:
            note += "; Python and native frames did not match one to one"
        yield Text()
        yield heading(f"site {number}", note)
        yield stack_table(site.stack, width=width)


def trust(
    meaning: str, coverage: float | None, seconds: float, faults: int, losses: Sequence[Loss], costs: Sequence[Cost]
) -> Table:
    """What it means, coverage, losses and overhead."""
    if coverage is None:
        covered = "not known: RSS grew too little, or the process left"
    else:
        covered = f"what is still resident here is {coverage:.1%} of the growth of RSS"
        covered += ": other pages went meanwhile" if coverage > 1 + COVERAGE_NOISE else ""
    rows: list[tuple[str, Text | str]] = [
        ("meaning", meaning),
        ("observed", f"{duration_text(seconds)}, {faults:,} faults that made memory resident"),
        ("coverage", covered),
    ]
    for loss in losses:
        rows.append(("lost", f"{loss.count:,} {loss.what}" + (f" (less with: {loss.reduce})" if loss.reduce else "")))
    if not losses:
        rows.append(("lost", "nothing"))
    for cost in costs:
        if cost.bpf_run_ns is not None and cost.bpf_runs:
            share = cost.bpf_run_ns / max(seconds * 1e9, 1)
            rows.append(("overhead", f"{share:.1%} of one CPU in the kernel, all processes of the host together"))
        if cost.observer_cpu_s is not None:
            rows.append(("", f"{duration_text(cost.observer_cpu_s)} CPU of memforensics itself"))
    return facts_table(rows)
