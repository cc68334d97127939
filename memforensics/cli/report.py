"""`memforensics report CASE`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from memforensics.cli.common import JsonOption, RemediesOption

EXAMPLES = (
    "memforensics report leak.case",
    "memforensics report leak.case --format md --output leak.md",
    "memforensics report leak.case --json",
)


def report(
    case: Annotated[Path, typer.Argument(metavar="CASE", help="The case file.")],
    format: Annotated[
        Literal["terminal", "md", "json"] | None,
        typer.Option("--format", help="The format. [default: terminal, or by the ending of --output]"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write to this file: .md, .json or .txt, unless --format is given."
        ),
    ] = None,
    remedies: RemediesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Render a saved case: the same report as diagnose, without privileges and without the process.

    Exit code 0: the report was made, whatever its verdict; 3: the case cannot be read.
    """
    from memforensics.cli.screen.render import output_form, print_report, write_report
    from memforensics.jobs.case.conclude import load_diagnosis
    from memforensics.report.render import render

    form = output_form(output, "json" if as_json else format)
    loaded, diagnosis = load_diagnosis(case, remedies)
    if output is not None:
        write_report(render(loaded, diagnosis, form), output, printed=False)
    else:
        print_report(loaded, diagnosis, form)
