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
            "For one PID: how long to wait in between.", "--over", least=0.1, because="reading takes nearly as long"
        ),
    ] = None,
    from_s: Annotated[
        float | None, duration_option("For one case file: how long after its begin the first snapshot is.", "--from")
    ] = None,
    to_s: Annotated[float | None, duration_option("For one case file: the same of the second one.", "--to")] = None,
    process: Annotated[
        int | None, typer.Option("--process", metavar="PID", help="Compare only this process of the tree.")
    ] = None,
    children: Annotated[bool, typer.Option(help="With --over: the process tree below it too.")] = True,
    as_json: JsonOption = False,
    top: Annotated[int, typer.Option("--top", min=1, metavar="N", help="How many groups; the rest is summed.")] = 20,
    name: NameOption = None,
    cmdline: CmdlineOption = None,
    container: ContainerOption = None,
) -> None:
    """Show what grew, shrank, appeared and went between two times.

    Compares two case files, the first and last snapshots of one (or --from one time --to another), two processes, or
    now and later in one (--over). A case, and one PID with --over, stand for the whole process tree: its processes are
    summed, and listed one by one. Pages that processes share count in each of them.
    """
    from memforensics.jobs import diff as job

    if name or cmdline or container:
        if before is not None:
            raise UsageError("the process is named in two ways", enable="A, --container, or --name and --cmdline")
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
