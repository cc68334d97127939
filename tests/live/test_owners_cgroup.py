"""The memory cgroup of a real process in a cgroup of its own, with a limit."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from cli import memforensics
from owned import adds_up, gguf, kinds, quiet_snapshot, settle
from owned import group as group_bytes
from processes import compiled, python, running

from memforensics.analysis.ownership import pieces
from memforensics.case.model import Cgroup
from memforensics.target import open_process
from memforensics.target.cgroup import cgroup_of
from memforensics.units import MIB

pytestmark = [pytest.mark.live, pytest.mark.needs_root]

ROOTS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))  # v1, v2
LIMIT = 512 * MIB
NO_LIMIT = {"memory.limit_in_bytes": "-1", "memory.max": "max"}


@contextlib.contextmanager
def limited() -> Iterator[Path]:
    """A cgroup without a limit of its own, within another with one."""
    for root in ROOTS:
        outer = root / f"memforensics-test-{os.getpid()}"
        inner = outer / "inner"
        try:
            inner.mkdir(parents=True)
        except OSError:
            continue
        try:
            if any((outer / name).exists() for name in NO_LIMIT):
                with contextlib.suppress(OSError):  # v2
                    (outer / "cgroup.subtree_control").write_text("+memory")
                set_limit(outer, LIMIT)
                yield inner
                return
        finally:
            remove(inner)
            remove(outer)
    pytest.skip("no memory cgroup can be made here")


def set_limit(group: Path, limit: int | None) -> None:
    """The test is skipped where the group has no memory controller of its own."""
    for name, none in NO_LIMIT.items():
        if (group / name).exists():
            (group / name).write_text(none if limit is None else str(limit))
            return
    pytest.skip(f"no memory controller in {group.name}")


def inside(group: Path, command: Sequence[str | Path]) -> list[str]:
    """The command that runs there."""
    return ["sh", "-c", 'echo $$ > "$0"/cgroup.procs && exec "$@"', str(group), *map(str, command)]


def remove(folder: Path) -> None:
    """Its processes were killed; the kernel lets go of them a moment later."""
    for _ in range(200):
        with contextlib.suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.01)


def settled(pid: int) -> Cgroup:
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
    parts = ("anon", 1, 64 * MIB, "shm", 2, 16 * MIB, "file", 1, 24 * MIB, weights)
    program = [str(compiled("own_layers.c")), *map(str, parts)]
    with limited() as group, running(inside(group, program)) as child:
        seen = settled(child.pid)
        assert seen.limit_bytes == LIMIT
        assert seen.path.endswith("/inner")
        assert seen.anon_bytes is not None
        assert seen.file_bytes is not None
        assert seen.usage_bytes is not None
        assert 96 * MIB <= seen.anon_bytes < 100 * MIB, "shared memory is no page cache that could be dropped"
        assert 22 * MIB <= seen.file_bytes < 34 * MIB
        assert seen.anon_bytes + seen.file_bytes <= seen.usage_bytes + MIB


def test_lowest_of_nested_limits_counts() -> None:
    with limited() as group, running(inside(group, [compiled("own_layers.c"), "anon", "1", str(MIB)])) as child:
        own = settled(child.pid)
        assert own.limit_bytes == LIMIT
        set_limit(group, LIMIT // 2)
        assert settled(child.pid).limit_bytes == LIMIT // 2
        set_limit(group, LIMIT * 2)
        assert settled(child.pid).limit_bytes == LIMIT, "the outer one is reached first"
        set_limit(group, None)
        set_limit(group.parent, None)
        assert settled(child.pid).limit_bytes != LIMIT
        set_limit(group.parent, LIMIT)


def test_time_to_the_limit_at_the_present_rate() -> None:
    rate = 600 * MIB  # a minute
    with limited() as group, running(inside(group, python("watch_grower.py", "leak", "600"))) as child:
        done = memforensics("watch", str(child.pid), "--json", "--interval", "250ms", "--duration", "9s")
        used = settled_anon(child.pid)
    grows = json.loads(done.stdout.splitlines()[-1])["growth"]
    assert grows["limit_bytes"] == LIMIT
    assert grows["seconds_to_limit"] == pytest.approx((LIMIT - used) / (rate / 60), rel=0.2)


def settled_anon(pid: int) -> int:
    """Of a group whose process grows: it does not settle."""
    with contextlib.closing(open_process(pid)) as process:
        found = cgroup_of(process)
    assert found is not None
    return found.anon_bytes or 0


def test_a_process_in_namespaces_of_its_own(tmp_path: Path) -> None:
    """As in a container: another root, on a file system that nobody else sees, other PIDs, its cgroup as the root."""
    size, root = 2 * MIB, tmp_path / "root"
    root.mkdir()
    (tmp_path / "weights").write_bytes(gguf(size))
    prepare = 'mount -t tmpfs none "$1" && cp "$2" "$1/program" && cp "$3" "$1/weights" && shift 3 && exec chroot "$@"'
    words = ["threads", 3, 100_000, "anon", 1, MIB, "file", 1, size, "/weights"]
    program = compiled("own_layers.c", "-static")
    command = ["unshare", "--mount", "--cgroup", "--pid", "--fork", "--kill-child", "sh", "-c", prepare, "sh", root]
    with limited() as group:
        command = [*command, program, tmp_path / "weights", root, "/program", *words]
        with running(inside(group, [str(word) for word in command])) as child:
            (pid,) = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
            with contextlib.closing(open_process(int(pid))) as process:
                settle(process)
                seen = quiet_snapshot(process)
                adds_up(process, seen)
                about = cgroup_of(process)
    assert about is not None
    assert (about.limit_bytes, Path(about.path).name) == (LIMIT, "inner")
    assert kinds(seen)["thread-stack"] == 3
    assert group_bytes(seen, "weights weights") == size
    assert {piece.layer for piece in pieces(seen) if piece.group == "weights weights"} == {"shmem"}
