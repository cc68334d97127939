"""/proc/PID/maps in bulk: a process with many mappings has tens of thousands of lines, nearly all of one form.

The columns of those are read at once by numpy; every other line goes through the parser of `parse`. What comes out is
what `parse_maps` gives, in a third of its time (60,000 lines: 15 ms).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import compress, repeat
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from memforensics.case.model import Mapping
from memforensics.target.parse import parse_maps

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Octets = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]

# A line of anonymous memory: addresses of twelve digits, permissions, and no file (parse.py has the kernel's form).
_DIGITS, _PERMS, _TAIL = 12, slice(26, 30), b" 00000000 00:00 0 "
_LENGTH = 30 + len(_TAIL)
_TAIL_WORDS = [(at, int.from_bytes(_TAIL[at : at + 8], "little")) for at in (0, 8, len(_TAIL) - 8)]
_ALLOWED = (b"r-", b"w-", b"x-", b"ps")
_TOP = (1 << 63) - 1


@dataclass(slots=True)
class Columns:
    """The mappings of one maps text, a list a field, ascending."""

    start: list[int]
    end: list[int]
    perms: list[str]
    offset: list[int]
    device: list[str]
    inode: list[int]
    path: list[str]
    unparsed_lines: int = 0

    def __len__(self) -> int:
        return len(self.start)

    def mappings(self, **counted: Sequence[int] | Sequence[str]) -> tuple[Mapping, ...]:
        """With what a reader counted: columns of further fields of Mapping."""
        columns: dict[str, Iterable[Any]] = {field.name: getattr(self, field.name) for field in fields(self)}
        columns.update(counted)
        unread = repeat(None)
        return tuple(map(Mapping, *(columns.get(name, unread) for name in Mapping.__struct_fields__)))


def columns_of(maps: bytes) -> Columns:
    """The whole text of /proc/PID/maps."""
    text = np.frombuffer(maps, np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    if maps and not maps.endswith(b"\n"):
        ends = np.append(ends, len(maps))
    firsts = np.concatenate(([0], ends[:-1] + 1)) if len(ends) else ends
    return columns_at(maps, text, firsts, ends)


def columns_at(maps: bytes, text: Octets, firsts: Ints, ends: Ints) -> Columns:
    """The lines of a text that begin and end there; `text`: the same as `maps`."""
    plain = ends - firsts == _LENGTH
    rows = gathered(text, firsts[plain], _LENGTH)
    start, end, is_plain = _addresses(rows)
    is_plain &= _is_plain(rows)
    if not is_plain.all():
        rows, start, end = rows[is_plain], start[is_plain], end[is_plain]
        plain[plain] = is_plain
    columns = Columns(
        start=_spread(plain, start),
        end=_spread(plain, end),
        perms=_named(_spread(plain, _words(rows, _PERMS.start, "<u4"))),
        offset=[0] * len(ends),
        device=["00:00"] * len(ends),
        inode=[0] * len(ends),
        path=[""] * len(ends),
    )
    _others(columns, maps, firsts, ends, np.flatnonzero(~plain).tolist())
    return columns


def _is_plain(rows: Octets) -> Bools:
    """Whether each is of the form, its digits apart."""
    found: Bools = np.logical_and.reduce([_words(rows, 30 + at) == word for at, word in _TAIL_WORDS])
    found &= (rows[:, _DIGITS] == ord("-")) & (rows[:, 2 * _DIGITS + 1] == ord(" "))
    for place, (yes, no) in enumerate(_ALLOWED, _PERMS.start):
        found &= (rows[:, place] == yes) | (rows[:, place] == no)
    return found


def gathered(text: Octets, places: Ints, length: int) -> Octets:
    """So many octets from each place on, a row each. Every place has as many."""
    if not len(places):
        return np.empty((0, length), np.uint8)
    everywhere: npt.NDArray[Any] = np.ndarray((len(text) - length + 1,), f"V{length}", text, 0, (1,))
    return everywhere[places].view(np.uint8).reshape(-1, length)


def _words(rows: Octets, place: int, kind: str = "<u8") -> "npt.NDArray[Any]":
    """Of each row the octets from that place on, as a number."""
    if not len(rows):
        return np.empty(0, kind)
    words: npt.NDArray[Any] = np.ndarray((len(rows),), kind, rows, place, (_LENGTH,))
    return words


def _addresses(rows: Octets) -> tuple[Ints, Ints, Bools]:
    """Start, end, and whether both are hexadecimal numbers."""
    words = np.empty((4, len(rows)), np.uint64)
    for word, place in zip(words, (0, _DIGITS - 8, _DIGITS + 1, 2 * _DIGITS - 7), strict=True):
        word[:] = _words(rows, place)
    numbers, good = _hexadecimal(words)
    addresses = numbers[::2] << 16 | numbers[1::2] & 0xFFFF  # eight digits, and the last four
    both: Bools = np.logical_and.reduce(good)
    return addresses[0], addresses[1], both


def _hexadecimal(words: Words) -> tuple[Ints, Bools]:
    """Eight characters each as a number, and whether they are such: all of a word's digits in one operation, then
    pairs and fours of them put together."""
    digits = (words & 0x0F0F0F0F0F0F0F0F) + (words >> 6 & 0x0101010101010101) * 9
    letters = digits + 0x0606060606060606 >> 4 & 0x0101010101010101
    good: Bools = (digits + letters * 0x27 + 0x3030303030303030 == words) & (digits & 0x1010101010101010 == 0)
    twos = (digits << 4 | digits >> 8) & 0x00FF00FF00FF00FF
    fours = (twos << 8 | twos >> 16) & 0x0000FFFF0000FFFF
    return ((fours << 16 | fours >> 32) & 0xFFFFFFFF).astype(np.int64), good


def _spread(plain: Bools, values: "Ints | npt.NDArray[np.uint32]") -> list[int]:
    """The values at their places among all lines, 0 elsewhere."""
    out = values
    if len(values) < len(plain):
        out = np.zeros(len(plain), values.dtype)
        out[plain] = values
    return cast(list[int], out.tolist())


def _named(codes: Sequence[int]) -> list[str]:
    """Permissions, one string for all that are alike."""
    names = {code: code.to_bytes(4, "little").decode() for code in set(codes)}
    return list(map(names.__getitem__, codes))


def _others(columns: Columns, maps: bytes, firsts: Ints, ends: Ints, places: Sequence[int]) -> None:
    """Reads the lines that are not plain, and drops those of no known form."""
    good = np.ones(len(ends), bool)
    for place in places:
        line = maps[firsts[place] : ends[place]].decode("utf-8", "surrogateescape")
        found = parse_maps(line).mappings
        if not found:
            good[place] = False
            continue
        mapping = found[0]
        columns.start[place], columns.end[place] = mapping.start, mapping.end
        columns.perms[place], columns.path[place] = mapping.perms, mapping.path
        columns.offset[place], columns.device[place], columns.inode[place] = (
            mapping.offset,
            mapping.device,
            mapping.inode,
        )
    if not good.all():
        columns.unparsed_lines = int(len(good) - good.sum())
        for name in ("start", "end", "perms", "offset", "device", "inode", "path"):
            setattr(columns, name, list(compress(getattr(columns, name), good)))
