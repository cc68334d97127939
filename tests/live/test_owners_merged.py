"""Malloc'ed blocks stay recognised when the kernel merges other memory with theirs."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Child, compiled, running

from memforensics.analysis.ownership import pieces
from memforensics.case.model import Snapshot
from memforensics.probes.proc.snapshot_cache import SnapshotCache
from memforensics.probes.proc.snapshots import Snapshots, take_snapshot
from memforensics.runtimes.scene import FORGET_AFTER
from memforensics.target import Process, open_process
from memforensics.target.memory import Memory
from memforensics.units import MIB

pytestmark = pytest.mark.live

BLOCK = 64 * MIB
HOLE = BLOCK + 4096  # with the header's page


@contextlib.contextmanager
def merged(above: int, below: int, style: str) -> Iterator[tuple[Child, Process]]:
    command: list[str | Path] = [compiled("own_merged.c"), *map(str, (BLOCK, above, below, style))]
    with running(command) as child, contextlib.closing(open_process(child.pid)) as process:
        yield child, process


class Counting:
    """Memory, and how often it was read."""

    def __init__(self, memory: Memory) -> None:
        self.memory, self.reads = memory, 0

    def read(self, address: int, size: int) -> bytes:
        self.reads += 1
        return self.memory.read(address, size)

    def close(self) -> None:
        return


def after(child: Child, word: str) -> None:
    child.tell(word)
    child.wait_for("ready")


def blocks(snapshot: Snapshot) -> list[tuple[int, int]]:
    """Starts and sizes."""
    return [(mark.start, mark.end - mark.start) for mark in snapshot.marks if mark.kind == "malloc-mmapped"]


def bytes_of(snapshot: Snapshot, layer: str) -> int:
    return sum(piece.bytes or 0 for piece in pieces(snapshot) if piece.layer == layer)


@pytest.mark.parametrize("style", ["ones", "numbers"])
def test_block_is_found_again_after_a_merge_below(style: str) -> None:
    with merged(MIB, 160 * MIB, style) as (child, process):
        first, _ = take_snapshot(process)
        ((start, size),) = blocks(first)
        assert size == HOLE
        seen = [first]
        for _ in range(2):
            after(child, "below")
            seen.append(take_snapshot(process, known=seen[-1].marks)[0])
            assert blocks(seen[-1]) == [(start, HOLE)]
        heap = [bytes_of(snapshot, "native-heap") for snapshot in seen]
        assert max(heap) - min(heap) < MIB
        assert bytes_of(seen[2], "anon-mmap") - bytes_of(seen[0], "anon-mmap") == 320 * MIB


def test_probe_keeps_marks_between_snapshots() -> None:
    with merged(MIB, 160 * MIB, "numbers") as (child, process):
        probe = Snapshots(interval_s=0)
        probe.open(process, budget=None)  # type: ignore[arg-type]
        (first,) = probe.poll()
        after(child, "below")
        (second,) = probe.poll()
        probe.close()
        assert isinstance(first, Snapshot)
        assert isinstance(second, Snapshot)
        assert blocks(second) == blocks(first) != []


@pytest.mark.parametrize("style", ["ones", "numbers"])
def test_block_at_the_end_of_a_mapping_is_found_at_once(style: str) -> None:
    with merged(0, 160 * MIB, style) as (child, process):
        after(child, "below")
        assert [size for _, size in blocks(take_snapshot(process)[0])] == [HOLE]


def test_block_amid_other_memory_is_found_at_once() -> None:
    with merged(MIB, 2 * MIB, "ones") as (child, process):
        after(child, "below")
        assert [size for _, size in blocks(take_snapshot(process)[0])] == [HOLE]


def test_known_marks_are_verified() -> None:
    with merged(MIB, 16 * MIB, "numbers") as (child, process):
        first, _ = take_snapshot(process)
        assert blocks(first) != []
        after(child, "replace")
        assert blocks(take_snapshot(process, known=first.marks)[0]) == []
        after(child, "below")
        assert blocks(take_snapshot(process)[0]) == [], "numbers are no headers, however much they look like one"


@pytest.mark.parametrize(("above", "style"), [(0, "ones"), (0, "numbers"), (MIB, "numbers")])
def test_block_split_by_madvise_is_one_block(above: int, style: str) -> None:
    with merged(above, 160 * MIB, style) as (child, process):
        after(child, "divide")
        alone, _ = take_snapshot(process)
        assert sum(size for _, size in blocks(alone)) == HOLE
        after(child, "below")
        for known in (alone.marks, ()):
            seen, _ = take_snapshot(process, known=known)
            assert sum(size for _, size in blocks(seen)) == HOLE
            assert abs(bytes_of(seen, "native-heap") - bytes_of(alone, "native-heap")) < MIB
            assert abs(bytes_of(seen, "anon-mmap") - bytes_of(alone, "anon-mmap") - 160 * MIB) < MIB


def test_only_new_memory_is_searched_again() -> None:
    """Numbers that look like headers are no one's: the second look asks for next to none of them."""
    with merged(0, 160 * MIB, "numbers") as (child, process):
        cache = SnapshotCache()
        after(child, "below")
        first, _ = take_snapshot(process, "pagemap", cache=cache)
        assert [size for _, size in blocks(first)] == [HOLE]
        counted = Counting(process.memory)
        process._memory = counted  # type: ignore[assignment]  # what is asked of it is counted
        again, _ = take_snapshot(process, "pagemap", cache=cache)
        assert blocks(again) == blocks(first)
        assert counted.reads < 1000
        for turn in range(FORGET_AFTER):
            if turn == 2:
                after(child, "below")
            later, _ = take_snapshot(process, "pagemap", cache=cache)
            assert blocks(later) == blocks(first)
        assert counted.reads > 10_000
