"""How far a run is, for a screen."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """`growth_bytes`: growth so far of the tree's anonymous, shared and swapped memory, if known."""

    phase: str
    seconds_left: float
    growth_bytes: int | None = None


OnProgress = Callable[[Progress], None]
