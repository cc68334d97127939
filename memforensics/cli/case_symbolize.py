"""`memforensics case symbolize FILE`."""

from pathlib import Path
from typing import Annotated

import typer

from memforensics.cli.common import JsonOption, print_json, say

EXAMPLES = (
    "memforensics case symbolize leak.case",
    "memforensics case symbolize leak.case --debug-dir ./debug-files --output named.case",
    "memforensics case symbolize leak.case --root ./image-unpacked",
)


def symbolize_case(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The case file.")],
    debug_dir: Annotated[
        list[Path] | None,
        typer.Option(
            "--debug-dir",
            metavar="DIR",
            help="Debug files: a .build-id tree, another folder, or one file. Repeatable.",
        ),
    ] = None,
    root: Annotated[
        list[Path] | None,
        typer.Option("--root", metavar="DIR", help="The file system of the recorded machine or container. Repeatable."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="NEW", help="Write a new case and leave this one unchanged."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Add function names and lines to a case that was recorded on a machine without symbols.

    Every native frame has its module, build-id and offset. A file is used if its build-id is the same; it is searched
    in the given folders and roots, and on this machine. Nothing is downloaded.
    """
    from memforensics.jobs.case.symbolize import symbolize

    done = symbolize(file, folders=debug_dir or (), roots=root or (), output=output)
    if as_json:
        from memforensics.report.json.files import symbolized

        print_json(symbolized(done))
    else:
        from memforensics.report.terminal.files import symbolized_text

        say(symbolized_text(done), end="")
