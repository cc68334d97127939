"""A report to the screen or a file, alike in every command that ends in one."""

import sys
from pathlib import Path

import typer

from memforensics.case.model import Case, Diagnosis
from memforensics.jobs import report as job
from memforensics.jobs.files import write_text


def form_of(output: Path) -> job.Format | None:
    """The form that a file's ending asks for."""
    endings: dict[str, job.Format] = {".md": "md", ".json": "json"}
    return endings.get(output.suffix)


def print_report(case: Case, diagnosis: Diagnosis, form: job.Format, output: Path | None = None) -> None:
    """On the screen as `form`; and to `output`, Markdown or JSON by its ending, where one is named."""
    if output is not None:
        write_text(job.render(case, diagnosis, form_of(output) or form), output)
    if form == "terminal" and sys.stdout.isatty():
        from rich.console import Console

        from memforensics.report.terminal import Report

        Console(highlight=False).print(Report(case, diagnosis))
    else:
        typer.echo(job.render(case, diagnosis, form), nl=False)
