"""File and line of an address, from DWARF, under a strict budget of time.

.debug_aranges chooses the compilation unit; only its line program is run (DWARF 5, 6.2; versions 2 to 5), once, into
arrays. A file without .debug_aranges has no lines here: finding the unit would mean reading all of .debug_info.
"""

import struct
import time
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from memforensics.symbols.elf import BadElf, ElfFile
from memforensics.symbols.framecode import Cursor
from memforensics.symbols.lineheader import LineProgram, read_program

if TYPE_CHECKING:
    from collections.abc import Iterator

    from elftools.dwarf.dwarfinfo import DWARFInfo

_MAX_ARANGES_BYTES = 64 * 1024 * 1024
_MAX_UNITS = 128
_CHECK_EVERY = 4096  # operations between two looks at the clock
_SECTIONS = ("info", "abbrev", "str", "line_str", "str_offsets", "addr")


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
    def spending(self) -> "Iterator[None]":
        self._since = self._clock()
        try:
            yield
        finally:
            self._left -= self._clock() - self._since
            self._since = None


class _OutOfTime(Exception):
    pass


class _Unit:
    """The line table of one compilation unit: rows by address."""

    def __init__(self, rows: list[tuple[int, int, int]], files: list[str]) -> None:
        rows.sort()
        self._addresses = array("Q", [address for address, _, _ in rows])
        self._rows = array("Q", [row for _, _, row in rows])
        self._files = files

    def find(self, vaddr: int) -> tuple[str, int] | None:
        index = bisect_right(self._addresses, vaddr) - 1
        row = self._rows[index] if index >= 0 else 0
        file, line = row >> 32, row & 0xFFFFFFFF
        return (self._files[file], line) if line and file < len(self._files) and self._files[file] else None


class LineReader:
    """Lines of one file, or of its separate debug file."""

    def __init__(self, elf: ElfFile) -> None:
        self._elf = elf
        self._dwarf: DWARFInfo | None = None
        self._carrier: ElfFile | None = None
        self._ranges: tuple[array[int], array[int], array[int]] | None = None
        self._units: OrderedDict[int, _Unit | None] = OrderedDict()

    def find(self, vaddr: int, budget: TimeBudget) -> tuple[str, int] | None:
        """(file, line). None: the file does not tell, tells it in a way that is not read here, or time is up."""
        if budget.spent:
            return None
        with budget.spending():
            try:
                offset = self._unit_at(vaddr)
                unit = self._unit(offset, budget) if offset is not None else None
            except (_OutOfTime, BadElf, struct.error):
                return None
        return unit.find(vaddr) if unit is not None else None

    # --- which unit

    def _unit_at(self, vaddr: int) -> int | None:
        if self._ranges is None:
            self._ranges = array("Q"), array("Q"), array("Q")  # stays so where reading fails: no second try
            self._carrier = _carrier(self._elf)
            if self._carrier is not None:
                self._ranges = _read_aranges(self._carrier)
        starts, ends, units = self._ranges
        index = bisect_right(starts, vaddr) - 1
        return units[index] if index >= 0 and vaddr < ends[index] else None

    # --- its lines

    def _unit(self, offset: int, budget: TimeBudget) -> _Unit | None:
        if offset in self._units:
            self._units.move_to_end(offset)
            return self._units[offset]
        unit = self._read_unit(offset, budget)
        self._units[offset] = unit
        if len(self._units) > _MAX_UNITS:
            self._units.popitem(last=False)
        return unit

    def _read_unit(self, offset: int, budget: TimeBudget) -> _Unit | None:
        try:
            attributes = self._open_dwarf().get_CU_at(offset).get_top_DIE().attributes
            place, folder = attributes["DW_AT_stmt_list"].value, attributes.get("DW_AT_comp_dir")
        except (BadElf, MemoryError):
            return None
        except Exception:  # noqa: BLE001  on damaged DWARF pyelftools raises whatever its parts raise
            return None
        assert self._carrier is not None
        try:
            program = read_program(self._carrier, place, getattr(folder, "value", b""))
        except (IndexError, ValueError):
            return None
        return _Unit(_run(program, budget), program.files) if program is not None else None

    def _open_dwarf(self) -> "DWARFInfo":
        if self._dwarf is None:
            from elftools.dwarf.dwarfinfo import DebugSectionDescriptor, DwarfConfig, DWARFInfo

            assert self._carrier is not None
            names = (
                "info", "aranges", "abbrev", "frame", "str", "loc", "ranges", "line", "pubtypes", "pubnames", "addr",
                "str_offsets", "line_str", "loclists", "rnglists", "sup", "types",
            )  # fmt: skip
            sections: dict[str, Any] = {f"debug_{name}_sec": None for name in names}
            sections.update(eh_frame_sec=None, gnu_debugaltlink_sec=None)
            for name in _SECTIONS:
                place = self._carrier.open_section(f".debug_{name}")
                if place is not None:
                    stream = cast(BinaryIO, self._carrier.section_stream(f".debug_{name}"))
                    sections[f"debug_{name}_sec"] = DebugSectionDescriptor(stream, name, None, place[2], 0)
            self._dwarf = DWARFInfo(config=DwarfConfig(True, "x64", 8), **sections)
        return self._dwarf


def _carrier(elf: ElfFile) -> ElfFile | None:
    """The file that has the lines: this one, or its debug file."""
    for candidate in (elf, elf.debug):
        if candidate is not None and candidate.open_section(".debug_line") and candidate.open_section(".debug_info"):
            return candidate
    return None


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


def _run(program: LineProgram, budget: TimeBudget) -> list[tuple[int, int, int]]:
    """Rows (address, order, file << 32 | line) of the line-number state machine; line 0: nothing from here on."""
    step, base, span = program.step, program.line_base, program.line_range
    opcode_base, code_bytes = program.opcode_base, program.code
    rows: list[tuple[int, int, int]] = []
    cursor = Cursor(code_bytes, 0)
    address, file, line, operations = 0, 1, 1, 0
    try:
        while cursor.at < len(code_bytes):
            operations += 1
            if operations % _CHECK_EVERY == 0 and budget.spent:
                raise _OutOfTime
            code = cursor.u8()
            if code >= opcode_base:
                advance, change = divmod(code - opcode_base, span)
                address += advance * step
                line += base + change
                rows.append((address, operations, file << 32 | (line & 0xFFFFFFFF)))
                continue
            match code:
                case 0:  # extended
                    extended = Cursor(cursor.block(), 0)
                    kind = extended.u8()
                    if kind == 1:  # end_sequence; sorts before another sequence that begins there
                        rows.append((address, 0, 0))
                        address, file, line = 0, 1, 1
                    elif kind == 2:  # set_address
                        address = extended.unsigned(8)
                case 1:  # copy
                    rows.append((address, operations, file << 32 | (line & 0xFFFFFFFF)))
                case 2:
                    address += cursor.uleb() * step
                case 3:
                    line += cursor.sleb()
                case 4:
                    file = cursor.uleb()
                case 8:  # const_add_pc
                    address += (255 - opcode_base) // span * step
                case 9:  # fixed_advance_pc
                    address += cursor.unsigned(2)
                case _:
                    for _ in range(program.operands[code - 1]):
                        cursor.uleb()
    except (IndexError, ValueError):
        pass  # cut short: the rows so far are good
    return [row for row in rows if row[0] < 1 << 64 and row[2] >> 32 < 1 << 24]
