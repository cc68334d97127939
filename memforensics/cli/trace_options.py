"""The options that trace-mmap and trace-faults share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from memforensics.cli.common import duration_option
from memforensics.units import parse_share


def _share(text: str) -> float:
    try:
        return parse_share(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


Pids = Annotated[
    list[int] | None, typer.Argument(metavar="PID", help="The processes; without any, targets are listed.")
]
Duration = Annotated[float, duration_option("How long to trace.", least=1, because="no rate can be told from less")]
Children = Annotated[bool, typer.Option(help="Their child processes too.")]
Sort = Annotated[Literal["outstanding", "rate", "count", "age"], typer.Option(help="First what has most.")]
Top = Annotated[int, typer.Option("--top", min=1, metavar="N", help="How many sites are shown.")]
Filters = Annotated[
    list[str] | None,
    typer.Option("--filter", metavar="FIELD=TEXT", help="Only stacks with it: lib=, func= or file=. Several: all."),
]
MinAge = Annotated[float, duration_option("Only memory that is held for so long.", "--min-age")]
Stacks = Annotated[bool, typer.Option("--stacks", help="All stacks of each site that is shown.")]
Format = Annotated[
    Literal["text", "json", "folded", "speedscope", "pprof", "perfetto", "html"],
    typer.Option(help="text, json, or a file for another program."),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there.")]
Overhead = Annotated[
    float | None,
    typer.Option(
        "--overhead",
        metavar="P%",
        parser=_share,
        help="Its cost above the floor stays below that share of the traced CPU time: by sampling, else it ends early.",
    ),
]
