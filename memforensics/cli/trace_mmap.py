"""`memforensics trace-mmap [PID]...`."""

from typing import Annotated, Literal

import typer

from memforensics.cli import trace_options as options
from memforensics.cli.common import JsonOption, RecordOption
from memforensics.cli.target import TargetChoice, with_target_options

EXAMPLES = (
    "memforensics trace-mmap 4711 --duration 60s --record leak.case",
    "memforensics trace-mmap 4711 4712 --sort rate --filter lib=libucs --min-age 5s",
    "memforensics trace-mmap 4711 --format html --output leak.html",
)


@with_target_options
def trace_mmap(
    target: TargetChoice,
    pids: options.Pids = None,
    duration: options.Duration = "10s",  # type: ignore[assignment]
    children: options.Children = True,
    sort: options.Sort = "outstanding",
    top: options.Top = 15,
    filters: options.Filters = None,
    min_age: options.MinAge = "0s",  # type: ignore[assignment]
    stacks: options.Stacks = False,
    engine: Annotated[Literal["bcc", "bpftrace"], typer.Option(help="The tool that loads the eBPF programs.")] = "bcc",
    format: options.Format = "text",
    output: options.Output = None,
    overhead: options.Overhead = None,
    as_json: JsonOption = False,
    record: RecordOption = None,
) -> None:
    """Show outstanding mappings (mmap, mremap, brk) by Python and native stack, with eBPF.

    Outstanding is not leaked: a cache that is filling looks the same. The process is not stopped or modified.
    """
    from memforensics.cli import trace_run

    what = trace_run.What("mappings", duration, children, sort, filters, min_age, engine, record, overhead)
    shown = trace_run.Shown("json" if as_json else format, output, top, stacks, quiet=as_json)
    trace_run.run(what, shown, pids, target)
