"""The memory cgroup of a process: v1 and v2, wherever they are mounted.

The files are found through mountinfo, so a container that sees only its own part of the hierarchy is read correctly.
With `fs_root` a folder of captured files takes the place of the machine.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from memforensics.case.model import Cgroup
from memforensics.target.parse import lines_of, number
from memforensics.target.process import Process

_MAX_PATH = 4096  # PATH_MAX, uapi/linux/limits.h
_NO_LIMIT_V1 = 1 << 62  # v1 writes PAGE_COUNTER_MAX in bytes for "no limit": 0x7ffffffffffff000


@dataclass(frozen=True, slots=True)
class _Mount:
    root: str  # the part of the hierarchy that is mounted
    point: str


def cgroup_of(process: Process, *, fs_root: Path = Path("/")) -> Cgroup | None:
    """The memory cgroup of a process; None if none is visible.

    Of the cgroup and its visible ancestors, the one whose limit leaves the least room counts: an ancestor may have the
    larger limit and be full of other processes' memory. usage, anon and file are the figures of that level, or of the
    process's own cgroup if no level has a limit.
    """
    own = process.proc.root / "self" / "mountinfo"  # our own mounts: we open the files
    try:
        mountinfo = own.read_text(errors="surrogateescape")
    except OSError:
        return None
    return read_cgroup(process.read_text("cgroup"), mountinfo, fs_root=fs_root)


def read_cgroup(cgroup_text: str, mountinfo: str, *, fs_root: Path = Path("/")) -> Cgroup | None:
    """The same from the text of /proc/PID/cgroup and of a mountinfo."""
    paths = dict(_hierarchies(cgroup_text))
    for controller in ("memory", ""):  # in the hybrid layout the memory controller is in v1
        path, mount = paths.get(controller), _mount(mountinfo, controller)
        if path is None or mount is None:
            continue
        levels = list(_levels(path, mount, fs_root))
        found = _read_v1(path, levels) if controller else _read_v2(path, levels)
        if found is not None:
            return found
    return None


def _hierarchies(text: str) -> Iterator[tuple[str, str]]:
    """Controller and path; the controller of the v2 hierarchy is ""."""
    for line in lines_of(text):
        words = line.split(":", 2)
        if len(words) == 3 and words[2].startswith("/") and "\0" not in line and len(line) < _MAX_PATH:
            for controller in words[1].split(","):
                yield controller, words[2]


def _mount(mountinfo: str, controller: str) -> _Mount | None:
    """The last, topmost mount of the controller's hierarchy."""
    found = None
    for line in lines_of(mountinfo):
        left, separator, right = line.partition(" - ")
        words, types = left.split(" "), right.split(" ")
        if not separator or len(words) < 5 or len(types) < 3 or not words[3].startswith("/") or "\0" in line:
            continue
        matches = controller in types[2].split(",") if controller else True
        if types[0] == ("cgroup" if controller else "cgroup2") and matches:
            found = _Mount(root=words[3], point=words[4])
    return found


def _levels(path: str, mount: _Mount, fs_root: Path) -> Iterator[Path]:
    """Folders from the process's own cgroup up to the mount point."""
    top = fs_root / mount.point.lstrip("/")
    inside = os.path.relpath(path, mount.root)
    if inside.startswith(".."):
        inside = "."  # the cgroup is outside this mount (another namespace): its root is the nearest visible level
    for part in (PurePosixPath(inside), *PurePosixPath(inside).parents):
        yield top / part
        if str(part) == ".":
            return


def _read_v2(path: str, levels: list[Path]) -> Cgroup | None:
    return _tightest(_level_v2(path, level) for level in levels)


def _level_v2(path: str, level: Path) -> Cgroup:
    stat = _stat(level / "memory.stat")
    return Cgroup(
        version=2,
        path=path,
        limit_bytes=_number(level / "memory.max"),
        usage_bytes=_number(level / "memory.current"),
        anon_bytes=_sum(stat.get("anon"), stat.get("shmem")),
        file_bytes=_sum(stat.get("file"), -stat.get("shmem", 0)),
    )


def _read_v1(path: str, levels: list[Path]) -> Cgroup | None:
    readable = [level for level in levels if _text(level / "memory.limit_in_bytes") is not None]
    return _tightest(_level_v1(path, level, is_top=level is readable[-1]) for level in readable)


def _level_v1(path: str, level: Path, *, is_top: bool) -> Cgroup:
    stat = _stat(level / "memory.stat")
    limits = [_number(level / "memory.limit_in_bytes")]
    if is_top:
        limits.append(stat.get("hierarchical_memory_limit"))  # includes ancestors that are not mounted here
    shmem = stat.get("total_shmem", stat.get("shmem"))
    return Cgroup(
        version=1,
        path=path,
        limit_bytes=min((limit for limit in limits if limit is not None and limit < _NO_LIMIT_V1), default=None),
        usage_bytes=_number(level / "memory.usage_in_bytes"),
        anon_bytes=_sum(stat.get("total_rss", stat.get("rss")), shmem),
        file_bytes=_sum(stat.get("total_cache", stat.get("cache")), -(shmem or 0)),
    )


def _tightest(levels: Iterable[Cgroup]) -> Cgroup | None:
    """The level with the least room below its limit; the lowest if none has a limit; None if none is readable."""
    found = [level for level in levels if (level.limit_bytes, level.usage_bytes, level.anon_bytes) != (None,) * 3]
    limited = [
        (level.limit_bytes - _used(level), place) for place, level in enumerate(found) if level.limit_bytes is not None
    ]
    return found[min(limited)[1]] if limited else next(iter(found), None)


def _used(level: Cgroup) -> int:
    """Memory that stays until it is freed: anonymous memory, else the usage."""
    return (level.anon_bytes if level.anon_bytes is not None else level.usage_bytes) or 0


def _sum(of_kind: int | None, shmem: int | None) -> int | None:
    """The kernel counts shared memory as page cache ("file" in v2, "cache" in v1; admin-guide/cgroup-v2.rst), but it
    cannot be dropped, so it is added to anonymous memory."""
    return None if of_kind is None else max(of_kind + (shmem or 0), 0)


def _number(path: Path) -> int | None:
    """The number in a file; None for "max", a missing file, or other text."""
    return number((_text(path) or "").strip())


def _stat(path: Path) -> dict[str, int]:
    pairs = ((*line.split(), "", "")[:2] for line in lines_of(_text(path) or ""))
    return {key: value for key, text in pairs if (value := number(text)) is not None}


def _text(path: Path) -> str | None:
    """None if the file does not exist or cannot be read."""
    try:
        return path.read_text(errors="surrogateescape")
    except (OSError, ValueError):  # the path is not a possible name
        return None
