"""A series of readings that stays small for weeks: the newest are all kept, older ones ever more sparsely.

The newest tier keeps every one of its `newest` readings (default: `per_tier`). The next tier keeps one reading in 4 of
what is older, the one after it one in 16, and so on: `per_tier` readings a tier, and one more tier each time the series
gets four times as long. At one reading a second, 96 per tier and 192 in the newest, that is three minutes in full,
6 minutes at 4 s, 26 minutes at 16 s, ...: 800 readings for a month.

Which one of four is kept is random: keeping every fourth would show a saw-tooth of nearly that period as a slow rise.
"""

import random
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

ONE_OF = 4
LEAST_PER_TIER = 2 * ONE_OF


class TieredSamples(Generic[T]):
    """A bounded series. The first reading is never dropped: growth counts from it."""

    def __init__(self, per_tier: int, *, newest: int | None = None, seed: int = 0) -> None:
        if per_tier < LEAST_PER_TIER:
            raise ValueError(f"a tier keeps at least {LEAST_PER_TIER} readings")
        self._per_tier = per_tier
        self._newest = max(newest or per_tier, per_tier)
        self._first: list[T] = []
        self._tiers: list[deque[T]] = [deque()]  # newest first
        self._random = random.Random(seed)

    def add(self, reading: T) -> list[T]:
        """Appends a reading; returns the readings that were dropped for it."""
        if not self._first:
            self._first.append(reading)
            return []
        self._tiers[0].append(reading)
        dropped: list[T] = []
        for number, tier in enumerate(self._tiers):
            if len(tier) <= (self._per_tier if number else self._newest):
                break
            oldest = [tier.popleft() for _ in range(ONE_OF)]
            kept = oldest.pop(self._random.randrange(ONE_OF))
            dropped += oldest
            if number + 1 == len(self._tiers):
                self._tiers.append(deque([kept]))
                break
            self._tiers[number + 1].append(kept)
        return dropped

    def __iter__(self) -> Iterator[T]:
        """Oldest first."""
        yield from self._first
        for tier in reversed(self._tiers):
            yield from tier

    def __len__(self) -> int:
        return len(self._first) + sum(map(len, self._tiers))

    @property
    def first(self) -> T:
        return self._first[0]

    @property
    def last(self) -> T:
        return self._tiers[0][-1] if self._tiers[0] else self._first[0]
