"""Kinds of pages whose amounts are known to the byte, and stacks that outlive their threads."""

import contextlib
import json
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli import memforensics
from owned import adds_up, gguf, group, kinds, quiet_snapshot
from processes import compiled, running

from memforensics.analysis.ownership import HUGE_PAGES, kernel_totals, layers
from memforensics.case.model import Snapshot
from memforensics.probes.proc.snapshots import Reader
from memforensics.target import Process, open_process
from memforensics.target.smaps import parse_smaps
from memforensics.units import KIB, MIB

pytestmark = pytest.mark.live

HUGE = 2 * MIB
POOL = Path("/proc/sys/vm/nr_hugepages")
ZRAM = Path("/sys/class/zram-control")


@contextlib.contextmanager
def program(*words: object) -> Iterator[Process]:
    command: list[str | Path] = [compiled("own_layers.c"), *map(str, words)]
    with running(command) as child, contextlib.closing(open_process(child.pid)) as process:
        yield process


def outside(seen: Snapshot) -> dict[str, int]:
    """Layers outside RSS."""
    return {row.layer: row.bytes or 0 for row in layers(None, seen) if not row.in_rss and row.bytes}


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """A pool of hugetlb pages, given back at the end."""
    try:
        before = int(POOL.read_text())
        POOL.write_text(str(before + 5))
    except OSError as error:
        pytest.skip(f"needs root, and a kernel with hugetlb pages: {error}")
    try:
        if int(POOL.read_text()) < before + 5:
            pytest.skip("needs 10 MiB of contiguous memory")
        yield
    finally:
        POOL.write_text(str(before))


@pytest.mark.parametrize("reader", ["smaps", "pagemap"])
def test_hugetlb_pages_are_apart_from_rss(huge_pages: None, reader: Reader) -> None:
    with program("huge", 1, 2 * HUGE, "hugememfd", 1, HUGE, "hugesysv", 1, HUGE, "memfd", 1, MIB) as process:
        seen = quiet_snapshot(process, reader)
        adds_up(process, seen)
    assert seen.rollup is not None
    assert seen.rollup.hugetlb == 4 * HUGE
    assert group(seen, HUGE_PAGES, in_rss=False) == 4 * HUGE
    assert outside(seen) == {"anon-mmap": 2 * HUGE, "shmem": 2 * HUGE}
    assert group(seen, "memfd pool") == MIB


def test_shared_memory_and_locked_memory() -> None:
    with program("sysv", 3, MIB, "shm", 2, MIB, "memfd", 1, MIB, "locked", 2, 3 * MIB) as process:
        seen = quiet_snapshot(process)
        adds_up(process, seen)
    assert group(seen, "SysV shared memory") == 3 * MIB
    assert group(seen, "POSIX shared memory (/dev/shm)") == 2 * MIB
    assert group(seen, "memfd pool") == MIB
    assert kernel_totals([seen]).locked == 6 * MIB == sum(mapping.locked or 0 for mapping in seen.mappings)


@pytest.mark.parametrize("reader", ["smaps", "pagemap"])
def test_transparent_huge_pages_of_each_kind(reader: Reader, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(os.urandom(HUGE))
    with file.open("rb") as stream:  # a folio is as large as what reads it first asks for
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with program("thp", 1, 3 * HUGE, "thpmemfd", 1, 2 * HUGE, "thpfile", 1, HUGE, file, "anon", 1, MIB) as process:
        seen = quiet_snapshot(process, reader)
        adds_up(process, seen)
        (kernels,) = parse_smaps(process.read_text("smaps_rollup")).mappings
    sums = kernel_totals([seen])
    assert (sums.anon_huge, sums.shmem_huge, sums.file_huge) == (
        kernels.anon_huge,
        kernels.shmem_huge,
        kernels.file_huge,
    )
    assert group(seen, "memfd pool") == 2 * HUGE, "in RSS, whatever pages it is in"
    if not kernels.anon_huge or not kernels.shmem_huge:
        pytest.skip("needs a kernel that makes huge pages at once (MADV_COLLAPSE, 6.1+), and has 10 MiB for them")
    assert (sums.anon_huge, sums.shmem_huge) == (3 * HUGE, 2 * HUGE)
    assert sums.file_huge in (0, HUGE), "where the file system has folios that large (ext4: 6.16+)"


@pytest.fixture
def swap() -> Iterator[None]:
    """Some compressed memory to swap to, where the machine swaps to nothing."""
    with contextlib.ExitStack() as after:
        if len(Path("/proc/swaps").read_text().splitlines()) < 2:
            try:
                number = int((ZRAM / "hot_add").read_text())
                after.callback((ZRAM / "hot_remove").write_text, str(number))
                Path(f"/sys/block/zram{number}/disksize").write_text(str(64 * MIB))
                for tool in ("mkswap", "swapon"):
                    subprocess.run([tool, f"/dev/zram{number}"], check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f"needs root, and zram to swap to: {error}")
            after.callback(subprocess.run, ["swapoff", f"/dev/zram{number}"], check=True)
        yield


@pytest.mark.parametrize("reader", ["smaps", "pagemap"])
def test_swapped_memory_is_apart_from_rss(swap: None, reader: Reader) -> None:
    size = 16 * MIB
    with program("anon", 1, MIB, "swapped", 1, size) as process:
        seen = quiet_snapshot(process, reader)
        adds_up(process, seen)
        swapped = kernel_totals([seen]).swap or 0
        if not swapped:
            pytest.skip("nothing is swapped out on advice here (MADV_PAGEOUT, Linux 5.4)")
        assert [mapping.rss for mapping in seen.mappings if mapping.size == size] == [size - swapped]
        if reader == "smaps":
            assert sum(mapping.swap or 0 for mapping in seen.mappings) == swapped
        assert group(seen, "anonymous") < size - swapped + 2 * MIB
        shown = json.loads(memforensics("snapshot", str(process.pid), "--json").stdout)
        assert shown["beside"]["swap"] == swapped
        assert "swapped out, not in RSS" in memforensics("snapshot", str(process.pid)).stdout


def test_stacks_of_unjoined_threads() -> None:
    with program("unjoined", 7, 200_000) as process:
        seen = quiet_snapshot(process)
        adds_up(process, seen)
    assert kinds(seen) == {"thread-stack-unused": 7}
    # glibc gives back all but PTHREAD_STACK_MIN, 16 KiB, when a thread ends (nptl/allocatestack.c, advise_stack_range)
    assert 7 * 16 * KIB <= group(seen, "stacks of ended threads") <= 7 * 32 * KIB


def safetensors(size: int) -> bytes:
    header = b'{"w":{"dtype":"U8","shape":[16],"data_offsets":[0,16]}}'
    return (struct.pack("<Q", len(header)) + header).ljust(size, b"\1")


def test_weights_are_recognised_by_content(tmp_path: Path) -> None:
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
