"""The memory cgroup of a real process in a cgroup of its own, with a limit."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import compiled, running

from memforensics.case.model import Cgroup
from memforensics.target import open_process
from memforensics.target.cgroup import cgroup_of
from memforensics.units import MIB

pytestmark = [pytest.mark.live, pytest.mark.needs_root]

ROOTS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))  # v1, v2
LIMIT = 512 * MIB


@contextlib.contextmanager
def limited() -> Iterator[Path]:
    """A cgroup with a limit, within another without one."""
    for root in ROOTS:
        outer = root / f"memforensics-test-{os.getpid()}"
        inner = outer / "inner"
        try:
            inner.mkdir(parents=True)
        except OSError:
            continue
        try:
            limits = [file for name in ("memory.limit_in_bytes", "memory.max") if (file := outer / name).exists()]
            if limits:
                limits[0].write_text(str(LIMIT))
                yield inner
                return
        finally:
            remove(inner)
            remove(outer)
    pytest.skip("no memory cgroup can be made here")


def remove(folder: Path) -> None:
    """Its processes were killed; the kernel lets go of them a moment later."""
    for _ in range(200):
        with contextlib.suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.01)


def settled(read: Path, pid: int) -> Cgroup:
    """Counters of each CPU come together within moments: until nothing changes."""
    before = None
    with contextlib.closing(open_process(pid)) as process:
        for _ in range(100):
            now = cgroup_of(process)
            if now is not None and now == before:
                return now
            before = now
            time.sleep(0.02)
    raise AssertionError(before)


def test_limit_of_the_group_above_and_what_counts_against_it(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(os.urandom(24 * MIB))
    with weights.open("rb") as file:  # out of our page cache: it is charged to whoever reads it first
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    program = [compiled("own_layers.c"), "anon", 1, 64 * MIB, "shm", 2, 16 * MIB, "file", 1, 24 * MIB, weights]
    with limited() as group:
        into = ["sh", "-c", 'echo $$ > "$0"/cgroup.procs && exec "$@"', str(group), *map(str, program)]
        with running(into) as child:
            seen = settled(group, child.pid)
            assert seen.limit_bytes == LIMIT
            assert seen.path.endswith("/inner")
            assert seen.anon_bytes is not None
            assert seen.file_bytes is not None
            assert seen.usage_bytes is not None
            assert 96 * MIB <= seen.anon_bytes < 100 * MIB, "shared memory is no page cache that could be dropped"
            assert 22 * MIB <= seen.file_bytes < 34 * MIB
            assert seen.anon_bytes + seen.file_bytes <= seen.usage_bytes + MIB
