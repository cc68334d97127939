"""`memforensics case FILE` and `memforensics case symbolize FILE`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from memforensics.cli.case_symbolize import EXAMPLES as SYMBOLIZE_EXAMPLES
from memforensics.cli.case_symbolize import symbolize_case
from memforensics.cli.common import JsonOption, say
from memforensics.cli.groups import epilog, group_with_default
from memforensics.errors import UsageError

_EXAMPLES = (
    "memforensics case leak.case",
    "memforensics case leak.case --format csv --table sample",
    "memforensics case leak.case --format csv --table mapping --output mappings.csv",
    "memforensics case leak.case --format html --output leak.html",
)
group = typer.Typer(
    cls=group_with_default("list"),
    help="List or export the contents of a case file (`case FILE` is `case list FILE`), or add symbol names to it.",
    epilog=epilog((*_EXAMPLES[:2], SYMBOLIZE_EXAMPLES[0])),
    no_args_is_help=True,
    rich_markup_mode=None,
)


@group.command("list", epilog=epilog(_EXAMPLES))
def list_case(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The case file.")],
    format: Annotated[
        Literal["text", "json", "csv", "folded", "speedscope", "pprof", "perfetto", "html"],
        typer.Option(
            "--format", help="A list (text, json), one table (csv), or the sites in the format of another tool."
        ),
    ] = "text",
    table: Annotated[
        str | None, typer.Option("--table", help="With csv: the table, such as sample, mapping or target.")
    ] = None,
    sites: Annotated[
        Literal["mappings", "malloc", "faults"] | None,
        typer.Option("--sites", help="Which sites to export, if it has several kinds."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the contents of a case file: its origin, time, processes, and the number of records of each kind."""
    from memforensics.jobs.case import contents as job
    from memforensics.jobs.case.files import write_text

    if table is not None and format != "csv":
        raise UsageError("--table needs --format csv", enable=f"--format csv --table {table}")
    if sites is not None and format in ("text", "json", "csv"):
        raise UsageError("--sites needs an export format", enable=f"--format html --sites {sites}")
    if format in ("folded", "speedscope", "pprof", "perfetto", "html"):
        from memforensics.cli.screen.trace_out import put_case

        put_case(file, format, sites, output)
        return
    if format == "csv":
        if table is None:
            held = ", ".join(name for name, rows in job.listing(file).counts.items() if rows)
            raise UsageError("--format csv needs --table", enable=f"--table NAME, one of: {held}")
        text = job.table_csv(file, table)
    elif as_json or format == "json":
        from memforensics.report.json.files import listing as shape
        from memforensics.report.json.shapes import json_bytes

        text = json_bytes(shape(job.listing(file))).decode() + "\n"
    else:
        from memforensics.report.terminal.files import listing_text

        text = listing_text(job.listing(file))
    if output is not None:
        write_text(text, output)
    else:
        say(text, end="")


group.command("symbolize", epilog=epilog(SYMBOLIZE_EXAMPLES))(symbolize_case)
