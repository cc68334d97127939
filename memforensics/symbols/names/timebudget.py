"""How long reading DWARF may take, in all."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class OutOfTime(Exception):
    """The budget ran out in the middle."""


class TimeBudget:
    """Seconds to spend, on a clock that only runs inside `spending`."""

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._left, self._clock = seconds, clock
        self._since: float | None = None

    @property
    def spent(self) -> bool:
        running = self._clock() - self._since if self._since is not None else 0.0
        return running >= self._left

    @contextmanager
    def spending(self) -> Iterator[None]:
        self._since = self._clock()
        try:
            yield
        finally:
            self._left -= self._clock() - self._since
            self._since = None
