"""Decodes the line tables of code objects. Pure: bytes in, (start, end, line) out; damaged tables end early.

Offsets are bytes of bytecode. Formats: Objects/lnotab_notes.txt (3.8, 3.9; 3.10), Objects/locations.md (3.11 on).
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

END = 1 << 40  # end of the last range if the table does not give it


class LineRange(NamedTuple):
    start: int
    end: int
    line: int | None  # None: code without a line


def _signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


def lnotab_ranges(table: bytes, first_line: int) -> Iterator[LineRange]:
    """3.8 and 3.9: pairs of address and line increments."""
    start = address = 0
    line = first_line
    for position in range(0, len(table) - 1, 2):
        step, change = table[position], _signed(table[position + 1])
        if step:
            address += step
            if change == 0:
                continue
        if address > start:
            yield LineRange(start, address, line)
            start = address
        line += change
    yield LineRange(start, END, line)


def linetable_ranges(table: bytes, first_line: int) -> Iterator[LineRange]:
    """3.10: pairs of range length and line change; a change of -128 is a range without a line."""
    start = 0
    line = first_line
    for position in range(0, len(table) - 1, 2):
        length, change = table[position], _signed(table[position + 1])
        if change != -128:
            line += change
        if length:
            yield LineRange(start, start + length, None if change == -128 else line)
            start += length


def location_ranges(table: bytes, first_line: int) -> Iterator[LineRange]:
    """3.11 and later: each entry begins with a byte of at least 128, with the form in bits 3 to 6 and length - 1 (in
    2-byte units) in bits 0 to 2."""
    start, position = 0, 0
    line = first_line
    while position < len(table):
        head = table[position]
        position += 1
        form = head >> 3 & 15
        end = start + 2 * ((head & 7) + 1)
        if form in (13, 14):  # no columns, or long form: a signed varint of the line change comes first
            value = shift = 0
            while position < len(table) and shift < 60:
                byte = table[position]
                position += 1
                value |= (byte & 63) << shift
                shift += 6
                if not byte & 64:
                    break
            line += -(value >> 1) if value & 1 else value >> 1
        elif 10 <= form <= 12:
            line += form - 10
        yield LineRange(start, end, None if form == 15 else line)
        start = end
        while position < len(table) and not table[position] & 128:
            position += 1


def ranges(version: tuple[int, int], table: bytes, first_line: int) -> Iterator[LineRange]:
    if version >= (3, 11):
        return location_ranges(table, first_line)
    if version == (3, 10):
        return linetable_ranges(table, first_line)
    return lnotab_ranges(table, first_line)


def line_at(line_ranges: Iterable[LineRange], instruction: int, first_line: int) -> int:
    """The line of an instruction; for code without a line the last line before it, as in tracebacks."""
    line = first_line
    for piece in line_ranges:
        if piece.start > instruction:
            break
        if piece.line is not None:
            line = piece.line
        if instruction < piece.end:
            break
    return line
