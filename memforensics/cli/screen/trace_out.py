"""The sites of a trace or a case, on the screen or in a file, in the chosen format."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from memforensics.analysis.site_groups import SiteFilter, parse_filter
from memforensics.cli.common import print_json
from memforensics.errors import UsageError

if TYPE_CHECKING:
    from memforensics.case.views import Family, TraceView

Form = Literal["text", "json", "folded", "speedscope", "pprof", "perfetto", "html"]
PIPE_WIDTH = 120  # columns if there is no terminal

_ENDINGS = {"folded": "folded", "speedscope": "speedscope.json", "pprof": "pb.gz", "perfetto": "pftrace"}


def check(form: Form, output: Path | None) -> None:
    """UsageError if binary output would go to a terminal."""
    if form in ("pprof", "perfetto") and output is None and sys.stdout.isatty():
        raise UsageError(f"{form} is binary and cannot go to a terminal", enable=f"--output leak.{_ENDINGS[form]}")


def filters_of(words: list[str] | None) -> tuple[SiteFilter, ...]:
    try:
        return tuple(parse_filter(word) for word in words or [])
    except ValueError as error:
        raise UsageError(str(error), enable="--filter lib=libucs") from error


def put(view: "TraceView", form: Form, output: Path | None, *, top: int, stacks: bool = False) -> None:
    """Writes the view to a file or prints it."""
    from memforensics.jobs.case.files import write_bytes
    from memforensics.report.export import export_view

    if form == "text":
        _put_text(view, output, top, stacks)
    elif form == "json":
        from memforensics.report.json.shapes import json_bytes
        from memforensics.report.json.trace import trace

        if output is not None:
            write_bytes(json_bytes(trace(view)) + b"\n", output)
        else:
            print_json(trace(view))
    elif output is not None:
        write_bytes(export_view(view, form), output)
    else:
        sys.stdout.buffer.write(export_view(view, form))
        sys.stdout.flush()


def put_case(file: Path, form: Form, family: "Family | None", output: Path | None) -> None:
    """The sites of a saved case. CaseError if it has none."""
    from memforensics.analysis.trace_view import view_of_case
    from memforensics.jobs.case.conclude import load_case

    check(form, output)
    put(view_of_case(load_case(file), family), form, output, top=0)


def _put_text(view: "TraceView", output: Path | None, top: int, stacks: bool) -> None:
    from memforensics.jobs.case.files import write_text
    from memforensics.report.terminal.console import Console
    from memforensics.report.terminal.trace import result

    piped = output is not None or not sys.stdout.isatty()
    console = Console(highlight=False, width=PIPE_WIDTH if piped and "COLUMNS" not in os.environ else None)
    shown = result(view, top=top, all_stacks=stacks, width=console.width)
    if output is None:
        console.print(shown)
        return
    with console.capture() as text:
        console.print(shown)
    write_text(text.get(), output)
