"""A trace from the command line: live on a terminal, quiet in a pipe, then the result in the chosen format."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from memforensics.analysis.site_groups import SortKey
from memforensics.analysis.trace_view import Selection
from memforensics.case.views import EngineName
from memforensics.cli.common import say
from memforensics.cli.screen import trace_live, trace_out
from memforensics.cli.target import TargetChoice
from memforensics.errors import Interrupted, UsageError
from memforensics.jobs.trace import run as job


@dataclass(frozen=True, slots=True)
class What:
    """What to trace, and which sites to show."""

    family: Literal["mappings", "faults"]
    seconds: float
    children: bool
    sort: SortKey
    filters: list[str] | None
    min_age_s: float
    engine: EngineName
    record: Path | None
    overhead: float | None


@dataclass(frozen=True, slots=True)
class Shown:
    """How to show the result."""

    form: trace_out.Form
    output: Path | None
    top: int
    stacks: bool
    quiet: bool


def run(what: What, shown: Shown, pids: list[int] | None, target: TargetChoice) -> None:
    """UsageError, and what the job raises; Interrupted after Ctrl-C, when the result so far is shown and kept."""
    trace_out.check(shown.form, shown.output)
    selection = Selection(what.sort, trace_out.filters_of(what.filters), what.min_age_s)
    if pids and target.is_by_option:
        raise UsageError(
            "the process is chosen in two ways", enable="use PIDs, or --container, or --name and --cmdline"
        )
    named = pids or [target.choose()]
    command = job.COMMANDS[what.family]
    with trace_live.ending() as stop:
        ticks = job.trace_ticks(
            named,
            seconds=what.seconds,
            family=what.family,
            engine=what.engine,
            children=what.children,
            selection=selection,
            record=what.record,
            overhead=what.overhead,
            stop=stop,
        )
        if shown.form == "text" and shown.output is None and sys.stdout.isatty():
            title = f"{command} {' '.join(map(str, named))}"
            view = trace_live.show(ticks, stop, title=title, sort=what.sort, top=shown.top)
        else:
            view = trace_live.wait(ticks, title=command, quiet=shown.quiet)
    trace_out.put(view, shown.form, shown.output, top=shown.top, stacks=shown.stacks)
    for pid, how in view.left:
        say(f"memforensics: process {pid} left during the trace: {how}", err=True)
    if stop.interrupted():
        raise Interrupted(str(what.record) if what.record else None)
