"""What commands share: option types, the choice of a target, printing."""

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memforensics.errors import UsageError
from memforensics.text import safe_lines, visible
from memforensics.units import duration_text, parse_duration, size_text

if TYPE_CHECKING:
    from memforensics.jobs.targets.choose import Candidate

PidArgument = Annotated[
    int | None, typer.Argument(metavar="PID", help="The process. Without it, likely targets are listed.")
]
NameOption = Annotated[str | None, typer.Option("--name", help="Choose the process by its name (comm).")]
CmdlineOption = Annotated[
    str | None, typer.Option("--cmdline", metavar="REGEX", help="Choose the process by its command line.")
]
ContainerOption = Annotated[
    str | None,
    typer.Option("--container", metavar="ID", help="Choose the first process of a container, by ID or name."),
]
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


def choose_pid(
    pid: int | None,
    name: str | None,
    cmdline: str | None,
    container: str | None = None,
    *,
    show_cmdline: bool = False,
) -> int:
    """The PID of the one process or process tree that matches. UsageError if there is none, or more than one. Without
    any criterion it lists likely targets, largest first, and raises UsageError."""
    from memforensics.jobs.targets import choose as targets
    from memforensics.jobs.targets.containers import only_root

    if sum(criterion is not None for criterion in (pid, name or cmdline, container)) > 1:
        raise UsageError(
            "the process is chosen in two ways", enable="use a PID, or --container, or --name and --cmdline"
        )
    if pid is not None:
        return pid
    if container is not None:
        return only_root(container)
    found = targets.find(name=name, cmdline=cmdline)
    width = shutil.get_terminal_size((120, 24)).columns
    if name is None and cmdline is None:
        say("Choose a process. Likely targets, largest first:\n", err=True)
        say(candidates_text(found[:15], width=width, show_cmdline=show_cmdline), err=True)
        raise UsageError("no PID given", enable="name one of these PIDs, or use --name, --cmdline or --container")
    found = targets.roots(found)
    if len(found) == 1:
        return found[0].pid
    criteria = " and ".join(repr(word) for word in (name, cmdline) if word is not None)
    if not found:
        raise UsageError(f"no process matches {criteria}", enable="run the command without it: it lists likely targets")
    say(candidates_text(found[:15], width=width, show_cmdline=show_cmdline), err=True)
    raise UsageError(f"{len(found)} process trees match {criteria}", enable="name one of these PIDs")


def candidates_text(candidates: "list[Candidate]", *, show_cmdline: bool = False, width: int = 120) -> str:
    """The candidates as text, a line of at most `width` columns each. Of a command line it shows the words known to be
    harmless, or everything with `show_cmdline`."""
    from memforensics.target.cmdline import harmless_command

    rows = [f"{'PID':>8}  {'RSS':>9}  {'role':<18}  command"]
    for c in candidates:
        line = visible(" ".join(c.words if show_cmdline else harmless_command(c.words))) or visible(c.comm)
        row = f"{c.pid:>8}  {size_text(c.rss_bytes):>9}  {c.role or '':<18}  {line}"
        rows.append(row if show_cmdline else row[:width])
    return "\n".join(rows)
