"""Units, entries and attributes of .debug_info, as few as a question needs (DWARF 5, 7.5; versions 2 to 5).

An entry that does not matter is stepped over by a plan made once for its abbreviation: a tenth of the time that a
general reader takes, and with gcc's DW_AT_sibling whole functions cost one step. 32-bit DWARF of 64-bit machines only.
Everything here raises one of DAMAGED on damaged bytes, and nothing else.
"""

import functools
import struct
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from memforensics.symbols.elf.reader import BadElf, ElfFile
from memforensics.symbols.unwind.frame_instructions import Cursor

DAMAGED = (BadElf, struct.error, IndexError, KeyError, ValueError)

_MAX_UNIT_BYTES = 64 * 1024 * 1024  # of one, and of those that are kept
_MAX_UNITS = 1 << 20
_MAX_TABLES = 64
_MAX_ABBREVS_BYTES = 4 * 1024 * 1024
_MAX_NAME_BYTES = 4096
_MAX_RANGES = 65536

# Attributes
SIBLING, NAME, STMT_LIST, LOW_PC, HIGH_PC, COMP_DIR = 0x01, 0x03, 0x10, 0x11, 0x12, 0x1B
ABSTRACT_ORIGIN, SPECIFICATION, RANGES, CALL_FILE, CALL_LINE, LINKAGE_NAME = 0x31, 0x47, 0x55, 0x58, 0x59, 0x6E
DECL_LINE = 0x3B
_STR_OFFSETS_BASE, _ADDR_BASE, _RNGLISTS_BASE, _MIPS_LINKAGE_NAME = 0x72, 0x73, 0x74, 0x2007

# Forms by how they are stepped over. Those of a fixed size:
_SIZES = {
    0x01: 8, 0x05: 2, 0x06: 4, 0x07: 8, 0x0B: 1, 0x0C: 1, 0x0E: 4, 0x10: 4, 0x11: 1, 0x12: 2, 0x13: 4, 0x14: 8, 0x17: 4,
    0x19: 0, 0x1C: 4, 0x1D: 4, 0x1E: 16, 0x1F: 4, 0x20: 8, 0x21: 0, 0x24: 8, 0x25: 1, 0x26: 2, 0x27: 3, 0x28: 4,
    0x29: 1, 0x2A: 2, 0x2B: 3, 0x2C: 4, 0x1F20: 4, 0x1F21: 4,
}  # fmt: skip
_ULEB_FORMS = frozenset({0x0F, 0x15, 0x1A, 0x1B, 0x22, 0x23, 0x1F01, 0x1F02})
_SDATA, _STRING, _IMPLICIT, _REF_ADDR, _ADDR, _STRP, _LINE_STRP = 0x0D, 0x08, 0x21, 0x10, 0x01, 0x0E, 0x1F
_BLOCKS = {0x0A: 1, 0x03: 2, 0x04: 4, 0x09: 0, 0x18: 0}  # bytes of the length; 0: LEB128
_UNIT_REFS = frozenset({0x11, 0x12, 0x13, 0x14, 0x15})
_STRX, _ADDRX = frozenset({0x1A, 0x25, 0x26, 0x27, 0x28}), frozenset({0x1B, 0x29, 0x2A, 0x2B, 0x2C})
_RNGLISTX, _DATA4, _DATA8 = 0x23, 0x06, 0x07
# Steps of a plan; a number of bytes else.
_STEP_LEB, _STEP_STRING, _STEP_BLOCK = -1, -2, -8  # -8 - n: a block whose length takes n bytes, 0: LEB128


@dataclass(frozen=True, slots=True)
class Abbrev:
    tag: int
    has_children: bool
    fields: tuple[tuple[int, int, int], ...]  # attribute, form, implicit value
    plan: tuple[int, ...]
    has_sibling: bool


Attributes = dict[int, tuple[int, int | bytes]]
"""Attribute -> (form, raw value)."""


