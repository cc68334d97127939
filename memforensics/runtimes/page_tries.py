"""jemalloc 5 and gperftools' tcmalloc, wherever their code is: in their own library, a program, or another library.

Both have a trie in their static data with an element for each page of address space. The element of a page that they
own points to a record with the start and the size of its extent (span). A trie is recognised by a lookup in it: from a
slot of a module's .bss, through the element of an address, to a record that covers this address. Memory that no record
covers is not theirs. No symbols and no names are needed.

jemalloc (include/jemalloc/internal/rtree.h, edata.h; extent_structs.h to 5.2): 48 address bits, 18 + 18 above pages of
4 KiB; an element has the address of an edata_t in its middle bits; e_addr at +8, e_size_esn at +16.
tcmalloc (gperftools src/pagemap.h, span.h): TCMalloc_PageMap2 of 48 bits, pages of 8 KiB by default; an element is a
Span*, which begins {PageID start, Length length}.
Not supported: jemalloc 4, jemalloc for 57 address bits, and Google's newer tcmalloc (which names its mappings itself).
"""

import struct
from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Mapping as MappingOf
from dataclasses import dataclass
from heapq import nlargest
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from memforensics.case.model import Mapping, OwnerMark
from memforensics.runtimes.reading import Reading, Run, joined
from memforensics.runtimes.scene import Scene
from memforensics.runtimes.static_data import USER_END, Static, lies_in, pointers_in
from memforensics.units import KIB, MIB

if TYPE_CHECKING:
    import numpy as np

PAGE = 4096
_MAX_LEAF_BYTES = 256 * MIB  # read per snapshot: 8 bytes per page of the allocator
_MAX_RECORD_BYTES = 256 * MIB  # read per snapshot: 128 bytes per extent
_MAX_READ, _MIN_READ_COST = 16 * MIB, 16 * KIB  # bytes of records: the largest read, and what a read costs at least
_BATCH, _MAX_ELEMENTS = 1 << 20, 8 << 20  # elements processed at once, and in all: 32 GiB of small objects
_MAX_BLOCK_READS = 16_384
_TRIED_PER_SLOT = 24  # pages
_MAX_TRIES = 1024  # lookups per module and kind
_NEAR = 256 * KIB  # records this close lie in one piece of memory
_MAX_SAMPLES = 64  # mappings whose pages are looked up in a trie, those with most resident bytes first
_SAMPLE_STEP = 2 * MIB  # extents often begin at such multiples, after the allocator's own records
_STEPS = 16  # per mapping


@dataclass(frozen=True, slots=True)
class Trie:
    """The layout of a trie: the bits of an address that select the element, and the extent's fields in its record."""

    kind: str
    page_bits: int
    leaf_bits: int
    root_bits: int
    pointer_mask: int
    record: struct.Struct  # (start, size)
    start_scale: int  # bytes
    size_mask: int
    size_scale: int

    def root_index(self, address: int) -> int:
        return address >> self.page_bits + self.leaf_bits

    def leaf_index(self, address: int) -> int:
        return address >> self.page_bits & (1 << self.leaf_bits) - 1

    def extent(self, data: bytes) -> Run:
        start, size = self.record.unpack(data)
        first = start * self.start_scale & -PAGE
        return first, first + (size & self.size_mask) * self.size_scale


def _tcmalloc(page_bits: int) -> Trie:
    bits = 48 - page_bits
    return Trie("tcmalloc", page_bits, (bits + 1) // 2, bits - (bits + 1) // 2, -1, struct.Struct("<2Q"),
                1 << page_bits, -1, 1 << page_bits)  # fmt: skip


JEMALLOC = Trie("jemalloc", 12, 18, 18, (1 << 48) - 64, struct.Struct("<8x2Q"), 1, -PAGE, 1)
TRIES = (JEMALLOC, *map(_tcmalloc, (13, 12, 15, 16)))  # tcmalloc: --with-tcmalloc-pagesize=8 (the default), 4, 32, 64


@dataclass(frozen=True, slots=True)
class PageTrie:
    """A trie that was found. `root`: the address of its first slot."""

    trie: Trie
    root: int
    module: str


def recognise(scene: Scene) -> Iterator[OwnerMark]:
    """Memory of jemalloc and tcmalloc, and the memory that holds their records."""
    statics = scene.statics_with_tables
    for found in find_tries(scene.reader, statics, scene.heap_runs, _samples(scene.heap_mappings) if statics else ()):
        memory = owned(scene.reader, found)
        scene.reader.unread["records"] += memory.unread
        where = f"its records are in {found.module}"
        yield from scene.marks(memory.heap, found.trie.kind, where)
        yield from scene.marks(memory.records, found.trie.kind, f"{where}: the records themselves")


