"""/proc/PID/smaps in bulk: 60,000 mappings are 43 MB of text, read in blocks that stay in the CPU's cache.

A kernel prints the same keys in the same order for every mapping, each on a line of the same length, so the place of a
number in one mapping's lines is its place in all. A block that is of another form (a figure of 100 GiB is one digit
longer) is read line by line: what comes out is what `parse_smaps` gives, at a fifth of the kernel's own cost.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from mmap import PAGESIZE

import numpy as np

from memforensics.case.model import Mapping
from memforensics.target.maps_columns import Ints, Octets, Words, columns_at, gathered
from memforensics.target.smaps import FIELDS, ParsedSmaps, parse_smaps
from memforensics.units import KIB

# The kernel gives at most a page of text a call, and throws away the mapping that did not fit in it any more, page walk
# and all, to begin with it the next time (seq_read_iter(), fs/seq_file.c). Asked for less, by as much as a mapping's
# text, it stops before: a tenth of the whole cost.
_READ = PAGESIZE - 800
BLOCK = 160 * 3296 // _READ * _READ
_LAST = b"VmFlags:"  # key of the last line of a mapping since Linux 3.8
_KEY = 16
_LENGTH, _WORDS = 27, 4  # "Rss:", padded to 16; seq_put_decimal_ull_width(m, str, value, 8), which may be wider; " kB"


def read_smaps(readinto: Callable[[memoryview], int | None], begun: bytes = b"") -> ParsedSmaps:
    """The whole of a stream (`readinto` of an unbuffered file), of which `begun`, less than a block, was read."""
    mappings: list[Mapping] = []
    unparsed = 0
    form: _Form | None = None  # of the block before
    for block in _blocks(readinto, begun):
        found = form.parse(block) if form is not None else None
        if found is None and (form := _form_of(block)) is not None:
            found = form.parse(block)
        found = found or parse_smaps(block.decode("utf-8", "surrogateescape"))
        mappings += found.mappings
        unparsed += found.unparsed_lines
    return ParsedSmaps(tuple(mappings), unparsed)


def _blocks(readinto: Callable[[memoryview], int | None], begun: bytes) -> Iterator[bytes]:
    """The stream in parts of whole mappings."""
    room = memoryview(bytearray(BLOCK))
    windows = [room[at : at + _READ] for at in range(0, BLOCK, _READ)]
    text = begun
    while True:
        counts = list(takewhile(bool, map(readinto, windows)))
        if counts[:-1].count(_READ) == len(counts) - 1:
            text += room[: sum(filter(None, counts))]
        else:
            text += b"".join(window[:count] for window, count in zip(windows, counts, strict=False))
        if len(counts) < len(windows):
            yield text
            return
        last = text.rfind(b"\n" + _LAST, 0, text.rfind(b"\n"))
        if last >= 0:  # an old kernel's mappings have no last line
            end = text.index(b"\n", last + 1) + 1
            yield text[:end]
            text = text[end:]


@dataclass(frozen=True, slots=True)
class _Form:
    """What the first mapping of a block says of the others: what lies between first and last line is of one length."""

    lines: int  # a mapping
    octets: int  # from the second line to the last
    places: Ints  # of the lines that are kept, from the second on
    keys: Words  # two words each
    fields: list[str]  # of Mapping

    def parse(self, block: bytes) -> ParsedSmaps | None:
        """None where anything is of another form."""
        text = np.frombuffer(block, np.uint8)
        newlines = np.flatnonzero(text == ord("\n"))
        if not block.endswith(b"\n") or len(newlines) % self.lines:
            return None
        ends = newlines.reshape(-1, self.lines)
        seconds, lasts = ends[:, 0] + 1, ends[:, -2] + 1
        if (lasts - seconds != self.octets).any() or (ends[:, -1] - lasts < len(_LAST)).any():
            return None
        if (gathered(text, lasts, len(_LAST)).view("<u8") != _word(_LAST)).any():
            return None
        numbers = self._numbers(text, seconds)
        columns = columns_at(block, text, np.concatenate(([0], ends[:-1, -1] + 1)), ends[:, 0])
        if numbers is None or columns.unparsed_lines:
            return None
        raw = list(map(block.__getitem__, map(slice, (lasts + len(_LAST)).tolist(), ends[:, -1].tolist())))
        texts = {flags: flags.decode("utf-8", "surrogateescape").strip() for flags in set(raw)}
        alike: dict[bytes, list[int]] = {}  # most figures of a block are zero, or one another's
        counted = {}
        for field, row in zip(self.fields, numbers, strict=True):
            octets = row.tobytes()
            counted[field] = alike[octets] if octets in alike else alike.setdefault(octets, row.tolist())
        return ParsedSmaps(columns.mappings(flags=list(map(texts.__getitem__, raw)), **counted))

    def _numbers(self, text: Octets, seconds: Ints) -> Ints | None:
        """Bytes by field and mapping."""
        words = gathered(text, np.add.outer(self.places, seconds).ravel(), 8 * _WORDS).view("<u8")
        first, second = np.repeat(self.keys, len(seconds), axis=0).T
        if (
            (words[:, 0] != first).any()
            or (words[:, 1] != second).any()
            or (words[:, 3] & 0xFFFFFF != _word(b" kB")).any()
        ):
            return None
        numbers = _decimals(words[:, 2])
        return None if numbers is None else numbers.reshape(len(self.places), -1)


def _form_of(block: bytes) -> _Form | None:
    lines = block[: block.find(b"\n", block.find(b"\n" + _LAST) + 1)].split(b"\n")
    if len(lines) < 3 or not lines[-1].startswith(_LAST):
        return None
    names = [line.partition(b":")[0].decode("ascii", "replace") for line in lines]
    kept = [place for place in range(1, len(lines) - 1) if names[place] in FIELDS]
    if not kept or any(len(lines[place]) != _LENGTH for place in kept):
        return None
    return _Form(
        lines=len(lines),
        octets=sum(len(line) + 1 for line in lines[1:-1]),
        places=np.array([sum(len(line) + 1 for line in lines[1:place]) for place in kept]),
        keys=np.frombuffer(b"".join(lines[place][:_KEY] for place in kept), "<u8").reshape(-1, 2),
        fields=[FIELDS[names[place]] for place in kept],
    )


def _word(text: bytes) -> int:
    return int.from_bytes(text, "little")


def _decimals(words: Words) -> Ints | None:
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
