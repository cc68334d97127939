"""`memforensics snapshot PID`."""

from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from memforensics.cli.common import (
    CmdlineOption,
    ContainerOption,
    JsonOption,
    NameOption,
    PidArgument,
    RecordOption,
    ShowCmdlineOption,
    choose_pid,
    print_json,
)

if TYPE_CHECKING:
    from memforensics.case.views import SnapshotView

EXAMPLES = (
    "memforensics snapshot 4711",
    "memforensics snapshot --name llama-server --json",
    "memforensics snapshot 4711 --record before.case",
)


class ReaderName(str, Enum):
    auto = "auto"
    smaps = "smaps"
    pagemap = "pagemap"
    entries = "entries"
    rollup = "rollup"
    maps = "maps"
    procmap = "procmap"


def snapshot(
    pid: PidArgument = None,
    name: NameOption = None,
    cmdline: CmdlineOption = None,
    container: ContainerOption = None,
    show_cmdline: ShowCmdlineOption = False,
    as_json: JsonOption = False,
    record: RecordOption = None,
    reader: Annotated[
        ReaderName, typer.Option("--reader", help="How to read the mappings. auto avoids stalling large processes.")
    ] = (ReaderName.auto),
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Also PSS, dirty, swapped and locked bytes, from smaps. This stalls a large process."
        ),
    ] = False,
    top: Annotated[int, typer.Option("--top", min=1, metavar="N", help="How many groups to show.")] = 15,
) -> None:
    """Show RSS by layer at one point in time, and every mapping with its owner.

    The layers sum to the kernel's figure.
    """
    from memforensics.jobs import snapshot as job

    seen = job.snapshot(
        choose_pid(pid, name, cmdline, container, show_cmdline=show_cmdline),
        reader="smaps" if full else reader.value,
        record=record,
    )
    if as_json:
        from memforensics.report.json.snapshot import snapshot as shape

        print_json(shape(seen))
    else:
        _show(seen, top, show_cmdline)


def _show(seen: "SnapshotView", top: int, show_cmdline: bool) -> None:
    from memforensics.jobs.targets.choose import whole_command_line
    from memforensics.report.terminal import snapshot as show
    from memforensics.report.terminal.console import Console

    console = Console(highlight=False)
    target = whole_command_line(seen.target) if show_cmdline and seen.target is not None else seen.target
    console.print(show.title(target, seen.snapshot))
    console.print()
    console.print(show.waterfall(seen.layers, seen.kernel_totals))
    console.print()
    console.print(show.owned_table(seen.groups, top))
    console.print(show.footnotes(seen.losses))
