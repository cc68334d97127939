"""Access to /proc. The root is an argument, so a folder of captured text can take its place."""

import errno
import os
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from memforensics.errors import NoSuchProcess, PermissionNeeded, ProbeFailed, TargetGone

_KIB = 1024
# How much is read of a file whose size the target chooses: arguments and environment may span all of its memory
# (PR_SET_MM_MAP). The rest is left out.
_CUT_AT = {"cmdline": 64 * _KIB, "environ": 1024 * _KIB}
# The largest file that is read, with a line for each mapping or mount. A larger one is refused, not cut.
_AT_MOST = {"maps": 512 * _KIB * _KIB, "mountinfo": 16 * _KIB * _KIB}
_SMALL = 1024 * _KIB  # of any other file


@dataclass(frozen=True, slots=True)
class ProcFS:
    """/proc, or a folder that looks like it."""

    root: Path = Path("/proc")

    @property
    def is_live(self) -> bool:
        return self.root == Path("/proc")

    def pids(self) -> list[int]:
        return sorted(int(entry.name) for entry in self.root.iterdir() if entry.name.isdigit())

    def read_bytes(self, pid: int, name: str) -> bytes:
        """/proc/PID/name: the first 64 KiB of cmdline, the first MiB of environ, or the whole of any other file.
        ProbeFailed if the file is larger than a real process needs, TargetGone when the process left, PermissionNeeded
        when it may not be read."""
        cut = _CUT_AT.get(name)
        limit = cut or _AT_MOST.get(name, _SMALL)
        try:
            with FileIO(self.root / str(pid) / name) as file:
                data = _read_up_to(file, limit if cut else limit + 1)
        except OSError as error:
            raise self.explain(error, pid, name) from error
        if cut is None and len(data) > limit:
            raise ProbeFailed(
                f"/proc/{pid}/{name} is larger than {limit >> 10} KiB", why="a file of this size is not read"
            )
        return data

    def open(self, pid: int, name: str) -> FileIO:
        """/proc/PID/name, unbuffered. Errors as read_bytes; reads raise OSError, for `explain`."""
        try:
            return FileIO(self.root / str(pid) / name)
        except OSError as error:
            raise self.explain(error, pid, name) from error

    def check_readable(self, pid: int, name: str) -> None:
        """Errors as read_bytes, without a read: the kernel decides at open (proc_maps_open(), fs/proc/task_mmu.c)."""
        try:
            os.close(os.open(self.root / str(pid) / name, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise self.explain(error, pid, name) from error

    def read_text(self, pid: int, name: str) -> str:
        return self.read_bytes(pid, name).decode("utf-8", "surrogateescape")

    def read_link(self, pid: int, name: str) -> str:
        try:
            return os.readlink(self.root / str(pid) / name)
        except OSError as error:
            raise self.explain(error, pid, name) from error

    def explain(self, error: OSError, pid: int, name: str) -> Exception:
        """The project's own error for an OSError on /proc/PID/name. Gone and forbidden are different facts."""
        if error.errno in (errno.ENOENT, errno.ESRCH, errno.ENOTDIR):
            if not (self.root / str(pid)).exists():
                return NoSuchProcess(pid)
            return TargetGone(pid, f"/proc/{pid}/{name} went away")
        if error.errno in (errno.EACCES, errno.EPERM):
            return PermissionNeeded(
                f"not allowed to read /proc/{pid}/{name}",
                privilege="CAP_SYS_PTRACE",
                why="the process belongs to another user or is protected",
            )
        return error


def _read_up_to(file: FileIO, limit: int) -> bytes:
    """Up to `limit` bytes. procfs returns short reads."""
    pieces: list[bytes] = []
    left = limit
    while left > 0 and (piece := file.read(min(left, _SMALL))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)
