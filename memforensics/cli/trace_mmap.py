"""`memforensics trace-mmap PID...`."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from memforensics.cli.common import CmdlineOption, JsonOption, NameOption, RecordOption, choose_pid, duration_option
from memforensics.errors import Interrupted

EXAMPLES = (
    "memforensics trace-mmap 4711 --duration 60s --record leak.case",
    "memforensics trace-mmap 4711 4712 --sort rate --filter lib=libucs --min-age 5s",
    "memforensics trace-mmap 4711 --format html --output leak.html",
)


def trace_mmap(
    pids: Annotated[
        list[int] | None, typer.Argument(metavar="PID", help="The processes; without any, targets are listed.")
    ] = None,
    duration: Annotated[float, duration_option("How long to trace.")] = "10s",  # type: ignore[assignment]
    children: Annotated[bool, typer.Option(help="Their child processes too.")] = True,
    sort: Annotated[Literal["outstanding", "rate", "count", "age"], typer.Option(help="First what has most.")] = (
        "outstanding"
    ),
    top: Annotated[int, typer.Option("--top", min=1, metavar="N", help="How many sites are shown.")] = 15,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="FIELD=TEXT", help="Only stacks with it: lib=, func= or file=. Several: all."),
    ] = None,
    min_age: Annotated[float, duration_option("Only memory that is held for so long.", "--min-age")] = "0s",  # type: ignore[assignment]
    stacks: Annotated[bool, typer.Option("--stacks", help="All stacks of each site that is shown.")] = False,
    engine: Annotated[Literal["bcc", "bpftrace"], typer.Option(help="What loads the eBPF programs.")] = "bcc",
    format: Annotated[
        Literal["text", "json", "folded", "speedscope", "pprof", "perfetto", "html"],
        typer.Option(help="text, json, or a file for another program."),
    ] = "text",
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there.")] = None,
    as_json: JsonOption = False,
    record: RecordOption = None,
    name: NameOption = None,
    cmdline: CmdlineOption = None,
) -> None:
    """Who maps the memory that is not given back: outstanding mmap, mremap and brk by Python-and-native stack (eBPF).

    Outstanding is not leaked: a cache that fills looks the same. Nothing is written into the process or stopped.
    """
    from memforensics.cli import trace_live, trace_out
    from memforensics.jobs import trace as job

    form: trace_out.Form = "json" if as_json else format
    trace_out.check(form, output)
    wanted = job.Wanted(sort, trace_out.filters_of(filters), min_age)
    named = pids or [choose_pid(None, name, cmdline)]
    with trace_live.ending() as stop:
        ticks = job.trace_ticks(
            named, seconds=duration, engine=engine, children=children, wanted=wanted, record=record, stop=stop
        )
        if form == "text" and output is None and sys.stdout.isatty():
            view = trace_live.show(ticks, stop, title=f"trace-mmap {' '.join(map(str, named))}", sort=sort, top=top)
        else:
            view = trace_live.wait(ticks, quiet=as_json)
    trace_out.put(view, form, output, top=top, stacks=stacks)
    for pid, how in view.left:
        typer.echo(f"memforensics: process {pid} left while it was traced: {how}", err=True)
    if stop.interrupted():
        raise Interrupted(str(record) if record else None)
