"""File and line of an address, and what is inlined there, from DWARF, under a strict budget of time.

Of the unit that has the address, only the line program is run (DWARF 5, 6.2; versions 2 to 5), once, into arrays; its
entries are looked at when inlined calls are asked for.
"""

import contextlib
from array import array
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass

from memforensics.symbols.elf.reader import ElfFile
from memforensics.symbols.names.dwarf import COMP_DIR, DAMAGED, STMT_LIST, Dwarf
from memforensics.symbols.names.inlines import Functions, inlined_at
from memforensics.symbols.names.lineheader import LineProgram, read_program
from memforensics.symbols.names.timebudget import OutOfTime, TimeBudget
from memforensics.symbols.names.units import UnitIndex
from memforensics.symbols.unwind.frame_instructions import Cursor

__all__ = ["Call", "LineReader", "TimeBudget"]

_MAX_UNITS = 128
_CHECK_EVERY = 4096  # operations between two looks at the clock


class _Unit:
    """The line table of one compilation unit, rows by address; its functions, when they are asked for."""

    def __init__(self, dwarf: Dwarf, offset: int, files: list[str], rows: list[tuple[int, int, int]]) -> None:
        self._dwarf, self._offset = dwarf, offset
        rows.sort()
        self._addresses = array("Q", [address for address, _, _ in rows])
        self._rows = array("Q", [row for _, _, row in rows])
        self._files = files
        self._functions: Functions | None = None
        self._unreadable = False

    def find(self, vaddr: int) -> tuple[str, int] | None:
        index = bisect_right(self._addresses, vaddr) - 1
        row = self._rows[index] if index >= 0 else 0
        file, line = self._file(row >> 32), row & 0xFFFFFFFF
        return (file, line) if line and file else None

    def _file(self, number: int | None) -> str | None:
        return (self._files[number] or None) if number is not None and 0 <= number < len(self._files) else None

    def inlined(self, vaddr: int, budget: TimeBudget) -> "tuple[Call, ...]":
        if self._unreadable:
            return ()
        unit = self._dwarf.unit(self._offset)
        if self._functions is None:
            self._unreadable = True  # stays so where reading fails: no second try
            self._functions = Functions(unit, budget)
            self._unreadable = False
        function = self._functions.at(vaddr)
        calls = inlined_at(unit, function, vaddr, budget) if function is not None else ()
        return tuple(Call(call.function, self._file(call.file), call.line) for call in calls)


@dataclass(frozen=True, slots=True)
class Call:
    """Where a function was called that is inlined. None: not told."""

    function: str | None  # the inlined one; mangled where the file has it so
    file: str | None
    line: int | None


class LineReader:
    """Lines and inlined calls of one file, or of its separate debug file."""

    def __init__(self, elf: ElfFile) -> None:
        self._elf = elf
        self._index: UnitIndex | None = None
        self._opened: tuple[ElfFile, Dwarf] | None = None
        self._tried = False
        self._units: OrderedDict[int, _Unit | None] = OrderedDict()

    @property
    def has_any(self) -> bool:
        """Whether there is DWARF at all."""
        with contextlib.suppress(*DAMAGED):
            self._open()
        return self._opened is not None

    def find(self, vaddr: int, budget: TimeBudget) -> tuple[str, int] | None:
        """(file, line). None: the file does not tell, tells it in a way that is not read here, or time is up."""
        if budget.spent:
            return None
        with budget.spending():
            try:
                unit = self._unit_at(vaddr, budget)
            except (OutOfTime, *DAMAGED):
                return None
        return unit.find(vaddr) if unit is not None else None

    def inlined(self, vaddr: int, budget: TimeBudget) -> tuple[Call, ...]:
        """The calls that are inlined there, innermost first. Empty: none, or as above."""
        if budget.spent:
            return ()
        with budget.spending():
            try:
                unit = self._unit_at(vaddr, budget)
                return unit.inlined(vaddr, budget) if unit is not None else ()
            except (OutOfTime, *DAMAGED):
                return ()

    def _open(self) -> None:
        if not self._tried:
            self._tried = True  # stays so where reading fails: no second try
            self._opened = _open(self._elf)
            self._index = UnitIndex(*self._opened) if self._opened is not None else None

    def _unit_at(self, vaddr: int, budget: TimeBudget) -> "_Unit | None":
        self._open()
        if self._opened is None or self._index is None:
            return None
        offset = self._index.at(vaddr, budget)
        if offset is None:
            return None
        if offset in self._units:
            self._units.move_to_end(offset)
            return self._units[offset]
        self._units[offset] = None  # where reading fails
        unit = self._units[offset] = _read_unit(*self._opened, offset, budget)
        if len(self._units) > _MAX_UNITS:
            self._units.popitem(last=False)
        return unit


def _open(elf: ElfFile) -> tuple[ElfFile, Dwarf] | None:
    """The file that has the lines: this one, or its debug file."""
    for candidate in (elf, elf.debug):
        if candidate is not None and candidate.open_section(".debug_line") and candidate.open_section(".debug_info"):
            return candidate, Dwarf(candidate)
    return None


def _read_unit(elf: ElfFile, dwarf: Dwarf, offset: int, budget: TimeBudget) -> "_Unit | None":
    head = dwarf.head(offset)
    place = head.number(head.root, STMT_LIST)
    if place is None:
        return None
    program = read_program(elf, place, head.text(head.root, COMP_DIR) or b"")
    return _Unit(dwarf, offset, program.files, _run(program, budget)) if program is not None else None


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
                raise OutOfTime
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
