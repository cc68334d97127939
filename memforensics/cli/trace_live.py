"""The live screen of trace-mmap: a table that settles, and keys that choose, sort, open, pause and end."""

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace

from rich.console import Console, RenderableType
from rich.live import Live

from memforensics.analysis.sites import GroupKey, SiteGroup, SortKey, score, settled
from memforensics.cli.keys import interrupt_once, keys
from memforensics.cli.live import progress
from memforensics.jobs.trace import TraceTick, TraceView
from memforensics.report.terminal_trace import Screen, live_screen, pressed


@dataclass(slots=True)
class Ending:
    """The wish to end, which the job asks for: by the key q, or by Ctrl-C (`interrupted`)."""

    interrupted: Callable[[], bool]
    by_key: bool = False

    def __call__(self) -> bool:
        return self.by_key or self.interrupted()


@contextlib.contextmanager
def ending() -> Iterator[Ending]:
    with interrupt_once() as interrupted:
        yield Ending(interrupted)


@dataclass(slots=True)
class LiveTable:
    """What is on the screen. While paused it keeps the figures it has; the account goes on."""

    screen: Screen
    view: TraceView | None = None
    order: list[GroupKey] = field(default_factory=list)

    def press(self, key: str) -> None:
        before, self.screen = self.screen, pressed(self.screen, key, len(self.order))
        if self.screen.sort != before.sort and self.view is not None:
            self._sort(self.view, [])

    def take(self, view: TraceView) -> None:
        if view is not self.view and not (self.screen.paused and self.view is not None):
            self._sort(view, self.order)

    @property
    def groups(self) -> list[SiteGroup]:
        known = {group.key: group for group in self.view.groups} if self.view else {}
        return [known[key] for key in self.order]

    def _sort(self, view: TraceView, order: list[GroupKey]) -> None:
        scores = {group.key: score(group, self.screen.sort) for group in view.groups}
        self.view, self.order = view, settled(order, scores)


def show(ticks: Generator[TraceTick, None, None], stop: Ending, *, title: str, sort: SortKey, top: int) -> TraceView:
    """Draws until the last tick, then wipes the table off; the last view, sorted as the table was last."""
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
                live.update(_drawn(tick, table, title, read is not None, top, console), refresh=True)
                drawn = now
    by = table.screen.sort
    return replace(tick.view, groups=tuple(sorted(tick.view.groups, key=lambda group: -score(group, by))))


def wait(ticks: Generator[TraceTick, None, None], *, quiet: bool) -> TraceView:
    """To the last tick, with one line of progress on a terminal's stderr."""
    with contextlib.closing(ticks), progress("trace-mmap", quiet=quiet) as say:
        for tick in ticks:
            say(tick)
    return tick.view


def _drawn(
    tick: TraceTick, table: LiveTable, title: str, with_keys: bool, top: int, console: Console
) -> RenderableType:
    view = table.view or tick.view
    return live_screen(
        table.groups,
        table.screen,
        title=title,
        phase=tick.phase,
        elapsed_s=tick.elapsed_s,
        seconds_left=tick.seconds_left,
        growth_bytes=tick.growth_bytes,
        left_out=view.left_out,
        several=len(view.case.targets) > 1,
        keys=with_keys,
        top=top,
        width=console.width,
        height=console.height,
    )
