"""`memforensics diff A B`."""

from typing import TYPE_CHECKING, Annotated

import typer

from memforensics.cli.common import JsonOption, duration_option, print_json

if TYPE_CHECKING:
    from memforensics.jobs.snapshot import DiffView

EXAMPLES = (
    "memforensics diff 4711 --over 10s",
    "memforensics diff before.case after.case",
    "memforensics diff watch.case --from 5m --to 1h",
    "memforensics diff 4711 4712     # a healthy worker against a sick one",
)


def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="A case file or a PID.")],
    after: Annotated[str | None, typer.Argument(metavar="B", help="Another case file or PID.")] = None,
    over: Annotated[float | None, duration_option("For one PID: how long to wait in between.", "--over")] = None,
    from_s: Annotated[
        float | None, duration_option("For one case file: how long after its begin the first snapshot is.", "--from")
    ] = None,
    to_s: Annotated[float | None, duration_option("For one case file: the same of the second one.", "--to")] = None,
    as_json: JsonOption = False,
    top: Annotated[int, typer.Option("--top", min=1, metavar="N", help="How many groups; the rest is summed.")] = 20,
) -> None:
    """What grew, shrank, appeared and went.

    Between two case files, the first and last snapshot of one (or --from one time --to another), two processes, or now
    and later in one (--over).
    """
    from memforensics.jobs import snapshot as job

    seen = job.compare(before, after, over_s=over, from_s=from_s, to_s=to_s, limit=top)
    if as_json:
        from memforensics.report.snapshot_json import diff_json

        print_json(diff_json(seen.groups, seen.layers, seen.change_bytes, seen.losses))
    else:
        _show(seen)


def _show(seen: "DiffView") -> None:
    from memforensics.report import terminal_snapshot as show
    from memforensics.report.console import Console
    from memforensics.units import NS_PER_S

    console = Console(highlight=False)
    seconds = (seen.after.snapshot.t_ns - seen.before.snapshot.t_ns) / NS_PER_S if seen.same_process else None
    console.print(show.diff_title(seen.before.name, seen.after.name, seen.change_bytes, seconds))
    console.print()
    console.print(show.groups_table(seen.groups, console.width))
    console.print()
    console.print(show.layer_changes(seen.layers))
    console.print(show.footnotes(seen.losses))
