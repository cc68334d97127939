"""What the recognisers accept and what they reject."""

import struct
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from memforensics.case.model import Mapping, OwnerMark
from memforensics.runtimes.cpython.pymalloc import is_pool
from memforensics.runtimes.glibc.mmapped_chunks import mmapped_size
from memforensics.runtimes.scene import ClaimedRanges, Spans
from memforensics.target.pagemap import PAGE, _extend_runs

BASE = 0x7F0000000000


def header(count: int, free: int, size_class: int, next_offset: int, max_next: int) -> bytes:
    return struct.pack("<I4xQQQIIII", count, free, BASE, BASE, 0, size_class, next_offset, max_next)


def test_pool_headers_of_both_pool_sizes() -> None:
    for pool in (4096, 16384):
        for size_class in range(32):
            block = 16 * (size_class + 1)
            assert is_pool(BASE, header(1, BASE + 48, size_class, 48 + 2 * block, pool - block), pool)
            assert not is_pool(BASE, header(1, BASE + 48, size_class, 48 + 2 * block, pool), pool)
            assert not is_pool(BASE, header(1, BASE + pool, size_class, 48 + 2 * block, pool - block), pool)


@given(st.binary(min_size=48, max_size=48))
def test_random_bytes_are_not_a_pool(data: bytes) -> None:
    assert not is_pool(BASE, data, 16384)


def test_size_of_a_mmapped_chunk() -> None:
    assert mmapped_size(struct.pack("<2Q", 0, 0x101002)) == 0x101000
    for before, size in ((0, 0x101000), (0, 0x101003), (0, 0x101012), (16, 0x101002), (0, 2), (0, 0)):
        assert mmapped_size(struct.pack("<2Q", before, size)) == 0
    assert mmapped_size(None) == 0


ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 10)), max_size=12)


@given(ranges)
def test_claimed_ranges_never_overlap(claims: list[tuple[int, int]]) -> None:
    claimed = ClaimedRanges()
    claimed.claim(OwnerMark(start=start, end=start + size, kind="x") for start, size in claims)
    taken = [address for mark in claimed.marks for address in range(mark.start, mark.end)]
    assert taken == sorted(set(taken))
    free = [address for start, end in claimed.free_parts(5, 50) for address in range(start, end)]
    assert free == [address for address in range(5, 50) if address not in set(taken)]
    rest = [address for start, end in claimed.claimed_parts(5, 50) for address in range(start, end)]
    assert sorted(free + rest) == list(range(5, 50))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5)), max_size=12))
def test_touching_mappings_are_one_span(gaps_and_sizes: list[tuple[int, int]]) -> None:
    mappings, at = [], 10
    for gap, size in gaps_and_sizes:
        at += gap + size
        mappings.append(Mapping(start=at - size, end=at, perms="rw-p", offset=0, device="", inode=0, path=""))
    covered = {address for m in mappings for address in range(m.start, m.end)}
    spans = Spans(mappings)
    for address in covered:
        end = spans.end_of(address)
        assert end not in covered
        assert covered.issuperset(range(address, end))
    assert spans.end_of(0) == 0


@given(st.lists(st.lists(st.booleans(), max_size=9), max_size=4))
def test_runs_of_present_pages_from_pagemap_entries(calls: list[list[bool]]) -> None:
    runs: list[tuple[int, int]] = []
    at = 0
    for pages in calls:
        _extend_runs(runs, at * PAGE, b"".join(struct.pack("<Q", there << 63 | 0x7F << 56 | 5) for there in pages))
        at += len(pages)
    everything = [there for pages in calls for there in pages]
    assert [page * PAGE for page, there in enumerate(everything) if there] == [
        address for start, end in runs for address in range(start, end, PAGE)
    ]
    assert all(before[1] < after[0] for before, after in pairwise(runs))
