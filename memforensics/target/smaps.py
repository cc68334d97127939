"""/proc/PID/smaps and smaps_rollup. Pure: takes text or a stream, and counts the lines that it cannot read.

60,000 mappings are 43 MB of text. A kernel prints the same keys in the same order for every mapping, each on a line of
the same length, so a number has the same place in the lines of every mapping. `read_smaps` reads such text with numpy,
in blocks that fit the CPU's cache, at a fifth of the kernel's own cost. A block of any other form (a figure of 100 GiB
is one digit longer) is read line by line by `parse_smaps`.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from mmap import PAGESIZE
from typing import TYPE_CHECKING, Any

from msgspec import structs

from memforensics.case.model import Mapping
from memforensics.target.maps import columns_of, parse_maps, rows_at
from memforensics.target.parse import lines_of, number
from memforensics.units import KIB

if TYPE_CHECKING:
    from memforensics.target.maps import Ints, Words

# fs/proc/task_mmu.c, __show_smap(): key -> field of Mapping. Other keys are skipped.
FIELDS = {
    "Rss": "rss",
    "Pss": "pss",
    "Anonymous": "anonymous",
    "Private_Dirty": "private_dirty",
    "Swap": "swap",
    "Locked": "locked",
    "AnonHugePages": "anon_huge",
    "ShmemPmdMapped": "shmem_huge",
    "FilePmdMapped": "file_huge",
}
_KEY_VALUE = re.compile(r"([A-Za-z][A-Za-z_]*): *([0-9]{1,19})(?: kB)?")

# A call returns at most a page of text. The kernel discards a mapping that does not fit, page walk included, and begins
# with it again in the next call (seq_read_iter(), fs/seq_file.c). If less is asked for, by one mapping's text, the
# kernel stops before that mapping: this saves a tenth of the whole cost.
_READ = PAGESIZE - 800
BLOCK = 160 * 3296 // _READ * _READ
_LAST = b"VmFlags:"  # key of the last line of a mapping since Linux 3.8
# "Rss:", padded to 16; the number in 8 columns (seq_put_decimal_ull_width(m, str, value, 8), wider if it must); " kB"
_LINE_BYTES = 27


@dataclass(frozen=True, slots=True)
class ParsedSmaps:
    mappings: tuple[Mapping, ...]
    unparsed_lines: int = 0


def parse_smaps(text: str) -> ParsedSmaps:
    """smaps or smaps_rollup (one mapping named [rollup]), line by line. A field that this kernel does not print is
    None. A line of no known form, or with figures before any mapping, counts as unparsed."""
    mappings: list[Mapping] = []
    values: dict[str, Any] = {}
    unparsed = 0
    current: Mapping | None = None
    for line in lines_of(text):
        key, colon, value = line.partition(":")
        field = FIELDS.get(key) if colon else None
        if field is not None and current is not None and line.endswith(" kB"):
            size = number(value[:-3].strip())
            if size is not None:
                values[field] = size * KIB
            else:
                unparsed += 1
        elif key == "VmFlags" and current is not None:
            values["flags"] = value.strip()
        elif current is not None and _KEY_VALUE.fullmatch(line):
            continue
        else:
            header = parse_maps(line).mappings
            if len(header) != 1:
                unparsed += 1
                continue
            if current is not None:
                mappings.append(structs.replace(current, **values))
            current, values = header[0], {}
    if current is not None:
        mappings.append(structs.replace(current, **values))
    return ParsedSmaps(tuple(mappings), unparsed)


def read_smaps(readinto: Callable[[memoryview], int | None], begun: bytes = b"") -> ParsedSmaps:
    """The whole of a stream: `begun`, less than a block, and what `readinto` of an unbuffered file gives."""
    mappings: list[Mapping] = []
    unparsed = 0
    form: _Form | None = None  # of the block before
    for block in _blocks(readinto, begun):
        found = form.parse(block) if form is not None else None
        if found is None and (form := _form_of(block)) is not None:
            found = form.parse(block)
        parsed = ParsedSmaps(found) if found is not None else parse_smaps(block.decode("utf-8", "surrogateescape"))
        mappings += parsed.mappings
        unparsed += parsed.unparsed_lines
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
        if last >= 0:  # an old kernel's mappings have no such last line
            end = text.index(b"\n", last + 1) + 1
            yield text[:end]
            text = text[end:]


@dataclass(frozen=True, slots=True)
class _Form:
    """The form of a block's first mapping: all its mappings have the same length from the second line to the last."""

    lines: int  # of a mapping
    size: int  # bytes from the second line to the last
    places: "Ints"  # of the lines that are kept, from the second line on
    keys: "Words"  # theirs, padded, two words each
    fields: list[str]  # of Mapping

    def parse(self, block: bytes) -> tuple[Mapping, ...] | None:
        """None if the block has another form."""
        import numpy as np

        newlines = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
        if not block.endswith(b"\n") or len(newlines) % self.lines:
            return None
        ends = newlines.reshape(-1, self.lines)
        seconds, lasts, count = ends[:, 0] + 1, ends[:, -2] + 1, len(ends)
        if (lasts - seconds != self.size).any() or (ends[:, -1] - lasts < len(_LAST)).any():
            return None
        words = rows_at(block, np.add.outer(self.places, seconds).ravel(), 32).view("<u8")
        numbers = _decimals(words[:, 2])
        if (
            numbers is None
            or any((words[:, at].reshape(-1, count) != self.keys[:, at : at + 1]).any() for at in (0, 1))
            or (words[:, 3] & 0xFFFFFF != int.from_bytes(b" kB", "little")).any()
            or rows_at(block, lasts, len(_LAST)).tobytes() != _LAST * count
        ):
            return None
        columns = columns_of(block, (np.concatenate(([0], ends[:-1, -1] + 1)), ends[:, 0]))
        if columns.unparsed_lines:
            return None
        raw = list(map(block.__getitem__, map(slice, (lasts + len(_LAST)).tolist(), ends[:, -1].tolist())))
        texts = {flags: flags.decode("utf-8", "surrogateescape").strip() for flags in set(raw)}
        same: dict[bytes, list[int]] = {}  # most columns of a block are all zero, or equal another column
        counted = {}
        for field, column in zip(self.fields, numbers.reshape(-1, count), strict=True):
            key = column.tobytes()
            counted[field] = same.get(key) or same.setdefault(key, column.tolist())
        return columns.mappings(flags=list(map(texts.__getitem__, raw)), **counted)


