"""Every reader against every other, on a process that stands still and whose memory is easily counted wrong."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from owned import settle
from processes import compiled, running

from memforensics.case.model import Mapping, Snapshot
from memforensics.probes.proc.snapshot_cache import TURNS, SnapshotCache
from memforensics.probes.proc.snapshots import READERS, Reader, take_snapshot
from memforensics.target import Process, open_process
from memforensics.target.pagemap import ABSENT, PAGE, PRESENT, PRESENT_KINDS, SCAN_BYTES, Pagemap, Query
from memforensics.target.smaps import parse_smaps
from memforensics.units import MIB

pytestmark = pytest.mark.live

IDENTITY = ("start", "end", "perms", "offset", "device", "inode", "path")
HUGE = ("anon_huge", "shmem_huge", "file_huge")
COUNTED = ("rss", "pss", "anonymous", "private_dirty", "swap", "locked", *HUGE, "flags")


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A process that waits for a line that never comes."""
    file = tmp_path_factory.mktemp("kinds") / "file.bin"
    file.write_bytes(os.urandom(64 * PAGE))
    with running([compiled("snap_kinds.c"), file]) as child, contextlib.closing(open_process(child.pid)) as process:
        settle(process)
        yield process


def taken(process: Process, reader: Reader) -> Snapshot:
    return take_snapshot(process, reader, marks=False)[0]


def fields(mappings: Sequence[Mapping], names: Sequence[str]) -> list[tuple[Any, ...]]:
    """[vsyscall] left out: it is no mapping of the process's own, and PROCMAP_QUERY does not tell of it."""
    return [tuple(getattr(m, name) for name in names) for m in mappings if m.path != "[vsyscall]"]


def known(snapshot: Snapshot) -> set[str]:
    """The figures that a reader has, of any mapping."""
    return {name for name in COUNTED if any(getattr(m, name) is not None for m in snapshot.mappings)}


def test_every_reader_against_every_other(still: Process) -> None:
    seen = {reader: taken(still, reader) for reader in READERS}
    first = seen["smaps"]
    assert known(first) == set(COUNTED)
    assert known(seen["pagemap"]) == {"rss", "anonymous", *HUGE}
    assert known(seen["entries"]) == {"rss", "anonymous"}
    for reader, other in seen.items():
        assert fields(other.mappings, IDENTITY) == fields(first.mappings, IDENTITY), reader
        names = sorted(known(other) - {"pss"})  # of libraries: others come and go that share the page
        assert fields(other.mappings, names) == fields(first.mappings, names), reader
        assert other.rollup is not None
        assert first.rollup is not None
        assert other.rollup.rss_anon == first.rollup.rss_anon


def test_sums_equal_those_of_the_kernel(still: Process) -> None:
    by_mapping, rollup = taken(still, "pagemap"), taken(still, "rollup").rollup
    (sums,) = parse_smaps(still.read_text("smaps_rollup")).mappings
    assert sum(m.rss or 0 for m in by_mapping.mappings) == sums.rss
    assert sum(m.anonymous or 0 for m in by_mapping.mappings) == sums.anonymous
    assert rollup is not None
    assert sum(m.anon_huge or 0 for m in by_mapping.mappings) == rollup.anon_huge == sums.anon_huge
    assert 0 < (rollup.pss or 0) <= (sums.rss or 0)


def test_readers_on_known_layouts(still: Process) -> None:
    seen = taken(still, "pagemap")
    sizes = {(m.size, m.perms, m.path.rpartition("/")[2]): m for m in seen.mappings}
    touched = {size: m.rss for (size, perms, path), m in sizes.items() if perms == "rw-p" and not path}
    assert touched[3072 * MIB] == -(-4096 // 3) * PAGE, "more runs than the kernel's own buffer of 512"
    assert touched[1024 * MIB] == 8 * PAGE
    assert touched[16 * MIB] == 9 * PAGE
    assert touched[2 * MIB] == 0, "the zero page is no memory"
    assert [m.rss for m in seen.mappings if m.perms == "---p" and not m.path and m.rss] == [MIB]
    copied = sizes[64 * PAGE, "rw-p", "file.bin"]
    assert copied.anonymous == 5 * PAGE


@pytest.mark.parametrize("query", [PRESENT, PRESENT_KINDS, ABSENT])
def test_each_call_scans_a_bounded_range(still: Process, query: Query) -> None:
    """Page tables are walked whether they hold pages or not."""
    sparse = next(m for m in taken(still, "maps").mappings if m.size == 3072 * MIB)
    with Pagemap(still.pid, still.proc) as pagemap:
        at, calls = sparse.start, 0
        while at < sparse.end:
            before, calls = at, calls + 1
            _, at = pagemap.call(query, at, sparse.end)
            assert before < at <= min(before + SCAN_BYTES, sparse.end)
        assert calls >= 6


@pytest.mark.parametrize("reader", ["pagemap", "entries"])
def test_cached_snapshot_equals_a_new_one(still: Process, reader: Reader) -> None:
    cache = SnapshotCache()
    whole = taken(still, reader)
    for turn in range(2 * TURNS):
        again, _ = take_snapshot(still, reader, marks=False, cache=cache)
        assert fields(again.mappings, (*IDENTITY, *COUNTED)) == fields(whole.mappings, (*IDENTITY, *COUNTED))
        ages = [again.t_ns - (m.read_ns or 0) for m in again.mappings]
        assert min(ages) == 0, "an eighth is read anew each time"
        assert (max(ages) > 0) == (turn > 0), "what is older says so"


def test_new_and_growing_mappings_are_read_again() -> None:
    program = compiled("own_layers.c")
    words: list[str | Path] = [program, "anon", "200", "151552", "malloc", "4000", "1000"]
    with running(words) as child, contextlib.closing(open_process(child.pid)) as process:
        cache = SnapshotCache()
        take_snapshot(process, "pagemap", marks=False, cache=cache)
        child.tell("again")
        child.wait_for("ready")
        settle(process)
        again, _ = take_snapshot(process, "pagemap", marks=False, cache=cache)
        whole = taken(process, "pagemap")
        assert fields(again.mappings, (*IDENTITY, *COUNTED)) == fields(whole.mappings, (*IDENTITY, *COUNTED))


def test_cache_is_emptied_for_another_process(still: Process) -> None:
    cache = SnapshotCache()
    take_snapshot(still, "pagemap", marks=False, cache=cache)
    program: list[str | Path] = [compiled("own_layers.c"), "anon", "2", "4096"]
    with running(program) as child, contextlib.closing(open_process(child.pid)) as process:
        seen, _ = take_snapshot(process, "pagemap", marks=False, cache=cache)
        assert all(m.read_ns == seen.t_ns for m in seen.mappings)
        assert fields(seen.mappings, IDENTITY) == fields(taken(process, "maps").mappings, IDENTITY)
