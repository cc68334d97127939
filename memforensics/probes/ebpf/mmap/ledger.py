"""Which site owns which addresses, by intervals: for mappings that are not removed whole. Pure; no OS, no clock."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

Span = tuple[int, int]  # [start, end)


@dataclass(slots=True, eq=False)
class Block:
    """One mapping as it was made. Removals may leave several pieces of it. `left`: bytes that are still mapped.
    `weight`: how many mappings it counts for; 0: its stack was not walked."""

    site: int
    born_ns: int
    left: int = 0
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Piece:
    """[start, end) of one block."""

    start: int
    end: int
    block: Block = field(compare=False)

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Freed:
    """What a removal took from one site, by weight. `blocks`: those of which nothing is left."""

    site: int
    bytes: int
    blocks: int


class Ledger:
    """Disjoint pieces of one address space, by rising start."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._pieces: list[Piece] = []

    def __iter__(self) -> Iterator[Piece]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    def add(self, start: int, end: int, block: Block) -> None:
        """Adds a piece of a block. Call `remove` first: nothing may be there, and what was there must be counted."""
        if start < end:
            block.left += end - start
            self._insert(Piece(start, end, block))

    def overlapping(self, start: int, end: int) -> list[Piece]:
        low, high = self._between(start, end)
        return self._pieces[low:high]

    def remove(
        self, start: int, end: int, *, born_before_ns: int | None = None, only: Block | None = None
    ) -> list[Piece]:
        """Removes [start, end) and returns the pieces. `born_before_ns`: of older blocks only. `only`: of that
        block."""
        low, high = self._between(start, end)
        taken: list[Piece] = []
        kept: list[Piece] = []
        for piece in self._pieces[low:high]:
            young = born_before_ns is not None and piece.block.born_ns >= born_before_ns
            if young or (only is not None and piece.block is not only):
                kept.append(piece)
                continue
            removed = Piece(max(piece.start, start), min(piece.end, end), piece.block)
            removed.block.left -= removed.size
            taken.append(removed)
            if piece.start < removed.start:
                kept.append(replace(piece, end=removed.start))
            if removed.end < piece.end:
                kept.append(replace(piece, start=removed.end))
        if taken:
            self._pieces[low:high] = kept
            self._starts[low:high] = [piece.start for piece in kept]
        return taken

    def restore(self, pieces: list[Piece]) -> None:
        """Undoes a removal: the call failed."""
        for piece in pieces:
            piece.block.left += piece.size
            self._insert(piece)

    def _between(self, start: int, end: int) -> tuple[int, int]:
        """Indices of the pieces that overlap."""
        low = bisect_right(self._starts, start) - 1
        low += low < 0 or self._pieces[low].end <= start
        return low, max(low, bisect_left(self._starts, end)) if start < end else low

    def _insert(self, piece: Piece) -> None:
        at = bisect_left(self._starts, piece.start)
        self._starts.insert(at, piece.start)
        self._pieces.insert(at, piece)


def freed_by_site(pieces: list[Piece]) -> list[Freed]:
    """What a removal took from each site, by the pieces that it just took. A block counts when its last byte is
    gone."""
    sums: dict[int, list[int]] = {}
    gone: set[int] = set()
    for piece in pieces:
        entry = sums.setdefault(piece.block.site, [0, 0])
        entry[0] += piece.size * piece.block.weight
        if piece.block.left == 0 and id(piece.block) not in gone:
            gone.add(id(piece.block))
            entry[1] += piece.block.weight
    return [Freed(site, size, blocks) for site, (size, blocks) in sums.items()]


def union(spans: list[Span]) -> list[Span]:
    """Sorts the spans and joins those that touch or overlap."""
    out: list[Span] = []
    for low, high in sorted(spans):
        if out and low <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return out


def subtract(spans: list[Span], holes: list[Span]) -> list[Span]:
    """The parts of the spans outside the holes. Both rise and are disjoint."""
    out: list[Span] = []
    at = 0
    for low, high in spans:
        while at < len(holes) and holes[at][1] <= low:
            at += 1
        inside = at
        while inside < len(holes) and holes[inside][0] < high:
            if low < holes[inside][0]:
                out.append((low, holes[inside][0]))
            low = max(low, holes[inside][1])
            inside += 1
        if low < high:
            out.append((low, high))
    return out
