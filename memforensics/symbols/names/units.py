"""Which unit of .debug_info has the code at an address: .debug_aranges tells it at once (gcc writes it); for what it
does not cover (clang, rustc) the roots of the units are read, one after the other, as far as the time goes."""

import struct
from array import array
from bisect import bisect_right, insort
from collections.abc import Iterator

from memforensics.symbols.elf.reader import ElfFile
from memforensics.symbols.names.dwarf import DAMAGED, Dwarf
from memforensics.symbols.names.timebudget import OutOfTime, TimeBudget

_MAX_ARANGES_BYTES = 64 * 1024 * 1024
_MAX_RANGES = 1 << 20
_CHECK_EVERY = 64  # units between two looks at the clock


class UnitIndex:
    """Of one file. Reading goes on where it stopped when time was up."""

    def __init__(self, elf: ElfFile, dwarf: Dwarf) -> None:
        self._dwarf = dwarf
        self._starts, self._ends, self._units = _read_aranges(elf)
        self._told = frozenset(self._units)
        self._found: list[tuple[int, int, int]] = []  # start, end, unit: by their roots
        self._rest: Iterator[tuple[int, int]] | None = dwarf.units(with_code=True)

    def at(self, vaddr: int, budget: TimeBudget) -> int | None:
        """The unit's offset in .debug_info. OutOfTime; DAMAGED."""
        index = bisect_right(self._starts, vaddr) - 1
        if index >= 0 and vaddr < self._ends[index]:
            return self._units[index]
        self._read_roots(budget)
        place = bisect_right(self._found, (vaddr, 2**64, 0)) - 1
        return self._found[place][2] if place >= 0 and vaddr < self._found[place][1] else None

    def _read_roots(self, budget: TimeBudget) -> None:
        rest, self._rest = self._rest, None  # stays so where reading fails: no second try
        if rest is None:
            return
        for count, (offset, _) in enumerate(rest):
            if offset not in self._told:
                self._read_root(offset)
            if len(self._found) > _MAX_RANGES:
                return
            if count % _CHECK_EVERY == 0 and budget.spent:
                self._rest = rest
                raise OutOfTime

    def _read_root(self, offset: int) -> None:
        try:
            unit = self._dwarf.head(offset)
            for low, high in unit.ranges(unit.root):
                insort(self._found, (low, high, offset))
        except DAMAGED:
            pass  # this one has no lines; the others still do


def _read_aranges(elf: ElfFile) -> "tuple[array[int], array[int], array[int]]":
    """Starts, ends and the units' offsets in .debug_info, by rising start (DWARF 5, 6.1.2)."""
    place = elf.open_section(".debug_aranges")
    found: list[tuple[int, int, int]] = []
    if place is not None:
        source, offset, size = place
        data = source.read(offset, min(size, _MAX_ARANGES_BYTES))
        at = 0
        while at + 16 <= len(data):
            length, version, unit, address_size, _ = struct.unpack_from("<IHIBB", data, at)
            end = at + 4 + length
            if length >= 0xFFFFFFF0 or end > len(data) or version != 2 or address_size != 8:
                break
            first = at + 16  # header of 12 bytes, then pairs at a multiple of their own 16
            for start, extent in struct.iter_unpack("<QQ", data[first : first + (end - first) // 16 * 16]):
                if start and extent:
                    found.append((start, start + extent, unit))
            at = end
    found.sort()
    return (
        array("Q", [f[0] for f in found]),
        array("Q", [min(f[1], 2**64 - 1) for f in found]),
        array("Q", [f[2] for f in found]),
    )
