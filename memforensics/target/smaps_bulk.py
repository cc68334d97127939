"""/proc/PID/smaps in bulk: 60,000 mappings are 43 MB of text, read in blocks that stay in the CPU's cache.

A kernel prints the same keys in the same order for every mapping, each on a line of the same length, so the place of a
number in one mapping's lines is its place in all. A block that is of another form (a figure of 100 GiB is one digit
longer) is read line by line: what comes out is what `parse_smaps` gives, at a fifth of the kernel's own cost.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from memforensics.case.model import Mapping
from memforensics.target.columns import Ints, Octets, columns_at
from memforensics.target.smaps import FIELDS, ParsedSmaps, parse_smaps
from memforensics.units import KIB

BLOCK = 1 << 20
_LAST = b"VmFlags:"  # key of the last line of a mapping since Linux 3.8
_KEY, _DIGITS, _UNIT = 16, 8, b" kB"  # "Rss:", padded; seq_put_decimal_ull_width(m, str, value, 8): may be wider
_LENGTH = _KEY + _DIGITS + len(_UNIT)


def read_smaps(readinto: Callable[[memoryview], int | None], begun: bytes = b"") -> ParsedSmaps:
    """The whole of a stream (`readinto` of an unbuffered file), of which `begun`, less than a block, was read."""
    mappings: list[Mapping] = []
    unparsed = 0
    for block in _blocks(readinto, begun):
        found = parse_block(block)
        mappings += found.mappings
        unparsed += found.unparsed_lines
    return ParsedSmaps(tuple(mappings), unparsed)


def _blocks(readinto: Callable[[memoryview], int | None], begun: bytes) -> Iterator[bytes]:
    """The stream in parts of whole mappings. The kernel gives one page of text a call, or one mapping's if longer."""
    buffer = memoryview(bytearray(2 * BLOCK))
    filled = len(begun)
    buffer[:filled] = begun
    while True:
        count = readinto(buffer[filled:]) or 0
        filled += count
        if filled < BLOCK and count:
            continue
        block = bytes(buffer[:filled])
        last = block.rfind(b"\n" + _LAST, 0, block.rfind(b"\n"))
        if not count or last < 0:  # the end; or an old kernel, whose mappings have no last line
            yield block + _rest(readinto, buffer)
            return
        end = block.index(b"\n", last + 1) + 1
        yield block[:end]
        filled -= end
        buffer[:filled] = block[end:]


def _rest(readinto: Callable[[memoryview], int | None], room: memoryview) -> bytes:
    parts = []
    while count := readinto(room):
        parts.append(bytes(room[:count]))
    return b"".join(parts)


def parse_block(block: bytes) -> ParsedSmaps:
    """Whole mappings of smaps."""
    form = _form_of(block)
    parsed = form.parse(block) if form is not None else None
    return parsed or parse_smaps(block.decode("utf-8", "surrogateescape"))


@dataclass(frozen=True, slots=True)
class _Form:
    """What the first mapping of a block says of the others."""

    lines: int  # a mapping
    places: list[int]  # of the lines that are kept
    keys: list[bytes]
    fields: list[str]  # of Mapping

    def parse(self, block: bytes) -> ParsedSmaps | None:
        """None where anything is of another form."""
        text = np.frombuffer(block, np.uint8)
        ends = np.flatnonzero(text == ord("\n"))
        if len(ends) % self.lines or ends[-1] != len(block) - 1:
            return None
        lasts = ends.reshape(-1, self.lines)
        firsts = np.concatenate(([0], ends[:-1] + 1)).reshape(-1, self.lines)
        columns = columns_at(block, text, firsts[:, 0], lasts[:, 0])
        numbers = self._numbers(text, firsts, lasts)
        if columns.unparsed_lines or numbers is None or not _all_begin(text, firsts[:, -1], _LAST):
            return None
        counted = dict(zip(self.fields, numbers.T.tolist(), strict=True))
        known = _Texts()
        flags = [
            known[block[first:last]]
            for first, last in zip((firsts[:, -1] + len(_LAST)).tolist(), lasts[:, -1].tolist(), strict=True)
        ]
        return ParsedSmaps(columns.mappings(flags=flags, **counted))

    def _numbers(self, text: Octets, firsts: Ints, lasts: Ints) -> Ints | None:
        """Bytes by mapping and field."""
        places = firsts[:, self.places]
        if (lasts[:, self.places] - places != _LENGTH).any():
            return None
        rows = sliding_window_view(text, _LENGTH)[places]
        if (_words(rows[:, :, :_KEY], f"S{_KEY}") != np.array(self.keys)).any():
            return None
        if (_words(rows[:, :, _KEY + _DIGITS :], f"S{len(_UNIT)}") != _UNIT).any():
            return None
        return _decimals(_words(rows[:, :, _KEY : _KEY + _DIGITS], "<u8"))


class _Texts(dict[bytes, str]):
    """Flags as text: one string for all that are alike."""

    def __missing__(self, raw: bytes) -> str:
        text = self[raw] = raw.decode("utf-8", "surrogateescape").strip()
        return text


def _form_of(block: bytes) -> _Form | None:
    lines = block[: block.find(b"\n", block.find(b"\n" + _LAST) + 1)].split(b"\n")
    if len(lines) < 3 or not lines[-1].startswith(_LAST):
        return None
    keys = [line[:_KEY] for line in lines]
    names = [key.partition(b":")[0].decode("ascii", "replace") for key in keys]
    places = [place for place in range(1, len(lines) - 1) if names[place] in FIELDS]
    if not places:
        return None
    return _Form(len(lines), places, [keys[place] for place in places], [FIELDS[names[place]] for place in places])


def _all_begin(text: Octets, firsts: Ints, key: bytes) -> bool:
    rows = sliding_window_view(text, len(key))[np.minimum(firsts, len(text) - len(key))]
    return bool((rows == np.frombuffer(key, np.uint8)).all())


def _words(octets: Octets, kind: str) -> "npt.NDArray[Any]":
    """The last axis as one value."""
    return np.ascontiguousarray(octets).view(kind)[..., 0]


def _decimals(words: "npt.NDArray[np.uint64]") -> Ints | None:
    """Eight characters each, digits after spaces, as kB, in bytes: all of a word's digits in one operation, then pairs,
    fours and eights of them put together. None where one is no such number."""
    digits = words & 0x0F0F0F0F0F0F0F0F
    spaces = ~words >> 4 & 0x0101010101010101  # ' ' is 0x20, the digits are 0x30 to 0x39
    wrong = words & 0xE0E0E0E0E0E0E0E0 ^ 0x2020202020202020
    wrong |= digits + 0x0606060606060606 & 0x1010101010101010  # above 9
    wrong |= digits & spaces * 0x0F  # above 0x20
    wrong |= spaces >> 8 & ~spaces & 0x0001010101010101  # a space behind a digit
    wrong |= spaces >> 56
    if wrong.any():
        return None
    twos = digits * 10 + (digits >> 8) & 0x00FF00FF00FF00FF
    fours = twos * 100 + (twos >> 16) & 0x0000FFFF0000FFFF
    eights = fours * 10000 + (fours >> 32) & 0xFFFFFFFF
    return eights.astype(np.int64) * KIB