class Unit:
    """One unit, its bytes in memory. Offsets of entries count from the unit's header, as references do."""

    def __init__(self, dwarf: "Dwarf", offset: int, data: bytes, header: "_Header") -> None:
        self.dwarf, self.offset, self.data, self.version = dwarf, offset, data, header.version
        self._first, self._abbrevs_at = header.size, header.abbrevs

    @functools.cached_property
    def abbrevs(self) -> dict[int, Abbrev]:
        return self.dwarf.abbrevs(self._abbrevs_at)

    @functools.cached_property
    def _root(self) -> tuple[Abbrev, Attributes, int]:
        cursor = Cursor(self.data, 0, self._first)
        abbrev = self.dwarf.abbrev(self._abbrevs_at, cursor.uleb())
        attributes, end = self.attributes(abbrev, cursor.at)
        return abbrev, attributes, end

    @property
    def root(self) -> Attributes:
        return self._root[1]

    @property
    def first_child(self) -> int | None:
        """None: a skeleton, whose entries are in another file, or an empty unit."""
        return self._root[2] if self._root[0].has_children else None

    # --- entries

    def step_over(self, abbrev: Abbrev, at: int) -> int:
        """The end of the entry whose attributes begin at `at`."""
        data = self.data
        for step in abbrev.plan:
            if step >= 0:
                at += step
            elif step == _STEP_LEB:
                while data[at] > 127:
                    at += 1
                at += 1
            elif step == _STEP_STRING:
                at = data.index(0, at) + 1
            else:
                cursor = Cursor(data, 0, at)
                size = cursor.unsigned(_STEP_BLOCK - step) if step != _STEP_BLOCK else cursor.uleb()
                at = cursor.at + size
        return at

    def attributes(self, abbrev: Abbrev, at: int) -> tuple[Attributes, int]:
        """The attributes that begin at `at`, and the entry's end."""
        cursor = Cursor(self.data, 0, at)
        out: Attributes = {}
        for attribute, form, implicit in abbrev.fields:
            out[attribute] = (form, implicit if form == _IMPLICIT else _value(cursor, form, self.version))
        return out, cursor.at

    def entry(self, offset: int) -> Attributes:
        """The attributes of the entry at an offset of this unit."""
        if not self._first <= offset < len(self.data):
            raise ValueError("an entry outside of its unit")
        cursor = Cursor(self.data, 0, offset)
        return self.attributes(self.abbrevs[cursor.uleb()], cursor.at)[0]

    # --- values

    def number(self, attributes: Attributes, attribute: int) -> int | None:
        """A constant or an offset."""
        found = attributes.get(attribute)
        return found[1] if found is not None and isinstance(found[1], int) else None

    def text(self, attributes: Attributes, attribute: int) -> bytes | None:
        found = attributes.get(attribute)
        if found is None:
            return None
        form, value = found
        if isinstance(value, bytes):
            return value if form == _STRING else None
        if form in (_STRP, _LINE_STRP):
            return self.dwarf.string(".debug_str" if form == _STRP else ".debug_line_str", value)
        if form in _STRX:
            base = self.number(self.root, _STR_OFFSETS_BASE)
            at = self.dwarf.word(".debug_str_offsets", (8 if base is None else base) + 4 * value, 4)
            return self.dwarf.string(".debug_str", at)
        return None  # in another file: a supplementary one

    def address(self, attributes: Attributes, attribute: int) -> int | None:
        found = attributes.get(attribute)
        if found is None or not isinstance(found[1], int):
            return None
        if found[0] == _ADDR:
            return found[1]
        return self._indexed_address(found[1]) if found[0] in _ADDRX else None

    def _indexed_address(self, index: int) -> int:
        base = self.number(self.root, _ADDR_BASE)
        return self.dwarf.word(".debug_addr", (8 if base is None else base) + 8 * index, 8)

    def referred(self, attributes: Attributes, attribute: int) -> "tuple[Unit, Attributes] | None":
        """The entry that a reference names, and its unit. None: there is none, or it is in another file."""
        found = attributes.get(attribute)
        if found is None or not isinstance(found[1], int):
            return None
        form, value = found[0], found[1]
        if form in _UNIT_REFS:
            return self, self.entry(value)
        if form == _REF_ADDR:
            unit = self.dwarf.unit_around(value)
            return unit, unit.entry(value - unit.offset)
        return None

    # --- ranges

    def ranges(self, attributes: Attributes) -> list[tuple[int, int]]:
        """[start, end) of an entry's code. Empty: it has none here."""
        found = attributes.get(RANGES)
        if found is not None and isinstance(found[1], int):
            form, value = found[0], found[1]
            return list(self._rnglist(form, value) if self.version >= 5 else self._old_ranges(value))
        low = self.address(attributes, LOW_PC)
        high = attributes.get(HIGH_PC)
        if low is None or high is None or not isinstance(high[1], int):
            return []
        end = self.address(attributes, HIGH_PC)
        end = low + high[1] if end is None else end
        return [(low, end)] if 0 < low < end else []

    @functools.cached_property
    def base(self) -> int:
        """What the offsets of its range lists count from."""
        return self.address(self.root, LOW_PC) or 0

    def _old_ranges(self, offset: int) -> Iterator[tuple[int, int]]:
        """.debug_ranges (DWARF 4, 2.17.3)."""
        base = self.base
        for at in range(offset, offset + 16 * _MAX_RANGES, 16):
            low, high = struct.unpack("<QQ", self.dwarf.piece(".debug_ranges", at, 16))
            if low == 0 == high:
                return
            if low == 0xFFFFFFFFFFFFFFFF:
                base = high
            elif low < high and base + low:
                yield base + low, base + high

    def _rnglist(self, form: int, value: int) -> Iterator[tuple[int, int]]:
        """.debug_rnglists (DWARF 5, 2.17.3 and 7.25)."""
        if form == _RNGLISTX:
            start = self.number(self.root, _RNGLISTS_BASE)
            if start is None:
                raise ValueError("a numbered range list without a base")
            value = start + self.dwarf.word(".debug_rnglists", start + 4 * value, 4)
        cursor = self.dwarf.cursor(".debug_rnglists", value)
        base = self.base
        for _ in range(_MAX_RANGES):
            low = high = 0
            match cursor.u8():
                case 0:
                    return
                case 1:
                    base = self._indexed_address(cursor.uleb())
                case 2:
                    low, high = self._indexed_address(cursor.uleb()), self._indexed_address(cursor.uleb())
                case 3:
                    low = self._indexed_address(cursor.uleb())
                    high = low + cursor.uleb()
                case 4:
                    low = base + cursor.uleb()
                    high = base + cursor.uleb()
                case 5:
                    base = cursor.unsigned(8)
                case 6:
                    low, high = cursor.unsigned(8), cursor.unsigned(8)
                case 7:
                    low = cursor.unsigned(8)
                    high = low + cursor.uleb()
                case kind:
                    raise ValueError(f"a range of kind {kind}")
            if 0 < low < high:
                yield low, high


