"""`memforensics trace-mmap PID`."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from memforensics.cli.common import (
    CmdlineOption,
    JsonOption,
    NameOption,
    PidArgument,
    RecordOption,
    choose_pid,
    duration_option,
    print_json,
)
from memforensics.cli.live import progress
from memforensics.errors import Interrupted

if TYPE_CHECKING:
    from memforensics.jobs.trace import TraceView

EXAMPLES = (
    "memforensics trace-mmap 4711",
    "memforensics trace-mmap 4711 --duration 60s --record leak.case",
    "memforensics trace-mmap 4711 --format folded > leak.folded",
    "memforensics trace-mmap 4711 --json",
)


def trace_mmap(
    pid: PidArgument = None,
    duration: Annotated[float, duration_option("How long to trace.")] = "10s",  # type: ignore[assignment]
    engine: Annotated[Literal["bcc", "bpftrace"], typer.Option(help="What loads the eBPF programs.")] = "bcc",
    format: Annotated[Literal["text", "folded"], typer.Option(help="text, or folded stacks (flame graphs).")] = "text",
    top: Annotated[int, typer.Option("--top", min=1, metavar="N", help="How many sites; full stacks of 3.")] = 15,
    as_json: JsonOption = False,
    record: RecordOption = None,
    name: NameOption = None,
    cmdline: CmdlineOption = None,
) -> None:
    """Who maps the memory that is not given back: outstanding mmap, mremap and brk by Python-and-native stack (eBPF).

    Outstanding is not leaked: a cache that fills looks the same. Nothing is written into the process or stopped.
    """
    from memforensics.jobs import trace as job

    chosen = choose_pid(pid, name, cmdline)
    with progress("trace-mmap", quiet=as_json) as show:
        view = job.trace(chosen, seconds=duration, engine=engine, record=record, progress=show)
    if as_json:
        from memforensics.report.trace_json import trace_json

        rows = [(row.site, row.bytes_per_minute) for row in view.rows]
        print_json(trace_json(rows, view.coverage, view.losses, view.costs, view.seconds, view.summaries))
    elif format == "folded":
        typer.echo(job.folded(view), nl=False)
    else:
        _show(view, top)
    if view.root_left is not None:
        typer.echo(f"memforensics: process {chosen} left while it was traced: {view.root_left}", err=True)
    if view.interrupted:
        raise Interrupted(str(record) if record else None)


def _show(view: "TraceView", top: int) -> None:
    from rich.console import Console

    from memforensics.report import terminal_trace as show

    console = Console(highlight=False)
    rows = [(row.site, row.bytes_per_minute, row.named) for row in view.rows if row.site.outstanding_bytes > 0]
    if rows:
        console.print(show.sites_table(rows[:top], max(0, len(rows) - top), len(view.summaries) > 1))
    else:
        console.print("Nothing that was mapped since the start is outstanding.")
    for part in show.stacks(rows[: min(3, top)], console.width):
        console.print(part)
    console.print()
    console.print(show.trust(view.coverage, view.engine, view.seconds, view.losses, view.costs, view.events))
