"""memforensics diagnose PID."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from memforensics.cli.common import CmdlineOption, JsonOption, NameOption, PidArgument, choose_pid, duration_option

EXAMPLES = (
    "memforensics diagnose 4242",
    "memforensics diagnose 4242 --duration 20s --json",
    "memforensics diagnose --name VLLM::EngineCor --record leak.case",
)


def diagnose(
    pid: PidArgument = None,
    duration: Annotated[float, duration_option("How long in all; longer decides smaller leaks.")] = "60s",  # type: ignore[assignment]
    record: Annotated[Path | None, typer.Option(metavar="CASE", help="Keep the case in this file.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the report there as well.")] = None,
    format: Annotated[Literal["terminal", "md", "json"], typer.Option(help="What to print.")] = "terminal",
    json: JsonOption = False,
    children: Annotated[bool, typer.Option(help="Follow the process tree below it.")] = True,
    seed: Annotated[int | None, typer.Option(hidden=True)] = None,
    name: NameOption = None,
    cmdline: CmdlineOption = None,
) -> int:
    """Say whether a live process leaks, in which layer, through whose code, and what to set.

    Observes the process and its children without stopping them: sizes, mappings, who maps memory (eBPF), who
    intercepts mmap and munmap. Exit code 0: no leak; 1: leak; 4: growing, or too little seen; 3: cannot observe.
    """
    from memforensics.cli.live import progress
    from memforensics.cli.render import print_report
    from memforensics.jobs.diagnose import diagnose as run

    chosen = choose_pid(pid, name, cmdline)
    with progress(f"diagnosing {chosen}", quiet=json or format != "terminal") as on_progress:
        case, diagnosis = run(chosen, duration, record=record, on_progress=on_progress, children=children, seed=seed)
    print_report(case, diagnosis, "json" if json else format, output)
    return diagnosis.exit_code