@dataclass(frozen=True, slots=True)
class _Header:
    length: int  # of the whole unit
    version: int
    abbrevs: int
    size: int
    has_code: bool  # a compilation, partial or skeleton unit


class Dwarf:
    """.debug_info of one file, with the sections that it refers to."""

    def __init__(self, elf: ElfFile) -> None:
        self._elf = elf
        self._abbrevs: OrderedDict[int, dict[int, Abbrev]] = OrderedDict()
        self._units: OrderedDict[int, Unit] = OrderedDict()

    # --- bytes of sections

    def piece(self, section: str, at: int, size: int) -> bytes:
        place = self._elf.open_section(section)
        if place is None or not 0 <= at <= at + size <= place[2]:
            raise BadElf(f"no {size} bytes at {at:#x} of {section}")
        return place[0].read(place[1] + at, size)

    def word(self, section: str, at: int, size: int) -> int:
        return int.from_bytes(self.piece(section, at, size), "little")

    def cursor(self, section: str, at: int, limit: int = 1 << 20) -> Cursor:
        """At that place, with as much as there is behind it, up to `limit` bytes."""
        place = self._elf.open_section(section)
        if place is None or not 0 <= at < place[2]:
            raise BadElf(f"nothing at {at:#x} of {section}")
        return Cursor(place[0].read(place[1] + at, min(limit, place[2] - at)), 0)

    def string(self, section: str, at: int) -> bytes:
        return self.cursor(section, at, _MAX_NAME_BYTES).data.partition(b"\0")[0]

    # --- units

    def unit(self, offset: int) -> Unit:
        """The unit whose header is at an offset of .debug_info. The last few are kept."""
        unit = self._units.get(offset)
        if unit is None:
            header = self._header(offset)
            if header is None or header.length > _MAX_UNIT_BYTES:
                raise ValueError("a unit of a kind that is not read here")
            unit = Unit(self, offset, self.piece(".debug_info", offset, header.length), header)
            self._units[offset] = unit
            while len(self._units) > 1 and sum(len(kept.data) for kept in self._units.values()) > _MAX_UNIT_BYTES:
                self._units.popitem(last=False)
        return unit

    def head(self, offset: int) -> Unit:
        """The same for its root alone: of a large unit only the first bytes are read."""
        header = self._header(offset)
        if header is None:
            raise ValueError("a unit of a kind that is not read here")
        return Unit(self, offset, self.piece(".debug_info", offset, min(header.length, 4096)), header)

    def unit_around(self, place: int) -> Unit:
        """The unit that has that offset of .debug_info inside."""
        index = bisect_right(self._starts, place) - 1
        if index < 0:
            raise ValueError("a reference to nowhere")
        return self.unit(self._starts[index])

    @functools.cached_property
    def _starts(self) -> "array[int]":
        return array("Q", [offset for offset, _ in islice(self.units(), _MAX_UNITS)])

    def units(self, start: int = 0, *, with_code: bool = False) -> Iterator[tuple[int, int]]:
        """(offset, bytes) of each unit from that one on; with_code: those that may have code."""
        place = self._elf.open_section(".debug_info")
        at, end = start, place[2] if place is not None else 0
        while at + 11 <= end:
            length = self.word(".debug_info", at, 4) + 4
            if length >= 0xFFFFFFF0:
                return
            header = self._header(at) if with_code else None
            if not with_code or (header is not None and header.has_code):
                yield at, length
            at += length

    def _header(self, offset: int) -> _Header | None:
        """None: 64-bit DWARF, 32-bit addresses, an unknown version."""
        cursor = self.cursor(".debug_info", offset, 24)
        length, version = cursor.unsigned(4), cursor.unsigned(2)
        if length >= 0xFFFFFFF0 or not 2 <= version <= 5:
            return None
        kind = 1
        if version == 5:
            kind, address_size, abbrevs = cursor.u8(), cursor.u8(), cursor.unsigned(4)
            cursor.at += {4: 8, 5: 8, 2: 12, 6: 12}.get(kind, 0)  # a split unit's id; a type's signature and offset
        else:
            abbrevs, address_size = cursor.unsigned(4), cursor.u8()
        return _Header(length + 4, version, abbrevs, cursor.at, kind in (1, 3, 4)) if address_size == 8 else None

    def abbrevs(self, offset: int) -> dict[int, Abbrev]:
        """A table of .debug_abbrev; the last few are kept."""
        table = self._abbrevs.get(offset)
        if table is None:
            table = self._abbrevs[offset] = dict(_abbrevs(self.cursor(".debug_abbrev", offset, _MAX_ABBREVS_BYTES)))
            while len(self._abbrevs) > _MAX_TABLES:
                self._abbrevs.popitem(last=False)
        return table

    def abbrev(self, offset: int, code: int) -> Abbrev:
        """One of that table, mostly its first."""
        for limit in (1024, _MAX_ABBREVS_BYTES):
            try:
                for number, abbrev in _abbrevs(self.cursor(".debug_abbrev", offset, limit)):
                    if number == code:
                        return abbrev
            except IndexError:
                continue
        raise KeyError(code)


