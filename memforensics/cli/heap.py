"""`memforensics heap PID --memray`."""

import sys
from typing import Annotated

import typer

from memforensics.cli.common import JsonOption, RecordOption, duration_option, print_json, say
from memforensics.cli.target import TargetChoice, with_target
from memforensics.errors import UsageError

EXAMPLES = (
    "memforensics heap 4242 --memray --duration 10s",
    "memforensics heap 4242 --memray --yes --json --record heap.case",
)


@with_target
def heap(
    target: TargetChoice,
    memray: Annotated[
        bool,
        typer.Option(
            "--memray", help="Attach memray. This runs code in the process, which must have memray installed."
        ),
    ] = False,
    duration: Annotated[
        float, duration_option("How long memray tracks allocations.", least=1, because="memray needs that to start")
    ] = "10s",  # type: ignore[assignment]
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for consent to run code in the process.")] = False,
    json: JsonOption = False,
    record: RecordOption = None,
) -> None:
    """Show which Python lines allocated the memory that the heap still holds, with memray attached through gdb.

    memray RUNS CODE IN THE PROCESS: gdb stops it for about a quarter of a second and makes it load memray, which stays
    loaded. If memforensics is killed meanwhile, gdb detaches; if gdb is killed, the process may die. The command asks
    first. No other command runs code in the process: try `diagnose` before.
    """
    from memforensics.jobs import heap as job

    chosen = target.choose()
    if not memray:
        job.heap(chosen)
    job.check_memray(chosen)
    if not yes:
        from memforensics.probes.heap.memray_attach import WARNING

        if not sys.stdin.isatty():
            raise UsageError(
                "heap --memray asks for consent, and there is no terminal", why=WARNING, enable="add --yes"
            )
        if not typer.confirm(f"{WARNING}.\nAttach to process {chosen}?", err=True):
            say("memray was not attached", err=True)
            return
    view = job.heap_memray(
        chosen, duration, record=record, on_tracking=lambda: say(f"memray tracks process {chosen} ...", err=True)
    )
    if json:
        from memforensics.report.json.probes import heap as shape

        print_json(shape(view))
    else:
        from memforensics.report.terminal.probes import heap_text

        say(heap_text(view))
