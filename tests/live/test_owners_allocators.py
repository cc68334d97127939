"""Allocators other than glibc's are recognised by their own records: all their blocks, and nothing else."""

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from owned import MemoryReport, adds_up, group, kinds, owners_of, quiet_snapshot, read_report, settle
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
def seen_with(library: str, program: str = "own_allocator.c") -> Iterator[tuple[Snapshot, MemoryReport]]:
    """A snapshot of the program with this library preloaded. Checks that the snapshot adds up."""
    env = {"LD_PRELOAD": library} if library else {}
    with (
        running([compiled(program)], env=env, ready=None) as child,
        contextlib.closing(open_process(child.pid)) as process,
    ):
        report = read_report(child)
        seen = quiet_snapshot(process)
        adds_up(process, seen)
        yield seen, report


@pytest.mark.parametrize("kind", PRELOADED)
def test_allocator_owns_its_blocks_and_nothing_else(kind: str) -> None:
    if not has(PRELOADED[kind]):
        pytest.skip(f"needs {PRELOADED[kind]}: make setup-test")
    with seen_with(PRELOADED[kind]) as (seen, report):
        assert owners_of(seen, report.blocks).keys() == {kind}
        assert owners_of(seen, report.maps).keys() == {None}
        assert kinds(seen).keys() <= {kind, "thread-stack"}
        size = group(seen, kind)
        assert report.figures["kept"] <= size
        assert size <= report.figures["made"] * 1.1 + 8 * MIB
        # its own figure counts untouched pages, and not its records
        assert size <= report.figures.get("resident", size) + 8 * MIB
        assert OWN <= group(seen, "anonymous") <= OWN + 2 * MIB, "only its own mappings"


def test_glibc_memory_belongs_to_no_other_allocator() -> None:
    with seen_with("") as (seen, report):
        assert owners_of(seen, report.maps).keys() == {None}
        assert owners_of(seen, report.blocks).keys() <= {"glibc-arena", "malloc-mmapped", None}  # None: in [heap]
        assert not kinds(seen).keys() & PRELOADED.keys()
        heap = ("glibc arenas", "program heap ([heap])", "mmapped malloc blocks")
        assert (
            report.figures["kept"] <= sum(group(seen, name) for name in heap) <= report.figures["made"] * 1.1 + 8 * MIB
        )
        assert OWN <= group(seen, "anonymous") <= OWN + MIB


@pytest.mark.parametrize("kind", PRELOADED)
def test_small_heap(kind: str) -> None:
    """Its extents begin and end inside mappings."""
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
        report = read_report(child)
        seen = quiet_snapshot(process)
        adds_up(process, seen)
    unowned = [block for block in report.blocks if not owners_of(seen, [block]).get("musl")]
    assert sum(size for _, size in unowned) < PAGE, "at the unused end of a library's data"
    assert owners_of(seen, report.maps).keys() == {None}
    assert kinds(seen).keys() == {"musl"}
    assert report.figures["kept"] <= group(seen, "musl malloc") <= report.figures["made"] * 1.1 + 8 * MIB
    assert OWN <= group(seen, "anonymous") <= OWN + 2 * MIB, "its own mappings and the stacks of threads"


def test_allocator_linked_into_a_program() -> None:
    """ruff is written in Rust and contains jemalloc, as many programs and wheels do."""
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists() or b"jemalloc_bg_thd" not in ruff.read_bytes():
        pytest.skip("needs a ruff that has jemalloc in it")
    with running([ruff, "server"], ready=None) as child, contextlib.closing(open_process(child.pid)) as process:
        end = time.monotonic() + 20
        while group(take_snapshot(process)[0], "jemalloc") < MIB // 4:  # it does not print when it is ready
            assert time.monotonic() < end
        seen = quiet_snapshot(process)
        adds_up(process, seen)
    assert group(seen, "jemalloc") >= MIB // 4
    assert group(seen, "anonymous") < MIB // 4