def _abbrevs(cursor: Cursor) -> Iterator[tuple[int, Abbrev]]:
    while code := cursor.uleb():
        tag, has_children = cursor.uleb(), bool(cursor.u8())
        fields: list[tuple[int, int, int]] = []
        while True:
            attribute, form = cursor.uleb(), cursor.uleb()
            implicit = cursor.sleb() if form == _IMPLICIT else 0
            if not attribute and not form:
                break
            fields.append((LINKAGE_NAME if attribute == _MIPS_LINKAGE_NAME else attribute, form, implicit))
        plan = _plan([form for _, form, _ in fields])
        yield code, Abbrev(tag, has_children, tuple(fields), plan, any(a == SIBLING for a, _, _ in fields))


def _plan(forms: list[int]) -> tuple[int, ...]:
    """How to step over such an entry. ValueError on a form that nobody knows the size of."""
    plan = [0]
    for form in forms:
        size = _SIZES.get(form)
        if size is None:
            plan += [_step(form), 0]
        else:
            plan[-1] += size
    return tuple(step for step in plan if step)


def _step(form: int) -> int:
    if form in _ULEB_FORMS or form == _SDATA:
        return _STEP_LEB
    if form == _STRING:
        return _STEP_STRING
    if form in _BLOCKS:
        return _STEP_BLOCK - _BLOCKS[form]
    raise ValueError(f"form {form:#x}")


def _value(cursor: Cursor, form: int, version: int) -> int | bytes:
    if form == _REF_ADDR and version == 2:
        raise ValueError("a reference as DWARF 2 wrote it")
    if form == 0x19:  # DW_FORM_flag_present
        return 1
    size = _SIZES.get(form)
    if size is not None:
        return cursor.unsigned(size)
    if form in _ULEB_FORMS:
        return cursor.uleb()
    if form == _SDATA:
        return cursor.sleb()
    if form == _STRING:
        return cursor.c_string()
    size = _BLOCKS[form]
    return cursor.take(cursor.unsigned(size) if size else cursor.uleb())
