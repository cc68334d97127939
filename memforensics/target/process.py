"""One live process: who it is, whether it is still the same one, and its /proc, memory and mapped files."""

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
from memforensics.errors import NotATarget, PermissionNeeded, TargetError, TargetGone, UnknownForm
from memforensics.target.maps import ParsedMaps, parse_maps
from memforensics.target.memory import ProcessMemory
from memforensics.target.parse import StatLine, parse_stat, parse_status, status_bytes, status_numbers, tmpfs_devices
from memforensics.target.procfs import ProcFS
from memforensics.target.realtime_priority import realtime_priority
from memforensics.target.rooted import open_in_root
from memforensics.target.smaps import ParsedSmaps, parse_smaps, read_smaps
from memforensics.units import KIB

_FEW_SMAPS = 256 * KIB  # some 350 mappings: read line by line in the time that numpy takes to be imported


@dataclass(slots=True)
class Process:
    """A process held by identity: pid, start time and, where the kernel has it, a pidfd.

    Make one with `open_process`. Every reader raises TargetGone (or NoSuchProcess) once it left, and
    PermissionNeeded where it is not for us.
    """

    pid: int
    start_ticks: int
    proc: ProcFS
    exe_id: tuple[int, int] | None  # device and inode of the program: tells an exec
    pidfd: int | None = None
    _memory: ProcessMemory | None = field(default=None, repr=False)

    # --- identity

    def stat(self) -> StatLine:
        """UnknownForm, too."""
        return parse_stat(self.proc.read_text(self.pid, "stat"))

    def left_how(self) -> str | None:
        """None while it is still this process; else how it left: it exited, is a zombie, its PID is another's."""
        if self.pidfd is not None and select.select([self.pidfd], [], [], 0)[0]:
            return "it exited"
        try:
            now = self.stat()
        except UnknownForm:
            return None  # there, whatever it says
        except TargetError:
            return "it exited"
        except PermissionNeeded:
            return None  # hidden from us (hidepid), not gone
        if now.start_ticks != self.start_ticks:
            return "its PID was given to another process"
        if now.state in "ZX":
            return "it exited"
        return None

    def check(self) -> None:
        """TargetGone when it left."""
        how = self.left_how()
        if how is not None:
            raise TargetGone(self.pid, how)

    def execed(self) -> bool:
        """Whether another program runs in it now than at the start (exec keeps pid and start time)."""
        return self.exe_id is not None and self.exe_now() not in (None, self.exe_id)

    def exe_now(self) -> tuple[int, int] | None:
        """Device and inode of the program that runs in it now."""
        return _exe_id(self.proc, self.pid)

    # --- reading

    def read_text(self, name: str) -> str:
        return self.proc.read_text(self.pid, name)

    def read_bytes(self, name: str) -> bytes:
        return self.proc.read_bytes(self.pid, name)

    def maps(self, *, named_or_code: bool = False) -> ParsedMaps:
        return parse_maps(self.read_text("maps"), named_or_code=named_or_code)

    def smaps(self) -> ParsedSmaps:
        """All of smaps. The target's mmap lock is held while the page tables of a mapping are walked (FACTS: 9 ms a
        resident GiB)."""
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
        """Devices, as maps spells them, of the tmpfs mounts that it sees; none where its mounts may not be read."""
        with contextlib.suppress(PermissionNeeded, OSError):  # EINVAL: it is exiting
            return tmpfs_devices(self.read_text("mountinfo"))
        return frozenset()

    def status(self) -> dict[str, str]:
        return parse_status(self.read_text("status"))

    def sample(self, *, clock: Callable[[], int] = time.monotonic_ns) -> Sample:
        """One Sample from status. TargetGone when the kernel prints no memory for it (it is exiting), UnknownForm when
        it prints something else than a size."""
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
        """The kernel's VmRSS. TargetGone when it prints none (exiting)."""
        return self.sample().rss

    def threads(self) -> list[int]:
        try:
            return sorted(int(name) for name in os.listdir(self.proc.root / str(self.pid) / "task"))
        except OSError as error:
            raise self.proc.explain(error, self.pid, "task") from error

    @property
    def memory(self) -> ProcessMemory:
        """Opened at the first use and kept: bound to the address space of that moment."""
        if self._memory is None:
            self._memory = ProcessMemory(self.pid, self.proc)
        return self._memory

    @contextlib.contextmanager
    def open_mapped(self, mapping: Mapping) -> Iterator[BinaryIO]:
        """The very file that is mapped there, deleted ones and other mount namespaces included.

        /proc/PID/map_files first (exact inode); where that is forbidden, the path inside /proc/PID/root, links kept
        inside it, with device and inode compared; never a bare path. FileNotFoundError when the file cannot be had.
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
        """A regular file by the path that it has for the process itself. OSError when it cannot be had, or when it is a
        link and `follow_last` is off; TargetGone."""
        self.check()
        with open_in_root(self.proc.root / str(self.pid) / "root", path, follow_last=follow_last) as stream:
            yield stream

    @contextlib.contextmanager
    def open_jit_map(self) -> Iterator[BinaryIO]:
        """What a just-in-time compiler tells perf of its code: /tmp/perf-PID.map, by the PID and in the file system
        that the process itself sees. OSError when there is none, or it belongs to neither the process's user nor root
        (perf ignores such too: tools/perf/util/symbol.c), or it is a link; TargetGone, PermissionNeeded."""
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
    """The process with that PID, checked: there, not a kernel thread, not a zombie, and (need_memory) ours to read.

    NoSuchProcess, NotATarget, PermissionNeeded, UnknownForm.
    """
    proc = proc or ProcFS()
    pidfd: int | None = None
    if proc.is_live and hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):  # a kernel without pidfds, or gone: stat below tells which
            pidfd = os.pidfd_open(pid)
    try:
        about = parse_stat(proc.read_text(pid, "stat"))
        if about.is_kernel_thread:
            raise NotATarget(f"process {pid} ({about.comm}) is a kernel thread", why="it has no memory of its own")
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
