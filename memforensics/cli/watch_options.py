"""The options of watch."""

from typing import Annotated, Literal

import typer

from memforensics.cli.common import duration_option

Children = Annotated[bool, typer.Option(help="Include its child processes.")]
Restarts = Annotated[
    bool, typer.Option(help="With --name, --cmdline or --container: if it exits, wait for it to start again.")
]
Interval = Annotated[float, duration_option("Time between two readings.", "--interval")]
Duration = Annotated[
    float | None,
    duration_option("How long. Without it: until q, Ctrl-C or its exit.", least=1, because="growth needs two readings"),
]
Until = Annotated[Literal["growing", "leak"] | None, typer.Option(help="End as soon as this is the verdict.")]
OnLeak = Annotated[str | None, typer.Option(metavar="CMD", help="Run this command once if the verdict is leak.")]
Prometheus = Annotated[int | None, typer.Option(metavar="PORT", help="Serve Prometheus metrics on this port.")]
Address = Annotated[str, typer.Option(help="The address on which --prometheus listens.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print one JSON object per line, one line per reading.")]
