"""A report to the screen or a file, alike in every command that ends in one."""

from pathlib import Path

import typer

from memforensics.case.model import Case, Diagnosis
from memforensics.jobs import report as job


def print_report(case: Case, diagnosis: Diagnosis, form: job.Format, output: Path | None = None) -> None:
    """On the screen as `form`; and to `output`, Markdown or JSON by its ending, where one is named."""
    if output is not None:
        endings: dict[str, job.Format] = {".md": "md", ".json": "json"}
        job.write(job.render(case, diagnosis, endings.get(output.suffix, form)), output)
    if form == "terminal":
        from rich.console import Console

        from memforensics.report.terminal import Report

        Console(highlight=False).print(Report(case, diagnosis))
    else:
        typer.echo(job.render(case, diagnosis, form), nl=False)
