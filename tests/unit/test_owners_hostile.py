"""Recognisers end on memory that a hostile process wrote, and claim only possible ranges.

Many words of that memory point into itself or look like headers, so that structures are followed and lead in circles.
"""

import functools
import inspect
import random
import re
import struct
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from memforensics.case.model import Mapping
from memforensics.runtimes import hotspot, musl
from memforensics.runtimes.golang import find_go_heaps
from memforensics.runtimes.hotspot import HotSpot
from memforensics.runtimes.mimalloc import segments
from memforensics.runtimes.page_tries import TRIES, PageTrie, Trie, find_tries, owned
from memforensics.runtimes.reading import Run
from memforensics.runtimes.static_data import Static, static_data, with_table_pointers
from memforensics.runtimes.v8 import chunks
from memforensics.units import MIB

BASE = 0x7F0000000000  # a multiple of every alignment of an allocator
SIZE = 36 * MIB
DATA = 0x560000000000
DATA_SIZE = 3 * MIB
SEEDS = range(4)


class Hostile:
    """Anonymous memory at BASE and static data at DATA; counts what is read."""

    def __init__(self, seed: int) -> None:
        self.memory = dict(_memory(seed))
        self.reads = 0

    def read(self, address: int, size: int) -> bytes | None:
        self.reads += 1 + size // 4096
        for base, data in self.memory.items():
            if base <= address and address + size <= base + len(data):
                return data[address - base : address - base + size]
        return None

    def present(self, start: int, end: int) -> list[Run]:
        parts = [(max(start, base), min(end, base + len(data))) for base, data in self.memory.items()]
        return sorted(part for part in parts if part[0] < part[1])

    def constant(self, address: int, size: int) -> bytes | None:
        return self.read(address, size)


@functools.lru_cache(len(SEEDS))
def _memory(seed: int) -> dict[int, bytes]:
    rng = np.random.default_rng(seed)
    return {BASE: _words(rng, SIZE).tobytes(), DATA: _words(rng, DATA_SIZE).tobytes()}


def _words(rng: np.random.Generator, size: int) -> "np.ndarray":
    count = MIB // 8
    step = rng.choice([1, 8, 64, 4096, 2 * MIB])  # alignment of the targets
    kinds = [
        BASE + rng.integers(0, SIZE // step, count) * step,
        DATA + rng.integers(0, DATA_SIZE // 8, count) * 8,
        rng.integers(0, 5000, count),
        rng.integers(0, 64, count) * 4096,
        rng.integers(0, 1 << 63, count),
        np.zeros(count, np.int64),
    ]
    weights = rng.dirichlet(np.full(len(kinds), 0.5))
    return np.tile(np.choose(rng.choice(len(kinds), count, p=weights), kinds).astype("<u8"), size // MIB)


def mapping(start: int, size: int, path: str = "", inode: int = 0) -> Mapping:
    return Mapping(
        start=start, end=start + size, perms="rw-p", offset=0, device="00:00", inode=inode, path=path, rss=size
    )


@pytest.fixture(params=SEEDS)
def hostile(request: pytest.FixtureRequest) -> Iterator[Hostile]:
    yield (made := Hostile(request.param))
    assert made.reads < 300_000, "of the target's time no more than a second"


MEMORY = [(BASE, BASE + SIZE)]


def statics(hostile: Hostile) -> list[Static]:
    (static,) = static_data([mapping(DATA, 4096, "/usr/bin/program", 7), mapping(DATA + 4096, DATA_SIZE - 4096)])
    return [with_table_pointers(hostile, static, MEMORY)]


def fit(runs: Sequence[Run]) -> bool:
    return all(0 <= start < end < 1 << 48 for start, end in runs)


def test_tries(hostile: Hostile) -> None:
    pages = list(range(BASE, BASE + SIZE, 2 * MIB))
    for found in find_tries(hostile, statics(hostile), MEMORY, pages):
        assert fit(owned(hostile, found).heap)


@pytest.mark.slow  # it reads up to the bounds of a snapshot
@pytest.mark.parametrize("trie", TRIES[:2], ids=lambda trie: trie.kind)
def test_reading_a_false_trie_ends(trie: Trie) -> None:
    hostile = Hostile(seed=1)
    its = owned(hostile, PageTrie(trie, DATA, "program"))
    assert fit(its.heap)
    assert its.unread > 0, "it would have taken longer than is good"
    assert hostile.reads < 300_000


def test_go(hostile: Hostile) -> None:
    for heap in find_go_heaps(hostile, statics(hostile), MEMORY):
        assert fit(heap.arenas)


def test_mimalloc(hostile: Hostile) -> None:
    data = hostile.read(DATA, DATA_SIZE) or b""
    assert fit(segments(hostile, MEMORY, lambda: iter([data])))


def test_musl(hostile: Hostile) -> None:
    heap = musl.read_heap(hostile, DATA, DATA + DATA_SIZE)
    assert heap is None or (fit(heap.groups) and fit(heap.records))


def test_v8(hostile: Hostile) -> None:
    assert fit(chunks(hostile, MEMORY))


PAIRS = re.findall(r'"([\w<>]+)", "(\w+)"', inspect.getsource(hotspot))  # types and fields that hotspot.py looks up
TEXT = b"\0" + b"\0".join(sorted({name.encode() for pair in PAIRS for name in pair})) + b"\0"


def test_hotspot(hostile: Hostile) -> None:
    """A table with all entries that hotspot.py looks up, all of them false."""
    words = [int.from_bytes(hostile.read(DATA + 8 * i, 8) or b"", "little") for i in range(64)]
    rng = random.Random(words[0])

    def entry(*names: str) -> bytes:
        at = [DATA + MIB + TEXT.index(b"\0" + name.encode() + b"\0") + 1 for name in names]
        return struct.pack("<5Q", *at, rng.getrandbits(1), rng.choice([0, 8, 64, *words]), rng.choice(words))

    table = b"".join(entry(*pair) for pair in PAIRS) + bytes(40)
    exported = {"gHotSpotVMStructs": DATA, "gHotSpotVMStructEntryArrayStride": 40}
    exported |= {
        f"gHotSpotVMStructEntry{name}Offset": 8 * index
        for index, name in enumerate(("TypeName", "FieldName", "IsStatic", "Offset", "Address"))
    }
    values = {DATA + 2 * MIB + 8 * i: value for i, value in enumerate(exported.values())}
    symbols = dict(zip(exported, values, strict=True))
    library = table.ljust(MIB, b"\0") + TEXT.ljust(MIB, b"\0") + struct.pack(f"<{len(values)}Q", *values.values())
    hostile.memory[DATA] = library.ljust(DATA_SIZE, b"\0")
    for _, (start, end), _ in HotSpot(hostile, symbols.get, hostile.constant).regions():
        assert start < end
