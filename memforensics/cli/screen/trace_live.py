"""The live screen of a trace: a table in a stable order, and keys to select, sort, open, pause and end."""

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace

from rich.live import Live

from memforensics.analysis.site_groups import SortKey, sort_value
from memforensics.case.views import TraceTick, TraceView
from memforensics.cli.screen.keys import interrupt_once, keys
from memforensics.cli.screen.live import progress
from memforensics.cli.screen.trace_table import LiveTable
from memforensics.report.terminal.console import Console
from memforensics.report.terminal.trace import Screen


@dataclass(slots=True)
class Ending:
    """Whether the user asked to end: with the key q, or with Ctrl-C (`interrupted`). The job calls it."""

    interrupted: Callable[[], bool]
    by_key: bool = False

    def __call__(self) -> bool:
        return self.by_key or self.interrupted()


@contextlib.contextmanager
def ending() -> Iterator[Ending]:
    with interrupt_once() as interrupted:
        yield Ending(interrupted)


def show(ticks: Generator[TraceTick, None, None], stop: Ending, *, title: str, sort: SortKey, top: int) -> TraceView:
    """Draws until the last tick, then removes the table; returns the last view, sorted as the table was."""
    console = Console(highlight=False)
    table, drawn = LiveTable(Screen(sort=sort)), None
    with contextlib.closing(ticks), keys() as read, Live(console=console, auto_refresh=False, transient=True) as live:
        for tick in ticks:
            for key in read() if read is not None else ():
                table.press(key)
            stop.by_key = table.screen.ending
            table.take(tick.view)
            now = (id(table.view), table.screen, tick.phase, int(tick.elapsed_s), console.size)
            if now != drawn:
                live.update(table.drawn(tick, title, read is not None, top, console.size), refresh=True)
                drawn = now
    by = table.screen.sort
    return replace(tick.view, groups=tuple(sorted(tick.view.groups, key=lambda group: -sort_value(group, by))))


def wait(ticks: Generator[TraceTick, None, None], *, title: str, quiet: bool) -> TraceView:
    """Waits for the last tick, with a line of progress if stderr is a terminal; returns the last view."""
    with contextlib.closing(ticks), progress(title, quiet=quiet) as say:
        for tick in ticks:
            say(tick)
    return tick.view
