"""Cyclic and endless lists of threads and frames: reading them ends soon and is marked as cut."""

import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from memforensics.runtimes.cpython.find import CPythonRuntime
from memforensics.runtimes.cpython.offsets import offsets_for
from memforensics.runtimes.cpython.stacks import MAX_LINKS, bounded_stacks

VERSIONS = ((3, 8), (3, 12))
TID = 77


class Words:
    """Memory whose every word is a function of its address."""

    def __init__(self, word: Callable[[int], int]) -> None:
        self.word, self.reads = word, 0

    def read(self, address: int, size: int) -> bytes:
        self.reads += 1
        words = (self.word(address + 8 * n) & (1 << 64) - 1 for n in range(size // 8 + 1))
        return b"".join(struct.pack("<Q", word) for word in words)[:size]


def runtime(version: tuple[int, int]) -> CPythonRuntime:
    return CPythonRuntime(
        module=cast(Any, SimpleNamespace()),
        address=0x1000,
        version=version,
        version_text="",
        offsets=offsets_for(version),
        eval_ranges=(),
    )


@pytest.mark.parametrize("version", VERSIONS, ids=str)
@pytest.mark.parametrize(
    "word",
    [lambda at: 0x4000, lambda at: at + 0x1000, lambda at: 0x10000 + (at * 31 & 0xFFFF8)],
    ids=["ring-of-one", "no-end", "ring-of-many"],
)
def test_damaged_lists_end_and_are_marked_incomplete(version: tuple[int, int], word: Callable[[int], int]) -> None:
    memory = Words(word)
    _, is_whole = bounded_stacks(runtime(version), memory)
    assert not is_whole
    assert memory.reads < 3 * MAX_LINKS


def test_intact_lists_are_marked_complete() -> None:
    """One interpreter, one thread, no frame."""
    at = offsets_for((3, 11))
    words = {
        0x1000 + at.interpreters_head: 0x10000,
        0x10000 + at.threads_head: 0x20000,
        0x20000 + (at.native_thread_id or 0): TID,
    }
    stacks, is_whole = bounded_stacks(runtime((3, 11)), Words(lambda address: words.get(address, 0)), only=TID)
    assert ([(stack.tid, stack.frames, stack.cut) for stack in stacks], is_whole) == ([(TID, (), False)], True)
