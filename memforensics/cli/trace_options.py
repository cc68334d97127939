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
    list[int] | None, typer.Argument(metavar="PID", help="The processes. Without any, likely targets are listed.")
]
Duration = Annotated[float, duration_option("How long to trace.", least=1, because="a shorter trace gives no rate")]
Children = Annotated[bool, typer.Option(help="Include their child processes.")]
Sort = Annotated[
    Literal["outstanding", "rate", "count", "age"], typer.Option(help="The order of the sites, highest first.")
]
Top = Annotated[int, typer.Option("--top", min=1, metavar="N", help="How many sites to show.")]
Filters = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        metavar="FIELD=TEXT",
        help="Only stacks that contain it: lib=, func= or file=. Repeatable; a stack must match all.",
    ),
]
MinAge = Annotated[float, duration_option("Only memory that has been held at least this long.", "--min-age")]
Stacks = Annotated[bool, typer.Option("--stacks", help="Show every stack of each site.")]
Format = Annotated[
    Literal["text", "json", "folded", "speedscope", "pprof", "perfetto", "html"],
    typer.Option(help="Text, JSON, or the format of another tool."),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to this file.")]
Overhead = Annotated[
    float | None,
    typer.Option(
        "--overhead",
        metavar="P%",
        parser=_share,
        help="Limit the cost above the floor to this share of the traced CPU time. It samples, or ends early.",
    ),
]
