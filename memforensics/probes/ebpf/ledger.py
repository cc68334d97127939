"""Which site owns which addresses, by intervals: for what is not mapped and unmapped whole. Pure; no OS, no clock."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace


@dataclass(slots=True)
class Block:
    """One mapping as it was made; its pieces may be several after cuts. `left`: bytes that still stand."""

    site: int
    born_ns: int
    left: int


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
    """What a removal took from one site: bytes, and blocks of which nothing is left."""

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

    def add(self, start: int, end: int, site: int, born_ns: int) -> None:
        """A new block. Nothing may stand there: `remove` first (what stood there is somebody's loss to count)."""
        if start < end:
            self._insert(Piece(start, end, Block(site, born_ns, end - start)))

    def remove(self, start: int, end: int, *, born_before_ns: int | None = None) -> list[Piece]:
        """Takes away what stands in [start, end); the pieces that were taken. Older blocks only, if asked."""
        low = bisect_right(self._starts, start) - 1
        low += low < 0 or self._pieces[low].end <= start
        high = bisect_left(self._starts, end)
        if low >= high or start >= end:
            return []
        taken: list[Piece] = []
        kept: list[Piece] = []
        for piece in self._pieces[low:high]:
            if born_before_ns is not None and piece.block.born_ns >= born_before_ns:
                kept.append(piece)
                continue
            cut = Piece(max(piece.start, start), min(piece.end, end), piece.block)
            cut.block.left -= cut.size
            taken.append(cut)
            if piece.start < cut.start:
                kept.append(replace(piece, end=cut.start))
            if cut.end < piece.end:
                kept.append(replace(piece, start=cut.end))
        self._pieces[low:high] = kept
        self._starts[low:high] = [piece.start for piece in kept]
        return taken

    def restore(self, pieces: list[Piece]) -> None:
        """Undoes a removal: the call failed."""
        for piece in pieces:
            piece.block.left += piece.size
            self._insert(piece)

    def _insert(self, piece: Piece) -> None:
        at = bisect_left(self._starts, piece.start)
        self._starts.insert(at, piece.start)
        self._pieces.insert(at, piece)


def freed_by_site(pieces: list[Piece]) -> list[Freed]:
    """What a removal (its pieces, just taken) means for each site. A block counts where its last byte went."""
    sums: dict[int, list[int]] = {}
    gone: set[int] = set()
    for piece in pieces:
        entry = sums.setdefault(piece.block.site, [0, 0])
        entry[0] += piece.size
        if piece.block.left == 0 and id(piece.block) not in gone:
            gone.add(id(piece.block))
            entry[1] += 1
    return [Freed(site, size, blocks) for site, (size, blocks) in sums.items()]