def _form_of(block: bytes) -> _Form | None:
    import numpy as np

    lines = block[: block.find(b"\n", block.find(b"\n" + _LAST) + 1)].split(b"\n")
    if len(lines) < 3 or not lines[-1].startswith(_LAST):
        return None
    names = [line.partition(b":")[0].decode("ascii", "replace") for line in lines]
    kept = [place for place in range(1, len(lines) - 1) if names[place] in FIELDS]
    if not kept or any(len(lines[place]) != _LINE_BYTES for place in kept):
        return None
    return _Form(
        lines=len(lines),
        size=sum(len(line) + 1 for line in lines[1:-1]),
        places=np.array([sum(len(line) + 1 for line in lines[1:place]) for place in kept]),
        keys=np.frombuffer(b"".join(lines[place][:16] for place in kept), "<u8").reshape(-1, 2),
        fields=[FIELDS[names[place]] for place in kept],
    )


def _decimals(words: "Words") -> "Ints | None":
    """Numbers of kB in eight columns, digits after spaces, in bytes. All digits of a word are converted in one
    operation, then joined to pairs, fours and eights. None if a word is not such a number."""
    import numpy as np

    digits = words & 0x0F0F0F0F0F0F0F0F
    spaces = ~words >> 4 & 0x0101010101010101  # ' ' is 0x20, the digits are 0x30 to 0x39
    wrong = words & 0xE0E0E0E0E0E0E0E0 ^ 0x2020202020202020
    wrong |= digits + 0x0606060606060606 & 0x1010101010101010  # above 9
    wrong |= digits & spaces * 0x0F  # above 0x20
    wrong |= spaces >> 8 & ~spaces & 0x0001010101010101  # a space after a digit
    wrong |= spaces >> 56
    if wrong.any():
        return None
    twos = digits * 10 + (digits >> 8) & 0x00FF00FF00FF00FF
    fours = twos * 100 + (twos >> 16) & 0x0000FFFF0000FFFF
    eights = fours * 10000 + (fours >> 32) & 0xFFFFFFFF
    return eights.astype(np.int64) * KIB
