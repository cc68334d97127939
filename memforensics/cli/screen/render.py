"""A report on the screen or in a file, the same in every command that prints one."""

import sys
from pathlib import Path

from memforensics.case.model import Case, Diagnosis
from memforensics.cli.common import say
from memforensics.errors import MemforensicsError
from memforensics.jobs.case.files import check_output, write_text
from memforensics.report.render import Format, form_of, render


def output_form(output: Path | None, asked: Format | None) -> Format:
    """The format of the report in that file: the one asked for, else by its ending. UsageError if it cannot be written,
    or the ending is unknown. Call it before the work starts."""
    if output is None:
        return asked or "terminal"
    form = asked or form_of(output)
    check_output(output)
    return form


def print_report(case: Case, diagnosis: Diagnosis, form: Format) -> None:
    """Prints the report on stdout."""
    if form == "terminal" and sys.stdout.isatty():
        from memforensics.report.terminal.console import Console
        from memforensics.report.terminal.report import Report

        Console(highlight=False).print(Report(case, diagnosis))
    else:
        say(render(case, diagnosis, form), end="")


def write_report(text: str, output: Path, *, printed: bool) -> None:
    """Writes the report to the file. If that fails (a full disk), stderr says so, and the report goes to stdout unless
    it is already `printed` there."""
    try:
        write_text(text, output)
    except MemforensicsError as error:
        say(f"memforensics: {error}; the report is on stdout", err=True)
        if not printed:
            say(text, end="")
