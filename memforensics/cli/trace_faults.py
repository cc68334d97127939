"""`memforensics trace-faults PID`."""

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
    from memforensics.jobs.trace_faults import FaultView

EXAMPLES = (
    "Examples: memforensics trace-faults 4711    |    memforensics trace-faults 4711 --duration 60s --json    |"
    "    memforensics trace-faults 4711 --format folded > touched.folded"
)


def trace_faults(
    pid: PidArgument = None,
    duration: Annotated[float, duration_option("How long to trace.")] = "10s",  # type: ignore[assignment]
    format: Annotated[Literal["text", "folded"], typer.Option(help="text, or folded stacks (flame graphs).")] = "text",
    top: Annotated[int, typer.Option("--top", min=1, metavar="N", help="How many sites; full stacks of 3.")] = 15,
    as_json: JsonOption = False,
    record: RecordOption = None,
    name: NameOption = None,
    cmdline: CmdlineOption = None,
) -> None:
    """What makes RSS move, in any layer: page faults by Python-and-native stack, whose pages are still there (eBPF).

    It names who touches new memory, not who leaks: no culprit rests on it alone. Nothing is written into the process.
    """
    from memforensics.jobs import trace_faults as job

    chosen = choose_pid(pid, name, cmdline)
    with progress("trace-faults", quiet=as_json) as show:
        view = job.trace_faults(chosen, seconds=duration, record=record, progress=show)
    if as_json:
        from memforensics.report.faults_json import faults_json

        rows = [(row.site, row.bytes_per_minute) for row in (*view.rows, *view.file_rows)]
        told = (view.coverage, view.losses, view.costs, view.seconds, view.summaries)
        print_json(faults_json(job.MEANING, rows, *told))
    elif format == "folded":
        typer.echo(job.folded(view), nl=False)
    else:
        _show(view, top, job.MEANING)
    if view.root_left is not None:
        typer.echo(f"memforensics: process {chosen} left while it was traced: {view.root_left}", err=True)
    if view.interrupted:
        raise Interrupted(str(record) if record else None)


def _show(view: "FaultView", top: int, meaning: str) -> None:
    from rich.console import Console

    from memforensics.report.terminal_faults import screen, trust

    console = Console(highlight=False)
    rows, file_rows = (
        [(row.site, row.bytes_per_minute, row.named) for row in some if row.site.outstanding_bytes > 0]
        for some in (view.rows, view.file_rows)
    )
    for part in screen(rows, file_rows, top, console.width, several=len(view.summaries) > 1):
        console.print(part)
    console.print(trust(meaning, view.coverage, view.seconds, view.faults, view.losses, view.costs))
