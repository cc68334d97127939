"""`memforensics diff A B`."""

from typing import Annotated

import typer

from memforensics.cli.common import JsonOption, duration_option, print_json
from memforensics.cli.target import TargetChoice, with_target_options
from memforensics.errors import UsageError

EXAMPLES = (
    "memforensics diff 4711 --over 10s",
    "memforensics diff before.case after.case",
    "memforensics diff watch.case --from 5m --to 1h",
    "memforensics diff watch.case --process 4713",
    "memforensics diff 4711 4712     # a healthy worker against a sick one",
)


@with_target_options
def diff(
    target: TargetChoice,
    before: Annotated[str | None, typer.Argument(metavar="A", help="A case file or a PID.")] = None,
    after: Annotated[str | None, typer.Argument(metavar="B", help="Another case file or PID.")] = None,
    over: Annotated[
        float | None,
        duration_option(
            "For one PID: the time between the two snapshots.",
            "--over",
            least=0.1,
            because="reading takes nearly as long",
        ),
    ] = None,
    from_s: Annotated[
        float | None, duration_option("For one case file: the time of the first snapshot, since its start.", "--from")
    ] = None,
    to_s: Annotated[
        float | None, duration_option("For one case file: the time of the second snapshot.", "--to")
    ] = None,
    process: Annotated[
        int | None, typer.Option("--process", metavar="PID", help="Compare only this process of the tree.")
    ] = None,
    children: Annotated[bool, typer.Option(help="With --over: include its child processes.")] = True,
    as_json: JsonOption = False,
    top: Annotated[
        int, typer.Option("--top", min=1, metavar="N", help="How many groups to show; the others are summed.")
    ] = 20,
) -> None:
    """Show what grew, shrank, appeared and went between two snapshots.

    Compares two case files, two snapshots of one case file (the first and last, or --from and --to), two processes, or
    one process now and later (--over). A case file, and one PID with --over, cover the whole process tree: its
    processes are summed and listed. Shared pages count in each process.
    """
    from memforensics.jobs import diff as job

    if target.is_by_option and before is not None:
        raise UsageError("the process is chosen in two ways", enable="use A, or --container, or --name and --cmdline")
    if before is None:
        before = str(target.choose())
    seen = job.compare(
        before, after, over_s=over, from_s=from_s, to_s=to_s, children=children, process=process, limit=top
    )
    if as_json:
        from memforensics.report.json.snapshot import diff as shape

        print_json(shape(seen))
    else:
        from memforensics.report.terminal.console import Console
        from memforensics.report.terminal.snapshot import diff_screen

        console = Console(highlight=False)
        console.print(diff_screen(seen, console.width))
