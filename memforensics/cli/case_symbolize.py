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
            help="Debug files: a .build-id tree, any folder of them, or one file.",
        ),
    ] = None,
    root: Annotated[
        list[Path] | None,
        typer.Option("--root", metavar="DIR", help="The recorded machine's or container's files."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="NEW", help="Write a new case, and leave this one.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Name the functions and lines of a case that was recorded where there were no symbols.

    Every native frame keeps its module, build-id and offset; a file is used when its build-id is the same, and nothing
    is fetched. Looked for in the folders and roots that are named, and in this machine's own.
    """
    from memforensics.jobs.case.symbolize import symbolize

    done = symbolize(file, folders=debug_dir or (), roots=root or (), output=output)
    if as_json:
        from memforensics.report.json.files import symbolized

        print_json(symbolized(done))
    else:
        from memforensics.report.terminal.files import symbolized_text

        say(symbolized_text(done), end="")
