"""What readers of a runtime's structures need of the one who holds the target's memory."""

from typing import Protocol

Run = tuple[int, int]


class Reading(Protocol):
    """Reads what is present, and touches nothing else: to read an untouched page would map it into the target."""

    def read(self, address: int, size: int) -> bytes | None:
        """Those bytes; None where a page of them is not present, or not mapped."""
        ...

    def present(self, start: int, end: int) -> list[Run]:
        """Runs of present pages of a range, ascending."""
        ...


def joined(runs: list[Run], reach: int = 0) -> list[Run]:
    """Runs, ascending, those that touch (or lie within `reach` of one another) as one."""
    out: list[Run] = []
    for start, end in sorted(runs):
        if out and start <= out[-1][1] + reach:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out
