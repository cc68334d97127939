"""Output while a job runs: lines in a pipe, and one line of progress with the time left."""

import contextlib
import os
import sys
from collections.abc import Callable, Generator, Iterator
from typing import Protocol, TypeVar

from memforensics.text import safe_lines

T = TypeVar("T")


class Progress(Protocol):
    """How far a job is."""

    @property
    def phase(self) -> str: ...

    @property
    def seconds_left(self) -> float: ...

    @property
    def growth_bytes(self) -> int | None: ...


def is_terminal() -> bool:
    """Whether stdout is a terminal that can be redrawn."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def show_lines(ticks: Generator[T, None, None], text: Callable[[T], str]) -> T | None:
    """Prints each tick at once; returns the last one."""
    last: T | None = None
    with contextlib.closing(ticks):
        for last in ticks:
            sys.stdout.write(safe_lines(text(last)) + "\n")
            sys.stdout.flush()
    return last


@contextlib.contextmanager
def progress(title: str, *, quiet: bool = False) -> Iterator[Callable[[Progress], None]]:
    """One line on stderr while a job runs: its phase, the time left, the growth so far. Nothing in a pipe."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.text import Text

    from memforensics.report.terminal.console import Console
    from memforensics.units import change_text, duration_text

    def words(now: Progress) -> Text:
        line = Text(f"{title}: {now.phase}", style="bold")
        line.append(f", {duration_text(now.seconds_left)} left", style="not bold")
        if now.growth_bytes is not None:
            line.append(f", {change_text(now.growth_bytes)} so far", style="not bold dim")
        return line

    with Console(stderr=True).status(Text(title), spinner="dots") as status:
        yield lambda now: status.update(words(now))
