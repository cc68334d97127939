"""Births by time slot, and what is left of each slot's births. Pure; no OS, no clock.

The kernel counts births and deaths by site, without their times, because it closes most mappings by itself. So the
births of a slot are the difference of two readings of a site's counter. What is left of them is known exactly, by the
birth times of the outstanding blocks. A birth near a reading may be counted on the other side of it. `cohorts` moves
such births to the neighbouring slot, and the sums stay those of the counters.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from memforensics.case.model import Cohort

MAX_SLOTS = 16
MIN_SLOT_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class CounterReading:
    """One reading of a counter of births."""

    t_ns: int
    bytes: int
    count: int


@dataclass(frozen=True, slots=True)
class OutstandingBlock:
    """An outstanding block; bytes and count by weight."""

    born_ns: int
    bytes: int
    count: int


@dataclass(slots=True)
class Slots:
    """The slots of a trace. When there would be more than MAX_SLOTS, pairs are merged. All slots except the last have
    the same width, to the time between two readings."""

    began_ns: int
    bounds: list[int] = field(default_factory=list)  # the ends of all slots except the last
    width_ns: int = MIN_SLOT_NS

    def due(self, now_ns: int) -> bool:
        return now_ns - (self.bounds[-1] if self.bounds else self.began_ns) >= self.width_ns

    def close(self, now_ns: int) -> None:
        """A slot ends now, and the next one begins."""
        self.bounds.append(now_ns)
        if len(self.bounds) >= MAX_SLOTS:
            del self.bounds[::2]
            self.width_ns *= 2

    def kept(self, readings: Sequence[CounterReading]) -> list[CounterReading]:
        """The readings that `cohorts` needs: the last one before the end of each slot. They rise by time."""
        times = [reading.t_ns for reading in readings]
        found = {bisect_right(times, bound) - 1 for bound in self.bounds}
        return [readings[at] for at in sorted(found) if at >= 0]


def cohorts(
    slots: Slots,
    ended_ns: int,
    readings: Sequence[CounterReading],
    born: CounterReading,
    left: Sequence[OutstandingBlock],
) -> tuple[Cohort, ...]:
    """One cohort for each slot. `readings`: of the counter of births, by rising time, each at the end of a slot (slots
    without births need none). `born`: the counter at the end. `left`: the outstanding blocks."""
    bounds = [bound for bound in slots.bounds if bound < ended_ns]
    edges = [slots.began_ns, *bounds, max(ended_ns, slots.began_ns + 1)]
    times = [reading.t_ns for reading in readings]
    before = [bisect_right(times, bound) for bound in bounds]  # the number of readings
    born_bytes = _slot_births([readings[n - 1].bytes if n else 0 for n in before], born.bytes)
    born_count = _slot_births([readings[n - 1].count if n else 0 for n in before], born.count)
    left_bytes, left_count = [0] * len(born_bytes), [0] * len(born_bytes)
    for block in left:
        slot = min(max(bisect_right(edges, block.born_ns) - 1, 0), len(left_bytes) - 1)
        left_bytes[slot] += block.bytes
        left_count[slot] += block.count
    _cover(born_bytes, left_bytes)
    _cover(born_count, left_count)
    return tuple(
        Cohort(
            born_from_ns=edges[i],
            born_to_ns=edges[i + 1],
            born_bytes=born_bytes[i],
            born_count=born_count[i],
            left_bytes=left_bytes[i],
            left_count=left_count[i],
        )
        for i in range(len(born_bytes))
    )


def _slot_births(cumulative: list[int], total: int) -> list[int]:
    """Differences that are never below 0 and sum up to the total."""
    out, before = [], 0
    for value in [*cumulative, total]:
        now = min(max(value, before), total)
        out.append(now - before)
        before = now
    return out


def _cover(born: list[int], left: list[int]) -> None:
    """Moves births to slots that have fewer births than blocks left, from the nearest slots that have more. The
    counters are the reference: blocks beyond all births are dropped."""
    spare = sum(born)
    for i in range(len(left)):
        left[i] = min(left[i], spare)
        spare -= left[i]
    for i in range(len(born)):
        if born[i] >= left[i]:
            continue
        for j in sorted(range(len(born)), key=lambda j: (abs(j - i), -j)):
            moved = min(left[i] - born[i], max(0, born[j] - left[j]))
            born[i] += moved
            born[j] -= moved
