"""What commands share: option types and printing."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from memforensics.text import safe_lines
from memforensics.units import duration_text, parse_duration

RemediesOption = Annotated[
    Path | None, typer.Option("--remedies", metavar="DIR", help="Also use the catalogue entries in this folder.")
]
ShowCmdlineOption = Annotated[
    bool,
    typer.Option(
        "--show-cmdline",
        help="Show whole command lines on the terminal. They may contain passwords; files and JSON never have them.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, without colours or progress.")]
RecordOption = Annotated[Path | None, typer.Option("--record", metavar="CASE", help="Keep the case in this file.")]


def duration_option(help_text: str, *names: str, least: float = 0.0, because: str = "") -> object:
    """An option that takes a duration (60s, 2m, 500ms); the command gets seconds. A value below `least` is refused with
    the reason `because`."""

    def parsed(text: str) -> float:
        try:
            seconds = parse_duration(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        if seconds < least:
            raise typer.BadParameter(f"at least {duration_text(least)}: {because}")
        return seconds

    if least:
        help_text += f" At least {duration_text(least)}."
    return typer.Option(*(names or ("--duration",)), metavar="TIME", parser=parsed, help=help_text)


def verdict_duration_option(help_text: str) -> object:
    """--duration of a command that gives a verdict."""
    because = "a verdict needs 8 samples over 7 s, and the last seconds close the probes"
    return duration_option(help_text, least=10.0, because=because)


def say(text: str, *, err: bool = False, end: str = "\n") -> None:
    """Prints text on stdout or stderr; control characters are escaped."""
    out = sys.stderr if err else sys.stdout
    out.write(safe_lines(text) + end)
    out.flush()


def print_json(value: object) -> None:
    """Prints one JSON object (or a str or bytes as it is) and a newline on stdout."""
    if not isinstance(value, bytes | str):
        from memforensics.report.json.shapes import json_bytes

        value = json_bytes(value)
    text = value.decode() if isinstance(value, bytes) else value
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
