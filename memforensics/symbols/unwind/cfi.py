"""The unwind rule for one pc, from .eh_frame. Only the FDE that covers the pc is parsed.

Formats: LSB Core 5.0, 10.6 (.eh_frame, .eh_frame_hdr) and DWARF 5, 6.4 (call frame instructions).
"""

import functools
import struct
from array import array
from bisect import bisect_right
from dataclasses import dataclass, field

from memforensics.symbols.elf.reader import BadElf, ElfFile
from memforensics.symbols.unwind.frame_instructions import Cie, Cursor, Fde, row_at, rule_of
from memforensics.symbols.unwind.machines import MACHINES
from memforensics.symbols.unwind.rule import Rule, Saved

__all__ = ["Cfi", "Rule", "Saved"]

_MAX_ENTRY_BYTES = 1 << 20
_MAX_SCANNED_BYTES = 64 * 1024 * 1024
_MAX_SCANNED_ENTRIES = 1 << 20
_MAX_CACHED = 1 << 16
_DAMAGED = (BadElf, struct.error, IndexError, KeyError, ValueError)


class Cfi:
    """The unwind table of one file."""

    def __init__(self, elf: ElfFile) -> None:
        self._elf = elf
        self.machine = MACHINES.get(elf.machine)
        self._rules: dict[int, Rule | None] = {}
        self._shared: dict[Rule, Rule] = {}
        self._cies: dict[int, Cie] = {}

    def rule(self, vaddr: int) -> Rule | None:
        """The rule at that address of the file (the pc of a leaf, otherwise the return address - 1). None if no CFI
        covers it or the table is damaged. Cached."""
        try:
            return self._rules[vaddr]
        except KeyError:
            pass
        try:
            fde = self._fde(vaddr)
            rule = rule_of(row_at(fde, vaddr), fde.cie, self.machine) if fde and self.machine else None
        except _DAMAGED:
            rule = None
        if len(self._rules) >= _MAX_CACHED:
            self._rules.clear()
        self._rules[vaddr] = rule = self._shared.setdefault(rule, rule) if rule is not None else None
        return rule

    def function_range(self, vaddr: int) -> tuple[int, int] | None:
        """[start, end) of the FDE that covers the address: a function's extent even in a stripped file."""
        try:
            fde = self._fde(vaddr)
        except _DAMAGED:
            return None
        return (fde.start, fde.start + fde.size) if fde is not None else None

    def is_signal_trampoline(self, vaddr: int) -> bool:
        """Whether the code at that address calls rt_sigreturn."""
        try:
            return self.machine is not None and self.machine.is_sigreturn_code(self._elf.read_at_vaddr(vaddr, 9))
        except BadElf:
            return False

    # --- finding the FDE

    def _fde(self, vaddr: int) -> Fde | None:
        if self.machine is None:
            return None
        found_at = self._search(vaddr) if self._table is not None else self._scanned_fdes.find(vaddr)
        if found_at is None:
            return None
        fde = self._parse_fde(found_at)
        return fde if fde is not None and fde.start <= vaddr < fde.start + fde.size else None

    @functools.cached_property
    def _table(self) -> tuple[int, int, int] | None:
        """vaddr of the .eh_frame_hdr, vaddr of its sorted table, number of pairs. None: no table to search."""
        if self._elf.eh_frame_hdr is None:
            return None
        base, size = self._elf.eh_frame_hdr
        try:
            header = Cursor(self._elf.read_at_vaddr(base, min(size, 32)), base)
            version, frame_encoding, count_encoding, table_encoding = (header.u8() for _ in range(4))
            header.pointer(frame_encoding, base)
            count = header.pointer(count_encoding, base)
        except _DAMAGED:
            return None
        if version != 1 or table_encoding != 0x3B or not count or header.at + 8 * count > size:
            return None
        return base, base + header.at, count

    def _search(self, vaddr: int) -> int | None:
        """Binary search of the pairs (start of function, FDE), both relative to the header."""
        assert self._table is not None
        base, pairs, count = self._table
        low, high, found = 0, count, None
        while low < high:
            middle = (low + high) // 2
            start, fde = struct.unpack("<ii", self._elf.read_at_vaddr(pairs + 8 * middle, 8))
            if base + start <= vaddr:
                low, found = middle + 1, base + fde
            else:
                high = middle
        return found

    @functools.cached_property
    def _scanned_fdes(self) -> "_Scanned":
        """The FDEs of all of .eh_frame, read once, for a file without a sorted table."""
        section = self._elf.section(".eh_frame")
        out = _Scanned()
        if section is None or not section.vaddr or section.type == 8:
            return out
        data = self._elf.read_at(section.offset, min(section.size, _MAX_SCANNED_BYTES))
        found: list[tuple[int, int]] = []
        at = 0
        while at + 8 <= len(data) and len(found) < _MAX_SCANNED_ENTRIES:
            length, cie = struct.unpack_from("<II", data, at)
            if length in (0, 0xFFFFFFFF):  # the terminator, or a 64-bit entry, which no compiler writes
                break
            if cie:
                try:
                    fde = self._parse_fde(section.vaddr + at)
                except _DAMAGED:
                    fde = None
                if fde is not None:
                    found.append((fde.start, section.vaddr + at))
            at += 4 + length
        found.sort()
        out.starts.extend(start for start, _ in found)
        out.fdes.extend(fde_vaddr for _, fde_vaddr in found)
        return out

    # --- parsing

    def _entry(self, vaddr: int) -> tuple[Cursor, int] | None:
        """The entry at that address: a cursor after its CIE pointer, and its CIE's address (0: the entry is a CIE)."""
        length, cie_pointer = struct.unpack("<II", self._elf.read_at_vaddr(vaddr, 8))
        if not 4 <= length <= _MAX_ENTRY_BYTES:
            return None
        cursor = Cursor(self._elf.read_at_vaddr(vaddr + 8, length - 4), vaddr + 8)
        return cursor, vaddr + 4 - cie_pointer if cie_pointer else 0

    def _parse_fde(self, vaddr: int) -> Fde | None:
        entry = self._entry(vaddr)
        if entry is None or not entry[1]:
            return None
        cursor, cie_at = entry
        cie = self._cies.get(cie_at)
        if cie is None:
            cie = self._cies[cie_at] = self._parse_cie(cie_at)
        start = cursor.pointer(cie.fde_encoding)
        size = cursor.pointer(cie.fde_encoding & 0x0F)
        if start is None or size is None:
            return None
        if cie.has_augmentation:
            cursor.block()
        return Fde(cie, start, size, cursor.data[cursor.at :], cursor.vaddr + cursor.at)

    def _parse_cie(self, vaddr: int) -> Cie:
        entry = self._entry(vaddr)
        if entry is None or entry[1]:
            raise ValueError("no CIE there")
        cursor, _ = entry
        version = cursor.u8()
        end = cursor.data.index(b"\0", cursor.at)
        augmentation = cursor.data[cursor.at : end].decode("latin-1")
        cursor.at = end + 1
        if version not in (1, 3) or augmentation[:1] not in ("", "z"):
            raise ValueError("unsupported CIE version or augmentation")
        code_align, data_align = cursor.uleb(), cursor.sleb()
        ra_register = cursor.u8() if version == 1 else cursor.uleb()
        encoding, signal_frame = 0, False
        if augmentation:
            size = cursor.uleb()
            program_at = cursor.at + size
            for letter in augmentation[1:]:
                if letter == "R":
                    encoding = cursor.u8()
                elif letter == "P":
                    cursor.pointer(cursor.u8() & 0x7F)
                elif letter == "L":
                    cursor.u8()
                elif letter == "S":
                    signal_frame = True
                else:
                    break  # what follows is skipped by its size
            cursor.at = program_at
        return Cie(
            code_align, data_align, ra_register, encoding, bool(augmentation), signal_frame, cursor.data[cursor.at :]
        )


@dataclass(slots=True)
class _Scanned:
    starts: "array[int]" = field(default_factory=lambda: array("Q"))
    fdes: "array[int]" = field(default_factory=lambda: array("Q"))

    def find(self, vaddr: int) -> int | None:
        index = bisect_right(self.starts, vaddr) - 1
        return self.fdes[index] if index >= 0 else None
