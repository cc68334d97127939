"""`memforensics report CASE`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from memforensics.cli.common import JsonOption

EXAMPLES = (
    "memforensics report leak.case",
    "memforensics report leak.case --format md --output leak.md",
    "memforensics report leak.case --json",
)


def report(
    case: Annotated[Path, typer.Argument(metavar="CASE", help="The case file.")],
    format: Annotated[
        Literal["terminal", "md", "json"] | None,
        typer.Option("--format", help="How to render it (default: terminal, or by the ending of --output)."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there.")] = None,
    remedies: Annotated[
        Path | None, typer.Option("--remedies", metavar="DIR", help="Also the catalogue entries of this folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Render a saved case: the same report as diagnose, with no privileges and no live process.

    Exits 0 whenever the case could be read, whatever its verdict (3 when it could not): the report was made.
    """
    from memforensics.cli.render import form_of, print_report
    from memforensics.jobs import report as job
    from memforensics.jobs.files import write_text

    form: job.Format | None = "json" if as_json else format
    loaded, diagnosis = job.load(case, remedies)
    if output is not None:
        write_text(job.render(loaded, diagnosis, form or form_of(output) or "terminal"), output)
    else:
        print_report(loaded, diagnosis, form or "terminal")
