"""Records of allocators and files that are not installed here, built from their sources, and similar other data."""

import struct
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memforensics.case.model import Mapping
from memforensics.runtimes import musl
from memforensics.runtimes.glibc.arenas import glibc_arenas
from memforensics.runtimes.mimalloc import segments
from memforensics.runtimes.reading import Run, joined
from memforensics.runtimes.v8 import chunks
from memforensics.target.software import file_format
from memforensics.units import KIB, MIB

BASE = 0x7F0000000000
KEY = 0xDB0E942FB775263E  # as src/random.c makes one


class Buffer:
    """Memory at an address, all present."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, address: int, size: int) -> bytes | None:
        inside = address >= BASE and address + size <= BASE + len(self.data)
        return self.data[address - BASE : address - BASE + size] if inside else None

    def present(self, start: int, end: int) -> list[Run]:
        return [(max(start, BASE), min(end, BASE + len(self.data)))]


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


# mi_segment_t from the cookie on, and the number of words before it.
SegmentForm = tuple[int, Callable[[int], tuple[int, ...]], tuple[int, ...]]
V1: SegmentForm = (
    14,
    lambda size: (size, 8 * KIB),
    (16, 0x7F00AA, 0),
)  # 1.7: segment_size, info size; page_shift, thread_id
V2: SegmentForm = (27, lambda size: (), (512, 1, 0, 512, 0x7F00AA))  # 2.0 and 2.1
V2_2: SegmentForm = (27, lambda size: (), (0, 0, 512, 1, 0, 512, 0x7F00AA))  # two pointers more


@pytest.mark.parametrize(("form", "size"), [(V1, 4 * MIB), (V2, 32 * MIB), (V2_2, 32 * MIB)])
def test_mimalloc_segments_of_each_version(form: SegmentForm, size: int) -> None:
    before, sizes, after = form
    head = words(*[3] * (before - len(sizes(size))), *sizes(size), KEY ^ BASE, *after)
    memory = Buffer(head.ljust(size, b"\0"))
    statics = [bytes(4096), words(1, KEY, 2)]
    assert segments(memory, [(BASE, BASE + size)], lambda: iter(statics)) == [(BASE, BASE + size)]
    assert segments(memory, [(BASE, BASE + size)], lambda: iter(statics[:1])) == [], "no module knows that cookie"


def test_mimalloc_3_arenas() -> None:
    head = words(BASE, 64 * MIB, 0x1010000000004, 0x7F0B0E7060C0, 0, 1024, 31)
    memory = Buffer(head.ljust(64 * MIB, b"\0"))
    run = (BASE, BASE + 64 * MIB)
    assert segments(memory, [run], lambda: iter([words(1, BASE)])) == [run]
    assert segments(memory, [run], lambda: iter([words(1, 2)])) == [], "no module lists it"


def musl_process(*, secret: int = KEY, last_area: int = 0, group_of: int = 0) -> Buffer:
    """A page of static data, a page of records and a group of two pages. One record is free, one is within a group."""
    static = words(secret, 1, 0, 0, 0, 0, 0, BASE + 4096).ljust(4096, b"\0")
    records = words(0, 0, BASE + 8192, 0, 2 << 12) + words(*[0] * 5) + words(0, 0, BASE + 8192 + 64, 0, 0)
    area = (words(KEY, last_area, 3) + records).ljust(4096, b"\0")
    return Buffer(static + area + words(group_of or BASE + 4096 + 24).ljust(8192, b"\0"))


def test_groups_of_musl_by_their_records() -> None:
    heap = musl.read_heap(musl_process(), BASE, BASE + 4096)
    assert heap == musl.Heap([(BASE + 8192, BASE + 16384)], [(BASE + 4096, BASE + 8192)], is_whole=True)
    cut = musl.read_heap(musl_process(last_area=BASE + 8192), BASE, BASE + 4096)
    assert cut == replace(heap, is_whole=False), "the next page of records has another first word"


@pytest.mark.parametrize(
    "process",
    [
        pytest.param(musl_process(secret=KEY + 1), id="the static data has another secret"),
        pytest.param(musl_process(group_of=BASE + 4096 + 64), id="the group belongs to another record"),
    ],
)
def test_memory_that_only_resembles_a_heap_of_musl(process: Buffer) -> None:
    assert musl.read_heap(process, BASE, BASE + 4096) is None


def chunk(at: int, size: int, heap: int) -> bytes:
    """The header of a chunk in V8 11."""
    return words(size, 0x12, heap, at + 0x1148, at + size).ljust(size, b"\0")


def test_v8_chunks_of_one_heap() -> None:
    sizes = [256 * KIB, 256 * KIB, 512 * KIB, 256 * KIB]
    places = [BASE + sum(sizes[:i]) for i in range(4)]
    run = (BASE, BASE + sum(sizes))
    heap = b"".join(chunk(at, size, 0x40CBAB20) for at, size in zip(places, sizes, strict=True))
    assert chunks(Buffer(heap), [run]) == [(at, at + size) for at, size in zip(places, sizes, strict=True)]
    other = b"".join(chunk(at, size, 0x40CBAB20 + at - BASE) for at, size in zip(places, sizes, strict=True))
    assert chunks(Buffer(other), [run]) == [], "each of another heap"
    assert chunks(Buffer(heap), [(BASE + 4096, run[1])]) == [], "none begins where the mapping does"


@given(st.binary(min_size=1024, max_size=1024))
def test_random_memory_is_not_a_segment(data: bytes) -> None:
    assert segments(Buffer(data), [(BASE, BASE + 1024)], lambda: iter([words(KEY)])) == []


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)).map(lambda run: (run[0], sum(run)))))
def test_joined_runs_cover_the_same_and_are_disjoint(runs: list[Run]) -> None:
    out = joined(runs)
    assert {at for start, end in out for at in range(start, end)} == {at for a, b in runs for at in range(a, b)}
    assert all(before[1] < after[0] for before, after in pairwise(out))


def head(data: bytes) -> bytes:
    return data.ljust(64, b"\1")[:64]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"GGUF" + struct.pack("<I", 3), "GGUF"),
        (b"GGUF" + struct.pack(">I", 3), "GGUF"),  # big-endian files exist since version 3
        (b"GGUFfile", None),
        (struct.pack("<Q", 1000) + b'{"__metadata__":{}', "safetensors"),
        (struct.pack("<Q", 2) + b"{}", "safetensors"),
        (struct.pack("<Q", 1 << 40) + b'{"a":1', None),  # a header larger than the file
        (struct.pack("<Q", 1000) + b"{a: 1", None),
        (b'{"a": 1}', None),
        (b"tjgg" + struct.pack("<I", 3), "GGML"),
        (b"PK\x03\x04" + bytes(26) + b"archive/data.pklFB", "PyTorch"),
        (b"PK\x03\x04" + bytes(26) + b"META-INF/MANIFEST.MF", None),
        (b"\x93NUMPY\x01\x00", "NumPy"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x1c\x00\x00\x00TFL3", "TensorFlow Lite"),
        (b"\x7fELF\x02\x01\x01", None),
        (b"", None),
    ],
)
def test_file_format_by_first_bytes(data: bytes, expected: str | None) -> None:
    assert file_format(head(data), 10 * MIB) == expected


@given(st.binary(max_size=64), st.integers(0, 1 << 50))
def test_file_format_of_any_bytes(data: bytes, size: int) -> None:
    file_format(data, size)


HEAPS = 64 * MIB  # alignment of the heaps of arenas
HOME = BASE + -BASE % HEAPS


class Heads:
    """The first words of some heaps."""

    def __init__(self, heads: dict[int, bytes]) -> None:
        self.heads = heads

    def read(self, address: int, size: int) -> bytes | None:
        return self.heads.get(address, b"")[:size] or None

    def present(self, start: int, end: int) -> list[Run]:
        return [(start, end)]


def private(start: int, size: int) -> Mapping:
    return Mapping(start=start, end=start + size, perms="rw-p", offset=0, device="00:00", inode=0, path="")


def test_arena_heap_that_grew_after_maps_was_read() -> None:
    further = HOME + HEAPS
    heads = {
        HOME: words(HOME + 0x30, 0, HEAPS, HEAPS),
        further: words(HOME + 0x30, HOME, 3 * MIB, 4 * MIB),  # the mapping had 2 MiB then
    }
    found = list(glibc_arenas(Heads(heads), [private(HOME, HEAPS), private(further, 2 * MIB)]))
    assert [(mark.start - HOME, mark.end - HOME) for mark in found] == [(0, HEAPS), (HEAPS, HEAPS + 2 * MIB)]


@pytest.mark.parametrize(
    "head",
    [
        words(HOME + 0x30, 0, 3 * MIB + 1, 4 * MIB),  # no whole pages
        words(HOME + 0x30, 0, 4 * MIB, 3 * MIB),  # more in use than writable
        words(HOME + 0x30, 0, HEAPS, 2 * HEAPS),
        words(HOME + 0x30, HOME, 3 * MIB, 4 * MIB),  # a first heap has none before it
        words(HOME + 0x1000, 0, 3 * MIB, 4 * MIB),  # the arena does not follow its header
        words(HOME + 9 * HEAPS, HOME, 3 * MIB, 4 * MIB),  # its arena does not exist
    ],
)
def test_memory_at_64_mib_that_is_not_an_arena_heap(head: bytes) -> None:
    assert list(glibc_arenas(Heads({HOME: head}), [private(HOME, 4 * MIB)])) == []
