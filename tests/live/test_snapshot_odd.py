"""Readers on rarer processes: odd memory, older kernels, 32 bits, other namespaces, and memory that changes."""

import contextlib
import json
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from owned import settle
from processes import TESTS, compiled, running

from memforensics.case.model import Mapping
from memforensics.errors import NotATarget, TargetError
from memforensics.probes.proc.snapshot_cache import SnapshotCache
from memforensics.probes.proc.snapshots import Reader, take_snapshot
from memforensics.target import Process, open_process
from memforensics.target.pagemap import PAGE

pytestmark = pytest.mark.live

MEMFORENSICS = Path(sys.executable).with_name("memforensics")
COUNTED: tuple[Reader, ...] = ("pagemap", "entries")
FIGURES = ("rss", "anonymous", "anon_huge", "shmem_huge", "file_huge")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """More mappings than `auto` reads by smaps."""
    command: list[str | Path] = [compiled("snap_odd.c"), tmp_path_factory.mktemp("odd"), "1200"]
    with running(command) as child, contextlib.closing(open_process(child.pid)) as process:
        settle(process)
        yield process


def taken(process: Process, reader: Reader) -> list[Mapping]:
    """Without [vsyscall], which is no mapping of the process's own."""
    seen, losses = take_snapshot(process, reader, marks=False)
    assert not losses
    return [m for m in seen.mappings if m.path != "[vsyscall]"]


def compare(process: Process) -> None:
    """All readers with smaps."""
    whole = taken(process, "smaps")
    for reader in COUNTED:
        for mapping, first in zip(taken(process, reader), whole, strict=True):
            known = {name: getattr(mapping, name) for name in FIGURES if getattr(mapping, name) is not None}
            assert known.keys() >= {"rss", "anonymous"}
            assert known == {name: getattr(first, name) for name in known}, (reader, first)


def test_all_readers_count_odd_memory_alike(odd: Process) -> None:
    compare(odd)


def test_names_of_mappings(odd: Process) -> None:
    names = {m.path.rpartition("/")[2] for m in taken(odd, "maps")}
    assert names >= {"two words", "new\nline", "gone (deleted)", "7f00-7f01 rw-p", "caf\udce9 \udcff (deleted)"}
    assert names >= {"memfd:huge \\ pages (deleted)", "SYSV00000000 (deleted)"}
    exact = {m.path.rpartition("/")[2] for m in taken(odd, "procmap")}
    assert exact - names == {"back\\012slash"}, "in maps a backslash is not told from the kernel's own"
    assert names - exact == {"back\nslash"}


def on_older_kernel(process: Process, *options: str) -> Any:
    command = [sys.executable, TESTS / "older_kernel.py", *options, MEMFORENSICS, "snapshot", process.pid, "--json"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.needs_root
def test_kernel_without_pagemap_scan_is_read_by_entries(odd: Process) -> None:
    seen = on_older_kernel(odd)
    assert seen["reader"] == "pagemap-entries"
    assert [m["rss"] for m in seen["mappings"]] == [m.rss for m in take_snapshot(odd, "smaps", marks=False)[0].mappings]


@pytest.mark.needs_root
def test_smaps_is_read_if_the_zero_page_is_unknown(odd: Process) -> None:
    assert on_older_kernel(odd, "--no-sys-admin")["reader"] == "smaps"


def test_32_bit_process() -> None:
    try:
        program = compiled("snap_32bit.c", "-m32", "-nostdlib", "-static", "-ffreestanding", "-fno-stack-protector")
    except subprocess.CalledProcessError:
        pytest.skip("no 32-bit compiler")
    with running([program]) as child, contextlib.closing(open_process(child.pid)) as process:
        settle(process)
        compare(process)
        data = max((m for m in taken(process, "pagemap") if "w" in m.perms), key=lambda m: m.size)
        assert data.rss == 50 * PAGE
        assert data.end < 1 << 32


@pytest.mark.needs_root
def test_a_process_in_namespaces_of_its_own() -> None:
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("needs unshare")
    with running([*unshare, compiled("own_layers.c"), "anon", "5", str(37 * PAGE), "locked", "1", "4096"]) as child:
        (inner,) = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        with contextlib.closing(open_process(int(inner))) as process:
            settle(process)
            compare(process)
            assert sum(m.rss == 37 * PAGE for m in taken(process, "pagemap")) >= 5


def test_kernel_thread_has_no_memory() -> None:
    if Path("/proc/2/comm").read_text() != "kthreadd\n":
        pytest.skip("in a PID namespace: no kernel threads to be seen")
    with pytest.raises(NotATarget):
        open_process(2)


@pytest.mark.parametrize("reader", ["smaps", "pagemap", "entries", "procmap"])
def test_memory_that_changes_while_it_is_read(reader: Reader) -> None:
    with running([compiled("snap_churn.c")]) as child, contextlib.closing(open_process(child.pid)) as process:
        cache = SnapshotCache()
        for _ in range(12):
            for each in (None, cache):
                seen, _ = take_snapshot(process, reader, marks=False, cache=each)
                ordered = [edge for m in seen.mappings for edge in (m.start, m.end)]
                assert ordered == sorted(ordered), "one mapping after the other"
                assert all((m.anonymous or 0) <= (m.rss or 0) <= m.size for m in seen.mappings)


@pytest.mark.parametrize("reader", ["smaps", "pagemap", "entries"])
def test_process_that_ends_while_it_is_read(reader: Reader) -> None:
    with running([compiled("snap_churn.c"), "200"]) as child, contextlib.closing(open_process(child.pid)) as process:
        snapshots = iter(partial(take_snapshot, process, reader, cache=SnapshotCache()), None)
        with pytest.raises(TargetError):
            deque(snapshots, maxlen=0)
