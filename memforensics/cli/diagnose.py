"""`memforensics diagnose [PID]`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from memforensics.cli.common import JsonOption, RemediesOption, ShowCmdlineOption, say, verdict_duration_option
from memforensics.cli.target import TargetChoice, with_target

EXAMPLES = (
    "memforensics diagnose 4242",
    "memforensics diagnose 4242 --duration 20s --json",
    "memforensics diagnose --name VLLM::EngineCor --record leak.case",
    "memforensics diagnose 4242 --output leak.md",
)


@with_target
def diagnose(
    target: TargetChoice,
    duration: Annotated[float, verdict_duration_option("How long in all. A longer time shows smaller leaks.")] = "60s",  # type: ignore[assignment]
    record: Annotated[
        Path | None,
        typer.Option(metavar="CASE", help="Keep the case in this file. [default: in ~/.local/state/memforensics]"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Also write the report to this file: .md, .json or .txt."),
    ] = None,
    format: Annotated[Literal["terminal", "md", "json"], typer.Option(help="What to print.")] = "terminal",
    json: JsonOption = False,
    children: Annotated[bool, typer.Option(help="Include its child processes.")] = True,
    seed: Annotated[int | None, typer.Option(hidden=True)] = None,
    remedies: RemediesOption = None,
    show_cmdline: ShowCmdlineOption = False,
) -> int:
    """Say whether a live process leaks, in which layer, through whose code, and what to set.

    Observes the process and its children without stopping them: their sizes and mappings, which code maps memory
    (eBPF), and which libraries intercept mmap and munmap.
    Exit code 0: no leak; 1: leak; 4: growing, or too little data; 3: cannot observe.
    The case is kept in $XDG_STATE_HOME/memforensics or ~/.local/state/memforensics, unless --record names a file; the
    last line says where. Ctrl-C ends early with exit code 130, and prints the report if it has a verdict.
    """
    from memforensics.cli.screen.live import progress
    from memforensics.cli.screen.render import output_form, print_report, write_report
    from memforensics.errors import Interrupted
    from memforensics.jobs import diagnose as job
    from memforensics.jobs.targets.choose import whole_command_lines
    from memforensics.remedies.catalogue import load_catalogue
    from memforensics.report.render import Format, render

    form: Format = "json" if json else format
    written = output_form(output, form if output is not None and not output.suffix else None)
    catalogue = load_catalogue(remedies)
    chosen = target.choose(show_cmdline=show_cmdline)
    with progress(f"diagnosing {chosen}", quiet=json or format != "terminal") as on_progress:
        found = job.diagnose(
            chosen, duration, record=record, on_progress=on_progress, children=children, seed=seed, catalogue=catalogue
        )
    case = str(found.path) if found.path is not None else None
    if not (found.interrupted and found.diagnosis.verdict == "insufficient-data"):
        shown = whole_command_lines(found.case) if show_cmdline and form == "terminal" else found.case
        print_report(shown, found.diagnosis, form)
        if output is not None:
            write_report(render(found.case, found.diagnosis, written), output, printed=True)
        if case is not None and not found.interrupted:
            say(f"\ncase: {case}" if form == "terminal" else f"case: {case}", err=form != "terminal")
    if found.trouble:
        say(f"memforensics: {found.trouble}", err=True)
    if found.interrupted:
        raise Interrupted(case)
    return found.diagnosis.exit_code