def _samples(mappings: Sequence[Mapping]) -> list[int]:
    """Pages where an extent is likely to begin or end."""
    fullest = nlargest(_MAX_SAMPLES, mappings, key=lambda mapping: mapping.rss or 0)
    edges = [page for mapping in fullest for page in (mapping.start, mapping.end - PAGE)]
    steps = [
        page
        for mapping in fullest
        for page in range(-(-mapping.start // _SAMPLE_STEP) * _SAMPLE_STEP, mapping.end, _SAMPLE_STEP)[:_STEPS]
    ]
    return [page for pair in zip_longest(edges, steps) for page in pair if page is not None]


def find_tries(
    reading: Reading, statics: Sequence[Static], memory: Sequence[Run], pages: Iterable[int]
) -> Iterator[PageTrie]:
    """The tries in `statics` with an extent that begins or ends at one of `pages`; one per static and kind. `memory`:
    ranges of private anonymous memory, ascending."""
    by_root = {trie: _by_root_index(trie, pages) for trie in TRIES}
    for static in statics:
        found: set[str] = set()
        for trie in TRIES:
            if trie.kind not in found and 8 << trie.root_bits <= static.end - static.bss_start:
                leaves = [each for each in static.pointers if lies_in(memory, each[1], 8 << trie.leaf_bits)]
                root = _find_root(reading, trie, static, leaves, by_root[trie])
                if root is not None:
                    found.add(trie.kind)
                    yield PageTrie(trie, root, static.mapping.path)


def _by_root_index(trie: Trie, pages: Iterable[int]) -> dict[int, list[int]]:
    out: dict[int, list[int]] = {}
    for page in pages:
        chosen = out.setdefault(trie.root_index(page), [])
        if len(chosen) < _TRIED_PER_SLOT:
            chosen.append(page)
    return out


def _find_root(
    reading: Reading, trie: Trie, static: Static, leaves: Sequence[Run], by_index: MappingOf[int, list[int]]
) -> int | None:
    """Tries each slot that may point to a leaf with each page whose element that leaf could contain."""
    lowest, highest = static.bss_start, static.end - (8 << trie.root_bits)
    lookups_left = _MAX_TRIES
    for slot, leaf in leaves:
        for index, addresses in by_index.items():
            root = slot - 8 * index
            if lowest <= root <= highest and lookups_left > 0:
                lookups_left -= len(addresses)
                if any(_has_extent_at(reading, trie, leaf, address) for address in addresses):
                    return root
    return None


def _has_extent_at(reading: Reading, trie: Trie, leaf: int, address: int) -> bool:
    """Whether the extent of the page at `address` begins or ends with it."""
    element = reading.read(leaf + 8 * trie.leaf_index(address), 8)
    pointer = int.from_bytes(element or b"", "little") & trie.pointer_mask
    data = reading.read(pointer, trie.record.size) if PAGE < pointer < USER_END and not pointer & 7 else None
    if data is None:
        return False
    start, end = trie.extent(data)
    return start < end and (start == address or end - (1 << trie.page_bits) <= address < end)


# --- all memory of one allocator ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Owned:
    """`heap`: ranges of extents, including free ones that the allocator keeps. `records`: the memory of the trie and
    its records. `unread`: number of records beyond the limits."""

    heap: list[Run]
    records: list[Run]
    unread: int


def owned(reading: Reading, found: PageTrie) -> Owned:
    """All memory that one trie describes. Bounded in reads and, by batches of leaves, in our own memory."""
    trie, records = found.trie, _Records(reading, found.trie)
    leaves: list[Run] = []
    heap: list[Run] = []
    pages: list[int] = []
    budget, unread_leaves = _MAX_LEAF_BYTES, 0
    batch = _Elements(trie)
    for slot, leaf in pointers_in(reading, found.root, found.root + (8 << trie.root_bits)):
        end = leaf + (8 << trie.leaf_bits)
        parts = [(max(first, leaf), min(last, end)) for first, last in reading.present(leaf & -PAGE, end)]
        budget -= sum((last - first for first, last in parts), PAGE)
        if budget < 0 or batch.total > _MAX_ELEMENTS:
            unread_leaves += 1
            continue
        leaves.append((leaf, end))
        for first, last in parts:
            page = ((slot - found.root) // 8 << trie.leaf_bits) + (first - leaf) // 8
            batch.add(page, reading.read(first, last - first) or b"")
        if batch.count > _BATCH:
            batch.flush(records, heap, pages)
    batch.flush(records, heap, pages)
    return Owned(joined(heap), joined(_metadata(reading, trie, leaves, pages)), records.unread + unread_leaves)


class _Elements:
    """A batch of leaves' elements: the addresses of records and of the elements' pages."""

    def __init__(self, trie: Trie) -> None:
        self._trie, self.count, self.total = trie, 0, 0
        self._pointers: list[np.ndarray[Any, Any]] = []
        self._where: list[np.ndarray[Any, Any]] = []

    def add(self, first_page: int, data: bytes) -> None:
        import numpy as np

        words = np.frombuffer(data, "<u8")
        at = np.flatnonzero(words)
        self._pointers.append(words[at] & np.uint64(self._trie.pointer_mask & (1 << 64) - 1))
        self._where.append((first_page + at).astype(np.uint64) << np.uint64(self._trie.page_bits))
        self.count += len(at)
        self.total += len(at)

    def flush(self, records: "_Records", heap: list[Run], pages: list[int]) -> None:
        """Adds the extents of the batch and the pages that contain their records, then empties the batch. An element
        counts only if its record covers its page: elements within free memory may be stale."""
        import numpy as np

        if self.count:
            where = np.concatenate(self._where)
            pointers, order = np.unique(np.concatenate(self._pointers), return_inverse=True)
            starts, ends = records.extents(pointers)
            valid = np.unique(order[(starts[order] <= where) & (where < ends[order])])
            heap += joined(list(zip(starts[valid].tolist(), ends[valid].tolist(), strict=True)))
            pages += np.unique(pointers[valid] & np.uint64(-PAGE & (1 << 64) - 1)).tolist()
        self._pointers, self._where, self.count = [], [], 0


class _Records:
    """Reads records up to a limit. `unread`: number of records beyond it."""

    def __init__(self, reading: Reading, trie: Trie) -> None:
        self.trie, self.unread = trie, 0
        self._reading, self._budget = reading, _MAX_RECORD_BYTES

    def extents(self, records: "np.ndarray[Any, Any]") -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
        """Starts and ends of the extents of `records` (ascending); 0 if unreadable."""
        import numpy as np

        trie = self.trie
        starts, ends = np.zeros(len(records), np.uint64), np.zeros(len(records), np.uint64)
        signed = records.astype(np.int64)
        splits = np.flatnonzero((np.diff(signed) > PAGE) | (np.diff(signed // _MAX_READ) != 0)) + 1
        for part in np.split(np.arange(len(records)), splits):
            first, last = int(records[part[0]]), int(records[part[-1]]) + trie.record.size
            if not PAGE < first < last < USER_END:
                continue
            self._budget -= max(_MIN_READ_COST, last - first)
            if self._budget < 0:
                self.unread += int(len(records) - part[0])
                break
            data = self._reading.read(first, last - first)
            if data is None:
                continue
            offsets = (records[part] - np.uint64(first)).astype(np.int64)
            head = trie.record.size - 16
            fields = np.frombuffer(data, np.uint8)[offsets[:, None] + np.arange(head, head + 16)].copy().view("<u8")
            begin = fields[:, 0] * np.uint64(trie.start_scale) & np.uint64(-PAGE & (1 << 64) - 1)
            size = (fields[:, 1] & np.uint64(trie.size_mask & (1 << 64) - 1)) * np.uint64(trie.size_scale)
            valid = (begin < USER_END) & (size < USER_END)
            starts[part], ends[part] = np.where(valid, begin, 0), np.where(valid, begin + size, 0)
        return starts, ends


def _metadata(reading: Reading, trie: Trie, leaves: Sequence[Run], pages: Sequence[int]) -> list[Run]:
    """Memory that contains leaves and records: for jemalloc, the whole blocks around them."""
    block: Callable[[int], Run | None] = _no_block if trie is not JEMALLOC else _blocks(reading)
    pieces = [(start & -PAGE, -(-end // PAGE) * PAGE) for start, end in leaves]
    pieces += joined([(page, page + PAGE) for page in pages], _NEAR)
    return [block(start) or (start, end) for start, end in pieces]


def _no_block(_: int) -> None:
    return None


def _blocks(reading: Reading) -> Callable[[int], Run | None]:
    """Finds the block of an address (jemalloc's src/base.c): a block begins at a multiple of 2 MiB with its size (also
    a multiple) and the next block's address."""
    known: list[Run] = []  # ascending
    tried = 0

    def block_of(address: int) -> Run | None:
        nonlocal tried
        index = bisect_right(known, (address, USER_END)) - 1
        if index >= 0 and known[index][0] <= address < known[index][1]:
            return known[index]
        for steps in range(64):
            start = (address & -2 * MIB) - steps * 2 * MIB
            tried += 1
            data = reading.read(start, 16) if tried <= _MAX_BLOCK_READS else None
            size, following = struct.unpack("<2Q", data) if data else (0, 1)
            if size and size % (2 * MIB) == 0 and start + size > address and following % (2 * MIB) == 0:
                insort(known, (start, min(start + size, USER_END)))
                return start, min(start + size, USER_END)
        return None

    return block_of
