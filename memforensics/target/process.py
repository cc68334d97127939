"""One live process: its identity, and access to its /proc files, memory and mapped files."""

import contextlib
import os
import select
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from memforensics.case.model import Mapping, Sample
from memforensics.errors import LIST_TARGETS, NotATarget, PermissionNeeded, TargetError, TargetGone, UnknownForm
from memforensics.target.maps import ParsedMaps, parse_maps
from memforensics.target.memory import ProcessMemory
from memforensics.target.parse import StatLine, parse_stat, parse_status, status_bytes, status_numbers, tmpfs_devices
from memforensics.target.procfs import ProcFS
from memforensics.target.realtime_priority import realtime_priority
from memforensics.target.rooted import open_in_root
from memforensics.target.smaps import ParsedSmaps, parse_smaps, read_smaps
from memforensics.units import KIB

_FEW_SMAPS = 256 * KIB  # about 350 mappings: importing numpy takes as long as reading them line by line


@dataclass(slots=True)
class Process:
    """A process, identified by PID, start time and, if the kernel has it, a pidfd. Open one with `open_process`.

    Every read raises TargetGone or NoSuchProcess when the process has left, and PermissionNeeded when it is not
    permitted.
    """

    pid: int
    start_ticks: int
    proc: ProcFS
    exe_id: tuple[int, int] | None  # device and inode of the program, to detect an exec
    pidfd: int | None = None
    _memory: ProcessMemory | None = field(default=None, repr=False)

    # --- identity

    def stat(self) -> StatLine:
        """Raises UnknownForm, too."""
        return parse_stat(self.proc.read_text(self.pid, "stat"))

    def left_how(self) -> str | None:
        """None while the process runs; else how it left: it exited, or its PID belongs to another process."""
        if self.pidfd is not None and select.select([self.pidfd], [], [], 0)[0]:
            return "it exited"
        try:
            now = self.stat()
        except UnknownForm:
            return None  # it is there
        except TargetError:
            return "it exited"
        except PermissionNeeded:
            return None  # hidden (hidepid), not gone
        if now.start_ticks != self.start_ticks:
            return "its PID was given to another process"
        if now.state in "ZX":
            return "it exited"
        return None

    def check(self) -> None:
        """Raises TargetGone if the process left."""
        how = self.left_how()
        if how is not None:
            raise TargetGone(self.pid, how)

    def execed(self) -> bool:
        """Whether the process runs another program than at the start (exec keeps PID and start time)."""
        return self.exe_id is not None and self.exe_now() not in (None, self.exe_id)

    def exe_now(self) -> tuple[int, int] | None:
        """Device and inode of the program that it runs now."""
        return _exe_id(self.proc, self.pid)

    # --- reading

    def read_text(self, name: str) -> str:
        return self.proc.read_text(self.pid, name)

    def read_bytes(self, name: str) -> bytes:
        return self.proc.read_bytes(self.pid, name)

    def maps(self, *, named_or_code: bool = False) -> ParsedMaps:
        return parse_maps(self.read_text("maps"), named_or_code=named_or_code)

    def smaps(self) -> ParsedSmaps:
        """All of smaps. The kernel holds the target's mmap lock while it walks the page tables of a mapping: 9 ms a
        resident GiB."""
        with self.proc.open(self.pid, "smaps") as file:
            try:
                begun = b""
                while len(begun) < _FEW_SMAPS:
                    with realtime_priority:
                        piece = file.read(_FEW_SMAPS)
                    if not piece:
                        return parse_smaps(begun.decode("utf-8", "surrogateescape"))
                    begun += piece
                return read_smaps(file.readinto, begun)
            except OSError as error:
                raise self.proc.explain(error, self.pid, "smaps") from error

    def tmpfs_devices(self) -> frozenset[str]:
        """Devices, as in maps, of the tmpfs mounts that the process sees; empty if its mounts may not be read."""
        with contextlib.suppress(PermissionNeeded, OSError):  # EINVAL: it is exiting
            return tmpfs_devices(self.read_text("mountinfo"))
        return frozenset()

    def status(self) -> dict[str, str]:
        return parse_status(self.read_text("status"))

    def sample(self, *, clock: Callable[[], int] = time.monotonic_ns) -> Sample:
        """One Sample from status. TargetGone if the kernel prints no memory (the process is exiting), UnknownForm if it
        prints anything but a size."""
        t_ns = clock()
        status = self.status()
        anon = status_bytes(status, "RssAnon")
        file_, shmem = status_bytes(status, "RssFile"), status_bytes(status, "RssShmem")
        if anon is None or file_ is None or shmem is None:
            if "RssAnon" in status:
                raise UnknownForm("status", "a size is missing, or is not a number")
            raise TargetGone(self.pid, "it has no memory any more (exiting)")
        return Sample(
            pid=self.pid,
            t_ns=t_ns,
            rss_anon=anon,
            rss_file=file_,
            rss_shmem=shmem,
            swap=status_bytes(status, "VmSwap"),
            hugetlb=status_bytes(status, "HugetlbPages"),
            vm_size=status_bytes(status, "VmSize"),
            threads=next(iter(status_numbers(status, "Threads")), None),
            state=status["State"][:1] if "State" in status else None,
        )

    def resident_bytes(self) -> int:
        """The kernel's RSS. TargetGone if it prints none (the process is exiting)."""
        return self.sample().rss

    def threads(self) -> list[int]:
        try:
            return sorted(int(name) for name in os.listdir(self.proc.root / str(self.pid) / "task"))
        except OSError as error:
            raise self.proc.explain(error, self.pid, "task") from error

    @property
    def memory(self) -> ProcessMemory:
        """Opened at the first use, and bound to the address space of that time."""
        if self._memory is None:
            self._memory = ProcessMemory(self.pid, self.proc)
        return self._memory

    @contextlib.contextmanager
    def open_mapped(self, mapping: Mapping) -> Iterator[BinaryIO]:
        """The file that is mapped there, even if it was deleted or is in another mount namespace.

        /proc/PID/map_files is tried first (exact inode). If that is forbidden, the path is opened inside
        /proc/PID/root, with links resolved inside it, and device and inode are compared. A bare path is never opened.
        FileNotFoundError if the file cannot be opened.
        """
        name = f"{mapping.start:x}-{mapping.end:x}"
        base = self.proc.root / str(self.pid)
        try:
            descriptor = os.open(base / "map_files" / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            with open_in_root(base / "root", mapping.path) as stream:
                about = os.fstat(stream.fileno())
                device = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}"
                if (device, about.st_ino) != (mapping.device, mapping.inode):
                    raise FileNotFoundError(f"{mapping.path} is another file now") from None
                yield stream
            return
        with open(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise FileNotFoundError(f"{mapping.path} is not a regular file")
            yield stream

    @contextlib.contextmanager
    def open_inside(self, path: str, *, follow_last: bool = True) -> Iterator[BinaryIO]:
        """A regular file by the path that the process itself sees. OSError if it cannot be opened, or is a link and
        `follow_last` is off; TargetGone."""
        self.check()
        with open_in_root(self.proc.root / str(self.pid) / "root", path, follow_last=follow_last) as stream:
            yield stream

    @contextlib.contextmanager
    def open_jit_map(self) -> Iterator[BinaryIO]:
        """The symbols that a just-in-time compiler writes for perf: /tmp/perf-PID.map, with the PID and in the file
        system that the process itself sees. OSError if the file is missing, is a link, or belongs to another user than
        the process's or root (perf ignores such files, too: tools/perf/util/symbol.c); TargetGone, PermissionNeeded."""
        status = self.status()
        inner = (status_numbers(status, "NSpid") or (self.pid,))[-1]
        with self.open_inside(f"/tmp/perf-{inner}.map", follow_last=False) as stream:
            if os.fstat(stream.fileno()).st_uid not in (0, *status_numbers(status, "Uid")[1:2]):
                raise PermissionError(f"perf-{inner}.map belongs to another user")
            yield stream

    def close(self) -> None:
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None


def open_process(pid: int, *, proc: ProcFS | None = None, need_memory: bool = True) -> Process:
    """The process with that PID. It must exist, be neither a kernel thread nor a zombie and, with `need_memory`, be
    readable. NoSuchProcess, NotATarget, PermissionNeeded, UnknownForm.
    """
    proc = proc or ProcFS()
    pidfd: int | None = None
    if proc.is_live and hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):  # no pidfds in this kernel, or the process left: stat shows which
            pidfd = os.pidfd_open(pid)
    try:
        about = parse_stat(proc.read_text(pid, "stat"))
        if about.is_kernel_thread:
            raise NotATarget(
                f"process {pid} ({about.comm}) is a kernel thread",
                why="it has no memory of its own",
                enable=LIST_TARGETS,
            )
        if about.state in "ZX":
            raise NotATarget(
                f"process {pid} ({about.comm}) is a zombie",
                why="it exited already, its memory is gone; its parent has not collected it",
                enable=f"look at its parent instead: memforensics watch {about.ppid}",
            )
        if need_memory:
            proc.check_readable(pid, "maps")
    except BaseException:
        if pidfd is not None:
            os.close(pidfd)
        raise
    return Process(pid=pid, start_ticks=about.start_ticks, proc=proc, exe_id=_exe_id(proc, pid), pidfd=pidfd)


def _exe_id(proc: ProcFS, pid: int) -> tuple[int, int] | None:
    try:
        about = Path(proc.root / str(pid) / "exe").stat()
    except OSError:
        return None
    return about.st_dev, about.st_ino
