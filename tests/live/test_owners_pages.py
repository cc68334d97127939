"""Kinds of pages whose amounts are known to the byte, and stacks that outlive their threads."""

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from owned import adds_up, group, kinds, quiet_snapshot
from processes import compiled, running

from memforensics.analysis.ownership import HUGE_PAGES, layers
from memforensics.case.model import Snapshot
from memforensics.probes.snapshots import Reader
from memforensics.target import Process, open_process
from memforensics.units import KIB, MIB

pytestmark = pytest.mark.live

HUGE = 2 * MIB
POOL = Path("/proc/sys/vm/nr_hugepages")


@contextlib.contextmanager
def program(*words: object) -> Iterator[Process]:
    command = [compiled("own_layers.c"), *map(str, words)]
    with running(command) as child, contextlib.closing(open_process(child.pid)) as process:
        yield process


def beside(seen: Snapshot) -> dict[str, int]:
    """Layers outside RSS."""
    return {row.layer: row.bytes or 0 for row in layers(None, seen) if not row.in_rss and row.bytes}


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """A pool of hugetlb pages, given back at the end."""
    if os.geteuid() != 0 or not POOL.exists():
        pytest.skip("needs root, and a kernel with hugetlb pages")
    before = int(POOL.read_text())
    try:
        POOL.write_text(str(before + 5))
        if int(POOL.read_text()) < before + 5:
            pytest.skip("needs 10 MiB of contiguous memory")
        yield
    finally:
        POOL.write_text(str(before))


@pytest.mark.parametrize("reader", ["smaps", "pagemap"])
def test_hugetlb_pages_lie_beside_rss(huge_pages: None, reader: Reader) -> None:
    with program("huge", 1, 2 * HUGE, "hugememfd", 1, HUGE, "hugesysv", 1, HUGE, "memfd", 1, MIB) as process:
        seen = quiet_snapshot(process, reader)
        adds_up(process, seen)
    assert seen.rollup is not None
    assert seen.rollup.hugetlb == 4 * HUGE
    assert group(seen, HUGE_PAGES, in_rss=False) == 4 * HUGE
    assert beside(seen) == {"anon-mmap": 2 * HUGE, "shmem": 2 * HUGE}
    assert group(seen, "memfd pool") == MIB


def test_shared_memory_locked_memory_and_huge_pages_on_advice() -> None:
    with program("sysv", 3, MIB, "shm", 2, MIB, "memfd", 1, MIB, "locked", 2, 3 * MIB, "thp", 1, 2 * HUGE) as process:
        seen = quiet_snapshot(process)
        adds_up(process, seen)
    assert group(seen, "SysV shared memory") == 3 * MIB
    assert group(seen, "POSIX shared memory (/dev/shm)") == 2 * MIB
    assert group(seen, "memfd pool") == MIB
    assert seen.rollup is not None
    assert seen.rollup.locked == 6 * MIB == sum(mapping.locked or 0 for mapping in seen.mappings)
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if huge.exists() and "[never]" not in huge.read_text():
        assert sum(mapping.anon_huge or 0 for mapping in seen.mappings) in (0, HUGE, 2 * HUGE), "as memory allows"


def test_stacks_of_threads_that_ended_and_nobody_joined() -> None:
    with program("unjoined", 7, 200_000) as process:
        seen = quiet_snapshot(process)
        adds_up(process, seen)
    assert kinds(seen) == {"thread-stack-unused": 7}
    # glibc gives back all but PTHREAD_STACK_MIN, 16 KiB, when a thread ends (nptl/allocatestack.c, advise_stack_range)
    assert 7 * 16 * KIB <= group(seen, "thread stacks of threads that ended") <= 7 * 32 * KIB


def safetensors(size: int) -> bytes:
    header = b'{"w":{"dtype":"U8","shape":[16],"data_offsets":[0,16]}}'
    return (struct.pack("<Q", len(header)) + header).ljust(size, b"\1")


def gguf(size: int) -> bytes:
    return (b"GGUF" + struct.pack("<IQQ", 3, 0, 0)).ljust(size, b"\1")


def test_weights_are_known_by_what_is_in_them(tmp_path: Path) -> None:
    """As the hub's cache names them (by hash), under a misleading name, and a name that promises what is not there."""
    size = 2 * MIB
    files = {"3f5ac0": safetensors(size), "model.txt": gguf(size), "fake.safetensors": bytes(size)}
    words: list[object] = []
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        words += ["file", 1, size, tmp_path / name]
    in_memory = Path("/dev/shm") / f"own_layers.{os.getpid()}.weights"
    in_memory.write_bytes(gguf(size))
    try:
        with program(*words, "file", 1, size, in_memory) as process:
            seen = quiet_snapshot(process)
            adds_up(process, seen)
    finally:
        in_memory.unlink()
    assert group(seen, "weights 3f5ac0") == group(seen, "weights model.txt") == size
    assert group(seen, "file fake.safetensors") == size
    assert group(seen, "weights 3f5ac0") == size
    assert seen.rollup is not None
    assert seen.rollup.rss_shmem == size == group(seen, "POSIX shared memory (/dev/shm)")
