"""The one door to /proc. The root is an argument: a folder of captured text is a /proc too."""

import errno
import os
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from memforensics.errors import NoSuchProcess, PermissionNeeded, TargetGone


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
        """The whole of /proc/PID/name. TargetGone when the process left, PermissionNeeded when it is not for us."""
        try:
            return (self.root / str(pid) / name).read_bytes()
        except OSError as error:
            raise self.explain(error, pid, name) from error

    def open(self, pid: int, name: str) -> FileIO:
        """/proc/PID/name, unbuffered. Errors as read_bytes; reading raises OSErrors, for `explain`."""
        try:
            return FileIO(self.root / str(pid) / name)
        except OSError as error:
            raise self.explain(error, pid, name) from error

    def check_readable(self, pid: int, name: str) -> None:
        """As read_bytes, without reading: the kernel decides at the open (proc_maps_open(), fs/proc/task_mmu.c)."""
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
        """An OSError on /proc/PID/name in the project's own words. Gone and forbidden are different facts."""
        if error.errno in (errno.ENOENT, errno.ESRCH, errno.ENOTDIR):
            if not (self.root / str(pid)).exists():
                return NoSuchProcess(pid)
            return TargetGone(pid, f"/proc/{pid}/{name} went away")
        if error.errno in (errno.EACCES, errno.EPERM):
            return PermissionNeeded(
                f"not allowed to read /proc/{pid}/{name}",
                privilege="CAP_SYS_PTRACE",
                why="the process belongs to another user or is protected",
                enable=f"sudo memforensics ... {pid}   (or grant CAP_SYS_PTRACE; see: memforensics doctor)",
            )
        return error
