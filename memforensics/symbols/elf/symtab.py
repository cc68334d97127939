"""Symbol tables (Elf64_Sym, gABI chapter "Symbol Table") in arrays: a million symbols cost tens of megabytes, not a
gigabyte of objects."""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from memforensics.symbols.elf.byte_source import BadElf, Source

ENTRY_BYTES = 24
MAX_SYMBOLS = 1 << 22
_MAX_NAME_BYTES = 16384
_MAX_NAME_PLACES = 65536
_SHN_LORESERVE = 0xFF00
_STB_LOCAL = 0
_KINDS = frozenset({1, 2, 10})  # STT_OBJECT, STT_FUNC, STT_GNU_IFUNC
_MAX_NESTING = 64  # how many symbols to look back for one that still covers the address


@dataclass(frozen=True, slots=True)
class Symbol:
    """A function or object. `start` is the file's virtual address; size 0: the file does not say."""

    name: str
    start: int
    size: int


class RawTable:
    """One symbol table of a file with its strings. Entries are numbered from 0 (the null symbol) on."""

    def __init__(self, source: Source, offset: int, count: int, strings_offset: int, strings_size: int) -> None:
        if not 0 <= count <= MAX_SYMBOLS or offset + count * ENTRY_BYTES > source.size:
            raise BadElf(f"a symbol table of {count} entries does not fit the file")
        if strings_offset + strings_size > source.size:
            raise BadElf("a string table does not fit the file")
        self._source = source
        self._offset, self.count = offset, count
        self._strings_offset, self._strings_size = strings_offset, strings_size

    def words(self, first: int = 0, count: int | None = None) -> "array[int]":
        """Three words an entry: name | info << 32 | other << 40 | section << 48; value; size."""
        count = self.count - first if count is None else min(count, self.count - first)
        out = array("Q")
        if count > 0:
            out.frombytes(self._source.read(self._offset + first * ENTRY_BYTES, count * ENTRY_BYTES))
        return out

    def name(self, name_offset: int) -> bytes:
        """The string at an offset of the string table; cut off where it is longer than any sane name."""
        if name_offset >= self._strings_size:
            return b""
        step, limit = 128, min(self._strings_size - name_offset, _MAX_NAME_BYTES)
        while True:
            piece = self._source.read(self._strings_offset + name_offset, min(step, limit))
            end = piece.find(b"\0")
            if end >= 0 or step >= limit:
                return piece[: end if end >= 0 else None]
            step *= 8

    def name_offsets(self, names: Collection[bytes]) -> dict[int, bytes]:
        """Every offset of the string table where one of the names stands; linkers let one be the tail of another."""
        strings = self._source.read(self._strings_offset, self._strings_size)
        found: dict[int, bytes] = {}
        for name in names:
            position = strings.find(name + b"\0")
            while position >= 0:
                found[position] = name
                if len(found) > _MAX_NAME_PLACES:
                    raise BadElf("a string table that repeats itself")
                position = strings.find(name + b"\0", position + 1)
        return found

    def indices(
        self, names: Collection[bytes], first: int = 1, count: int | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """(entry number, name) of every entry with one of the names, undefined ones included."""
        heads = self.words(first, count)[0::3]
        if not heads:
            return
        if len(heads) < 4096:
            wanted = frozenset(names)
            for index, head in enumerate(heads, first):
                name = self.name(head & 0xFFFFFFFF)
                if name in wanted:
                    yield index, name
            return
        offsets = self.name_offsets(names)
        for index, head in enumerate(heads, first):
            if head & 0xFFFFFFFF in offsets:
                yield index, offsets[head & 0xFFFFFFFF]

    def defined(self, index: int) -> Symbol | None:
        """The entry as a Symbol, when it is a function or object that this file defines."""
        entry = self.words(index, 1)
        if len(entry) != 3 or not _is_definition(entry[0]):
            return None
        return Symbol(_text(self.name(entry[0] & 0xFFFFFFFF)), entry[1], entry[2])


def _is_definition(head: int) -> bool:
    section = head >> 48
    return 0 < section < _SHN_LORESERVE and (head >> 32) & 15 in _KINDS


def _text(name: bytes) -> str:
    """.symtab writes versions into the name (`memcpy@@GLIBC_2.14`)."""
    return name.decode("utf-8", "backslashreplace").partition("@")[0]


class SymbolTable:
    """Functions and objects of one file by address, from its tables; a later table adds only addresses that the
    earlier ones do not have."""

    def __init__(self, tables: Sequence[RawTable]) -> None:
        self._tables = tuple(tables)
        self._starts, self._sizes = array("Q"), array("Q")
        self._heads, self._origins = array("Q"), array("B")  # name | info << 32; number of the table
        for number, table in enumerate(self._tables):
            self._add(number, table)

    def _add(self, number: int, table: RawTable) -> None:
        """By numpy: a library of a million symbols takes a tenth of a second."""
        import numpy

        heads, starts, sizes = numpy.frombuffer(table.words(), dtype=numpy.uint64).reshape(-1, 3).T
        section, kind = heads >> 48, heads >> 32 & 15
        wanted = (starts != 0) & (section > 0) & (section < _SHN_LORESERVE)
        wanted &= numpy.logical_or.reduce([kind == one for one in _KINDS])
        if number:
            known = numpy.append(numpy.frombuffer(self._starts, dtype=numpy.uint64), numpy.uint64(0))
            wanted &= known[numpy.searchsorted(known[:-1], starts)] != starts
            if not wanted.any():
                return
        columns = (starts[wanted], sizes[wanted], heads[wanted] & 0xFF_FFFFFFFF, numpy.full(wanted.sum(), number))
        old = (self._starts, self._sizes, self._heads, self._origins)
        merged = [numpy.concatenate([new, before]) for new, before in zip(columns, old, strict=True)]
        order = numpy.argsort(merged[0], kind="stable")
        for before, column, letter in zip(old, merged, "QQQB", strict=True):
            del before[:]
            before.frombytes(column[order].astype(letter).tobytes())

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Symbol]:
        """By rising address, aliases included."""
        return map(self._symbol, range(len(self._starts)))

    def _symbol(self, place: int) -> Symbol:
        return Symbol(self._name(place), self._starts[place], self._sizes[place])

    def _name(self, place: int) -> str:
        return _text(self._tables[self._origins[place]].name(self._heads[place] & 0xFFFFFFFF))

    def at(self, vaddr: int) -> Symbol | None:
        """The innermost symbol that covers the address; of aliases the one for people (global, few underscores,
        short). A symbol without a size reaches to the next one, unless a sized one covers the address."""
        last = bisect_right(self._starts, vaddr) - 1
        if last < 0:
            return None
        for place in range(last, max(-1, last - _MAX_NESTING), -1):
            start = self._starts[place]
            if vaddr - start < self._sizes[place]:
                return self._preferred(i for i in self._same_start(place) if vaddr - start < self._sizes[i])
        if self._sizes[last] == 0:
            return self._preferred(i for i in self._same_start(last) if self._sizes[i] == 0)
        return None

    def next_start(self, vaddr: int) -> int | None:
        """The first symbol's start above the address."""
        place = bisect_right(self._starts, vaddr)
        return self._starts[place] if place < len(self._starts) else None

    def _same_start(self, place: int) -> range:
        start = self._starts[place]
        first = max(bisect_left(self._starts, start), place - _MAX_NESTING)
        return range(first, min(bisect_right(self._starts, start), first + 2 * _MAX_NESTING))

    def _preferred(self, places: Iterable[int]) -> Symbol:
        def rank(place: int) -> tuple[bool, int, int, str]:
            name = self._name(place)
            local = (self._heads[place] >> 36) & 15 == _STB_LOCAL
            return local, len(name) - len(name.lstrip("_")), len(name), name

        return self._symbol(min(places, key=rank))
