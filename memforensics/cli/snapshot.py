"""`memforensics snapshot PID`."""

from enum import Enum
from typing import Annotated

import typer

from memforensics.cli.common import JsonOption, RecordOption, ShowCmdlineOption, print_json
from memforensics.cli.target import TargetChoice, with_target

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


@with_target
def snapshot(
    target: TargetChoice,
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
        target.choose(show_cmdline=show_cmdline),
        reader="smaps" if full else reader.value,
        record=record,
    )
    if as_json:
        from memforensics.report.json.snapshot import snapshot as shape

        print_json(shape(seen))
    else:
        from memforensics.jobs.targets.choose import whole_command_line
        from memforensics.report.terminal.console import Console
        from memforensics.report.terminal.snapshot import snapshot_screen

        described = whole_command_line(seen.target) if show_cmdline and seen.target is not None else seen.target
        Console(highlight=False).print(snapshot_screen(seen, described, top))
