"""Which words are references to a block, and which blocks are old enough to be looked for."""

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memforensics.case.model import Cohort
from memforensics.probes.heap.references import (
    LEAST_AGE_NS,
    SAMPLED_BLOCKS,
    Block,
    _SearchedBlocks,
    least_age_ns,
    old_blocks,
)

SECOND = 1_000_000_000
START, END = 0x7F31_C000_0000, 0x7F31_C000_8000
BLOCK = Block(5, ((START, END),))
ELSEWHERE = 0x5555_0000_0000


def _is_found(data: bytes, at: int = ELSEWHERE, block: Block = BLOCK) -> bool:
    searched = _SearchedBlocks([block])
    searched.check_memory(at, data)
    return not searched.any


@pytest.mark.parametrize(
    ("word", "found"),
    [
        (START, True),
        (END - 1, True),
        (START - 1, False),
        (END, False),
        (START | 0xBEEF << 48, True),
        (START + 3, True),
        (START >> 12, True),
        ((END >> 12) - 1, True),
        ((START >> 12) - 1, False),
        (END >> 12, False),
        (0, False),
        (2**64 - 1, False),
        (START + (1 << 32), False),
        (2 * START + 1, True),  # an integer with a tag bit
        (2 * END + 1, False),
        (START + 8 & (1 << 30) - 1 | START + 8 >> 30 << 32, True),  # an integer of Python: digits of 30 bits
        (END & (1 << 30) - 1 | END >> 30 << 32, False),
        (int.from_bytes(struct.pack("<d", START + 8), "little"), True),  # a number of JavaScript
        (int.from_bytes(struct.pack("<d", END), "little"), False),
    ],
)
@pytest.mark.parametrize("offset", [0, 4, 8, 500])
def test_words_that_refer_to_a_block(word: int, found: bool, offset: int) -> None:
    assert _is_found(bytes(offset) + struct.pack("<Q", word) + bytes(12)) is found


near = st.integers(START - 9000, END + 9000).flatmap(
    lambda value: st.sampled_from(
        [
            value,
            value >> 12,
            value << 1,
            value & (1 << 30) - 1 | value >> 30 << 32,
            int.from_bytes(struct.pack("<d", value), "little"),
        ]
    )
)


def _values(word: int) -> list[int]:
    number = struct.unpack("<d", word.to_bytes(8, "little"))[0]
    digits = word & 0xFFFFFFFF, word >> 32
    return [
        word & (1 << 48) - 1,
        word << 12,
        word >> 1,
        digits[0] | digits[1] << 30 if digits[0] < 1 << 30 else 0,
        int(number) if 1 <= number < 1 << 62 else 0,
    ]


@given(
    words=st.lists(st.integers(0, 2**64 - 1) | near, max_size=40),
    offset=st.sampled_from([0, 4]),
)
def test_every_word_is_compared(words: list[int], offset: int) -> None:
    data = bytes(offset) + struct.pack(f"<{len(words)}Q", *words)
    seen = [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data) - 7, 4)]
    expected = any(START <= value < END for word in seen for value in _values(word))
    assert _is_found(data) is expected


def test_a_block_does_not_point_to_itself() -> None:
    data = struct.pack("<3Q", START, START + 64, START >> 12)
    assert not _is_found(data, at=START + 128)
    assert _is_found(data, at=END)


def test_a_split_block_is_all_its_parts() -> None:
    cut = Block(5, ((START, START + 4096), (START + 8192, END)))
    assert _is_found(struct.pack("<Q", END - 8), block=cut)
    assert not _is_found(struct.pack("<Q", START + 5000), block=cut)
    assert not _is_found(struct.pack("<Q", END - 8), at=START, block=cut)


def test_reference_to_one_block_is_not_one_to_its_neighbour() -> None:
    neighbour = Block(6, ((END, END + 4096),))
    searched = _SearchedBlocks([BLOCK, neighbour])
    searched.check_memory(START, struct.pack("<Q", END))
    assert searched.blocks() == {BLOCK}
    searched.check_words([START + 1])
    assert not searched.any


def _cohort(at: int, born: int, left: int) -> Cohort:
    return Cohort(
        born_from_ns=at * SECOND,
        born_to_ns=(at + 10) * SECOND,
        born_bytes=born,
        born_count=born,
        left_bytes=left,
        left_count=left,
    )


def test_old_blocks_outlive_the_median_lifetime() -> None:
    cohorts = [_cohort(0, 100, 10), _cohort(10, 100, 10), _cohort(20, 100, 40), _cohort(30, 100, 90)]
    assert least_age_ns(cohorts, 40 * SECOND) == 20 * SECOND


def test_old_blocks_when_none_is_freed() -> None:
    cohorts = [_cohort(0, 0, 0), _cohort(10, 100, 100), _cohort(20, 100, 100), _cohort(30, 100, 100)]
    assert least_age_ns(cohorts, 40 * SECOND) == 15 * SECOND
    assert least_age_ns([], 40 * SECOND) == LEAST_AGE_NS


def test_sample_holds_old_blocks() -> None:
    blocks = [Block(n * SECOND // 10, ((n << 20, (n << 20) + 4096),)) for n in range(400)]
    sample = old_blocks(blocks, [_cohort(0, 400, 400)], 40 * SECOND, random.Random(3))
    assert len(sample) == len(set(sample)) == SAMPLED_BLOCKS
    assert all(block.born_ns <= 20 * SECOND for block in sample)
    assert len(old_blocks(blocks[:5], [_cohort(0, 400, 400)], 40 * SECOND, random.Random(3))) == 5
