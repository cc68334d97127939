"""`memforensics diff A B`."""

from typing import TYPE_CHECKING, Annotated

import typer

from memforensics.cli.common import (
    CmdlineOption,
    ContainerOption,
    JsonOption,
    NameOption,
    choose_pid,
    duration_option,
    print_json,
)
from memforensics.errors import UsageError

if TYPE_CHECKING:
    from memforensics.case.views import DiffView

EXAMPLES = (
    "memforensics diff 4711 --over 10s",
    "memforensics diff before.case after.case",
    "memforensics diff watch.case --from 5m --to 1h",
    "memforensics diff watch.case --process 4713",
    "memforensics diff 4711 4712     # a healthy worker against a sick one",
)


def diff(
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
    name: NameOption = None,
    cmdline: CmdlineOption = None,
    container: ContainerOption = None,
) -> None:
    """Show what grew, shrank, appeared and went between two snapshots.

    Compares two case files, two snapshots of one case file (the first and last, or --from and --to), two processes, or
    one process now and later (--over). A case file, and one PID with --over, cover the whole process tree: its
    processes are summed and listed. Shared pages count in each process.
    """
    from memforensics.jobs import diff as job

    if name or cmdline or container:
        if before is not None:
            raise UsageError(
                "the process is chosen in two ways", enable="use A, or --container, or --name and --cmdline"
            )
        before = str(choose_pid(None, name, cmdline, container))
    if before is None:
        before = str(choose_pid(None, None, None))
    seen = job.compare(
        before, after, over_s=over, from_s=from_s, to_s=to_s, children=children, process=process, limit=top
    )
    if as_json:
        from memforensics.report.json.snapshot import diff as shape

        print_json(shape(seen))
    else:
        _show(seen)


def _show(seen: "DiffView") -> None:
    from memforensics.report.terminal import snapshot as show
    from memforensics.report.terminal.console import Console

    console = Console(highlight=False)
    console.print(
        show.diff_title(seen.before.name, seen.after.name, seen.change_bytes, seen.seconds, len(seen.processes))
    )
    console.print()
    if len(seen.processes) > 1:
        console.print(show.processes_table(seen.processes))
        console.print()
    console.print(show.groups_table(seen.groups, console.width))
    console.print()
    console.print(show.layer_changes(seen.layers))
    console.print(show.footnotes(seen.losses))
