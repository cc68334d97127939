"""What several commands share: option types, the choice of a target, printing JSON."""

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from memforensics.errors import UsageError
from memforensics.units import parse_duration


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


PidArgument = Annotated[
    int | None, typer.Argument(metavar="PID", help="The process; without it, likely targets are listed.")
]
NameOption = Annotated[
    str | None, typer.Option("--name", help="Choose the process by its name (comm) instead of a PID.")
]
CmdlineOption = Annotated[str | None, typer.Option("--cmdline", help="Choose the process whose command line matches.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object (no colours, no progress).")]
RecordOption = Annotated[Path | None, typer.Option("--record", metavar="CASE", help="Keep the case in this file.")]


def duration_option(help_text: str, *names: str) -> object:
    """An option whose value is a duration: 60s, 2m, 500ms. The function gets seconds."""
    return typer.Option(*(names or ("--duration",)), metavar="TIME", parser=_duration, help=help_text)


def print_json(value: object) -> None:
    """One JSON object (or, for a str or bytes, that text as it is) and a newline on stdout."""
    if not isinstance(value, bytes | str):
        value = msgspec.json.format(msgspec.json.encode(value), indent=2)
    text = value.decode() if isinstance(value, bytes) else value
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def choose_pid(pid: int | None, name: str | None, cmdline: str | None) -> int:
    """The one process meant. UsageError (exit 2) when there is none or more than one; without any word, the likely
    targets are listed, largest first."""
    from memforensics.jobs import targets

    if pid is not None:
        return pid
    found = targets.find(name=name, cmdline=cmdline)
    if name is None and cmdline is None:
        typer.echo("Name a process. Likely targets, largest first:\n", err=True)
        typer.echo(targets.table(found[:15]), err=True)
        raise UsageError("no PID given", enable="memforensics COMMAND PID")
    if len(found) == 1:
        return found[0].pid
    if not found:
        raise UsageError(
            f"no process matches {name or cmdline!r}", enable="memforensics watch   (lists likely targets)"
        )
    typer.echo(targets.table(found[:15]), err=True)
    raise UsageError(f"{len(found)} processes match {name or cmdline!r}", enable="name one PID")
