"""`memforensics report CASE`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from memforensics.cli.common import JsonOption

EXAMPLES = (
    "Examples: memforensics report leak.case    |    memforensics report leak.case --format md --output leak.md    |"
    "    memforensics report leak.case --json"
)


class Form(str, Enum):
    terminal = "terminal"
    md = "md"
    json = "json"


def report(
    case: Annotated[Path, typer.Argument(metavar="CASE", help="The case file.")],
    format: Annotated[Form, typer.Option("--format", help="How to render it.")] = Form.terminal,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Render a saved case: the same report as diagnose, with no privileges and no live process.

    Exits 0 whenever the case could be read, whatever its verdict (3 when it could not): the report was made.
    """
    from memforensics.jobs import report as job
    from memforensics.jobs.files import write_text

    loaded, diagnosis = job.load(case)
    form = Form.json if as_json else format
    if output is not None:
        write_text(job.render(loaded, diagnosis, form.value), output)
    elif form is Form.terminal:
        from rich.console import Console

        from memforensics.report.terminal import Report

        Console(highlight=False).print(Report(loaded, diagnosis))
    else:
        typer.echo(job.render(loaded, diagnosis, form.value), nl=False)
