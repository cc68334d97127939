"""Allocators that are not glibc's, by their own records: every block is theirs, and nothing else is."""

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from owned import Told, adds_up, group, kinds, owners_of, quiet_snapshot, settle, told_by
from processes import compiled, running

from memforensics.case.model import Snapshot
from memforensics.probes.proc.snapshots import take_snapshot
from memforensics.target import open_process
from memforensics.target.pagemap import PAGE
from memforensics.units import MIB

pytestmark = pytest.mark.live

PRELOADED = {"jemalloc": "libjemalloc.so.2", "tcmalloc": "libtcmalloc_minimal.so.4", "mimalloc": "libmimalloc.so.2"}
OWN = (3 + 6 + 4 + 5 + 2) * MIB  # own_allocator.c: its own mappings


def has(library: str) -> bool:
    return any(Path("/usr/lib").glob(f"*/{library}"))


@contextlib.contextmanager
def seen_with(library: str, program: str = "own_allocator.c") -> Iterator[tuple[Snapshot, Told]]:
    """A snapshot of the program with that library preloaded; that it adds up is looked at on the way."""
    env = {"LD_PRELOAD": library} if library else {}
    with (
        running([compiled(program)], env=env, ready=None) as child,
        contextlib.closing(open_process(child.pid)) as process,
    ):
        told = told_by(child)
        seen = quiet_snapshot(process)
        adds_up(process, seen)
        yield seen, told


@pytest.mark.parametrize("kind", PRELOADED)
def test_all_that_an_allocator_holds_and_nothing_else(kind: str) -> None:
    if not has(PRELOADED[kind]):
        pytest.skip(f"needs {PRELOADED[kind]}: make setup-test")
    with seen_with(PRELOADED[kind]) as (seen, told):
        assert owners_of(seen, told.blocks).keys() == {kind}
        assert owners_of(seen, told.maps).keys() == {None}
        assert kinds(seen).keys() <= {kind, "thread-stack"}
        size = group(seen, kind)
        assert told.of_itself["kept"] <= size
        assert size <= told.of_itself["made"] * 1.1 + 8 * MIB
        # by its own word; it counts pages that nobody touched yet, and not its records
        assert size <= told.of_itself.get("resident", size) + 8 * MIB
        assert OWN <= group(seen, "anonymous") <= OWN + 2 * MIB, "its own mappings, and little else"


def test_what_is_glibcs_is_no_other_allocators() -> None:
    with seen_with("") as (seen, told):
        assert owners_of(seen, told.maps).keys() == {None}
        assert owners_of(seen, told.blocks).keys() <= {"glibc-arena", "malloc-mmapped", None}  # None: in [heap]
        assert not kinds(seen).keys() & PRELOADED.keys()
        heap = ("glibc arenas", "program heap ([heap])", "mmapped malloc blocks")
        assert (
            told.of_itself["kept"] <= sum(group(seen, name) for name in heap) <= told.of_itself["made"] * 1.1 + 8 * MIB
        )
        assert OWN <= group(seen, "anonymous") <= OWN + MIB


@pytest.mark.parametrize("kind", PRELOADED)
def test_a_small_heap(kind: str) -> None:
    """Whose extents begin and end where no mapping does."""
    if not has(PRELOADED[kind]):
        pytest.skip(f"needs {PRELOADED[kind]}: make setup-test")
    command: list[str | Path] = [compiled("own_layers.c"), "malloc", "30", "40000", "threads", "3", "30000"]
    with (
        running(command, env={"LD_PRELOAD": PRELOADED[kind]}) as child,
        contextlib.closing(open_process(child.pid)) as process,
    ):
        settle(process)
        seen = quiet_snapshot(process)
        adds_up(process, seen)
    assert group(seen, kind) >= 30 * 40_000
    assert group(seen, "anonymous") < MIB // 4


@pytest.mark.skipif(shutil.which("musl-gcc") is None, reason="needs musl-gcc: make setup-test")
@pytest.mark.parametrize("linking", ["", "-static"])
def test_heap_of_a_program_with_musl(linking: str) -> None:
    program = compiled("own_allocator.c", *([linking] if linking else []), compiler="musl-gcc")
    with running([program], ready=None) as child, contextlib.closing(open_process(child.pid)) as process:
        told = told_by(child)
        seen = quiet_snapshot(process)
        adds_up(process, seen)
    unowned = [block for block in told.blocks if not owners_of(seen, [block]).get("musl")]
    assert sum(size for _, size in unowned) < PAGE, "at the unused end of a library's data"
    assert owners_of(seen, told.maps).keys() == {None}
    assert kinds(seen).keys() == {"musl"}
    assert told.of_itself["kept"] <= group(seen, "musl malloc") <= told.of_itself["made"] * 1.1 + 8 * MIB
    assert OWN <= group(seen, "anonymous") <= OWN + 2 * MIB, "its own mappings and the stacks of threads"


def test_an_allocator_within_a_program() -> None:
    """ruff is written in Rust and brings jemalloc along, as many programs and wheels do."""
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists() or b"jemalloc_bg_thd" not in ruff.read_bytes():
        pytest.skip("needs a ruff that has jemalloc in it")
    with running([ruff, "server"], ready=None) as child, contextlib.closing(open_process(child.pid)) as process:
        end = time.monotonic() + 20
        while group(take_snapshot(process)[0], "jemalloc") < MIB // 4:  # it says nothing when it is ready
            assert time.monotonic() < end
        seen = quiet_snapshot(process)
        adds_up(process, seen)
    assert group(seen, "jemalloc") >= MIB // 4
    assert group(seen, "anonymous") < MIB // 4
