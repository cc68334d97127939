"""A line of readings that may go on for weeks and stays small: the newest whole, the older ever thinner.

Of the newest `newest` (as many as `most`, unless told) every reading is kept; of what is older one in 4, of what is
older than 4 times that one in 16, and so on: `most` readings a level, one level more each time the line gets four times
as long. At one a second, 96 a level and 192 of the newest, that is three minutes whole, 6 minutes at 4 s, 26 minutes at
16 s, ...: 800 readings for a month.

Which one of four stays is drawn: taking every fourth would show a saw-tooth of nearly that period as a slow rise.
"""

import random
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

ONE_OF = 4


class TieredSamples(Generic[T]):
    """A bounded line. `add` gives what had to go. The very first reading stays for good: growth counts from it."""

    def __init__(self, most: int, *, newest: int | None = None, seed: int = 0) -> None:
        if most < 2 * ONE_OF:
            raise ValueError(f"a thinned line keeps at least {2 * ONE_OF} readings a level")
        self._most = most
        self._newest = max(newest or most, most)
        self._first: list[T] = []
        self._levels: list[deque[T]] = [deque()]  # newest first
        self._random = random.Random(seed)

    def add(self, reading: T) -> list[T]:
        """Appends; what is no longer kept."""
        if not self._first:
            self._first.append(reading)
            return []
        self._levels[0].append(reading)
        gone: list[T] = []
        for number, level in enumerate(self._levels):
            if len(level) <= (self._most if number else self._newest):
                break
            some = [level.popleft() for _ in range(ONE_OF)]
            stays = some.pop(self._random.randrange(ONE_OF))
            gone += some
            if number + 1 == len(self._levels):
                self._levels.append(deque([stays]))
                break
            self._levels[number + 1].append(stays)
        return gone

    def __iter__(self) -> Iterator[T]:
        """In the order they came."""
        yield from self._first
        for level in reversed(self._levels):
            yield from level

    def __len__(self) -> int:
        return len(self._first) + sum(map(len, self._levels))

    @property
    def first(self) -> T:
        return self._first[0]

    @property
    def last(self) -> T:
        return self._levels[0][-1] if self._levels[0] else self._first[0]
