"""Who owns a mapping, on real programs whose owners are known."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from owned import adds_up, quiet_snapshot, settle
from processes import compiled, python, running
from tracing import pythons

from memforensics.analysis.ownership import pieces
from memforensics.case.model import Snapshot
from memforensics.probes.proc.snapshots import take_snapshot
from memforensics.target import open_process
from memforensics.units import MIB

pytestmark = pytest.mark.live

OBJECTS = 300_000  # of 100 bytes: in blocks of 112, or with the debug hooks' 24 bytes more, of 128


@contextlib.contextmanager
def snapshot_of(command: list[str | Path]) -> Iterator[Snapshot]:
    with running(command) as child, contextlib.closing(open_process(child.pid)) as process:
        settle(process)
        yield take_snapshot(process)[0]


def layers_program(*words: object) -> list[str | Path]:
    return [compiled("own_layers.c"), *map(str, words)]


def kinds(snapshot: Snapshot) -> Counter[str]:
    return Counter(mark.kind for mark in snapshot.marks)


def group(snapshot: Snapshot, name: str) -> int:
    return sum(piece.bytes or 0 for piece in pieces(snapshot) if piece.group == name)


def test_every_arena_of_a_glibc_program() -> None:
    with snapshot_of(layers_program("arenas", 9, 3_000_000)) as seen:
        assert kinds(seen)["glibc-arena"] == 9
        assert 9 * 3_000_000 <= group(seen, "glibc arenas") <= 9 * (3_100_000 + 64 * 1024)


def test_arena_of_several_heaps() -> None:
    with snapshot_of(layers_program("arenas", 1, 150_000_000)) as seen:
        assert kinds(seen)["glibc-arena"] == 3, "heaps of 64 MiB"
        assert group(seen, "glibc arenas") >= 150_000_000


def test_stacks_of_living_and_ended_threads() -> None:
    with snapshot_of(layers_program("threads", 3, 200_000)) as seen:
        assert kinds(seen) == {"thread-stack": 3}
        assert 3 * 196_608 <= group(seen, "thread stacks") <= 3 * 262_144 + MIB
    with snapshot_of(layers_program("ended", 5, 0)) as seen:
        assert kinds(seen).keys() == {"thread-stack-unused"}


def test_mmapped_chunks_and_other_mappings() -> None:
    with snapshot_of(layers_program("malloc", 11, MIB, "anon", 7, MIB)) as seen:
        assert kinds(seen) == {"malloc-mmapped": 11}
        assert group(seen, "mmapped malloc blocks") == 11 * (MIB + 4096)
        assert group(seen, "anonymous") >= 7 * MIB


every_python = pytest.mark.parametrize(
    "interpreter", pythons(("3.9", "3.10", "3.12", "3.13")), ids=lambda path: Path(path).parts[-3]
)


def with_more_objects(interpreter: str, allocator: str) -> tuple[Snapshot, Snapshot]:
    """Before and after OBJECTS more are made; the waterfall adds up at both times."""
    command = python("own_objects.py", str(OBJECTS), interpreter=interpreter)
    env = {"PYTHONMALLOC": allocator}
    with running(command, env=env) as child, contextlib.closing(open_process(child.pid)) as process:
        settle(process)
        before = quiet_snapshot(process)
        adds_up(process, before)
        child.tell("again")
        child.wait_for("ready")
        settle(process)
        after = quiet_snapshot(process)
        adds_up(process, after)
    return before, after


def growth(before: Snapshot, after: Snapshot, *names: str) -> int:
    return sum(group(after, name) - group(before, name) for name in names)


@every_python
@pytest.mark.parametrize(("allocator", "block"), [("pymalloc", 112), ("pymalloc_debug", 128)])
def test_object_arenas_of_cpython(interpreter: str, allocator: str, block: int) -> None:
    before, after = with_more_objects(interpreter, allocator)
    grown = growth(before, after, "Python object arenas")
    assert OBJECTS * block <= grown <= OBJECTS * block * 1.05 + 2 * MIB
    assert group(after, "anonymous") < MIB, "what is no object is known too: the list's own block, stacks"


@every_python
@pytest.mark.parametrize("allocator", ["malloc", "malloc_debug"])
def test_malloced_objects_are_in_no_pymalloc_arena(interpreter: str, allocator: str) -> None:
    before, after = with_more_objects(interpreter, allocator)
    assert group(after, "Python object arenas") == 0
    heap = ("program heap ([heap])", "glibc arenas", "mmapped malloc blocks")
    assert OBJECTS * 112 <= growth(before, after, *heap) <= OBJECTS * 160 + 8 * MIB
    assert group(after, "anonymous") < MIB
