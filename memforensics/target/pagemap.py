"""/proc/PID/pagemap: which pages are there, without touching one.

Two ways: the PAGEMAP_SCAN ioctl (kernel 6.7, fs/proc/task_mmu.c, uapi/linux/fs.h) and the entries themselves
(Documentation/admin-guide/mm/pagemap.rst). Neither stops the target; both hold its mmap lock for reading for the
length of one call, so calls are bounded (FACTS: 768 MiB of present-only scan take 1.1 ms).
"""

import ctypes
import errno
import fcntl
import mmap
import os
import re
import struct
from collections.abc import Iterator

from memforensics.errors import ProbeFailed, TargetGone
from memforensics.target.procfs import ProcFS

PAGE = mmap.PAGESIZE
SCAN_BYTES = 768 * 1024 * 1024  # of mapped memory a call, present only
SCAN_BYTES_FILE = 128 * 1024 * 1024  # the same, where each page's kind is asked for too

# uapi/linux/fs.h
IS_FILE, IS_PRESENT, IS_PFNZERO = 1 << 2, 1 << 3, 1 << 5
_SCAN_ARG = struct.Struct("12Q")
_REGION = struct.Struct("3Q")
_IOCTL = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg), 96 bytes
_REGIONS_A_CALL = 16384
_PRESENT = re.compile(rb"[\x80-\xff]+")  # bit 63 of a pagemap entry


class Pagemap:
    """The open file. `close` it, or use it in a with block."""

    def __init__(self, pid: int, proc: ProcFS) -> None:
        self.pid = pid
        try:
            self._fd = os.open(proc.root / str(pid) / "pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise proc.explain(error, pid, "pagemap") from error
        self._vector = ctypes.create_string_buffer(_REGIONS_A_CALL * _REGION.size)

    def can_scan(self) -> bool:
        """Whether this kernel has PAGEMAP_SCAN."""
        try:
            self._scan_once(0, 0, IS_PRESENT, 0, IS_PRESENT)
        except OSError as error:
            return error.errno not in (errno.ENOTTY, errno.EINVAL, errno.ENOSYS)
        return True

    def scan(self, start: int, end: int, *, kinds: bool = False) -> Iterator[tuple[int, int, bool]]:
        """Runs (start, end, is file) of present pages, the zero page left out, ascending. `is file` (page cache or
        shared memory: not anonymous) is only told with `kinds`. One bounded call after the other.

        TargetGone when it left, ProbeFailed when this kernel has no PAGEMAP_SCAN.
        """
        returned, step = (IS_PRESENT | IS_FILE, SCAN_BYTES_FILE) if kinds else (IS_PRESENT, SCAN_BYTES)
        try:
            while start < end:
                regions, walked = self._scan_once(
                    start, min(end, start + step), IS_PRESENT | IS_PFNZERO, IS_PFNZERO, returned
                )
                for first, last, categories in regions:
                    yield first, last, bool(categories & IS_FILE)
                if walked <= start:
                    return
                start = walked
        except OSError as error:
            if error.errno == errno.ESRCH:
                raise TargetGone(self.pid, "its address space is gone (exit or exec)") from error
            raise ProbeFailed("PAGEMAP_SCAN failed", why=os.strerror(error.errno or 0)) from error

    def present(self, start: int, end: int, *, limit_bytes: int | None = None) -> list[tuple[int, int]]:
        """Runs (start, end) of present pages by reading the entries, on any kernel; the zero page counts as present.
        At most `limit_bytes` of address space are looked at."""
        if limit_bytes is not None:
            end = min(end, start + limit_bytes)
        runs: list[tuple[int, int]] = []
        step = 32 * 1024 * PAGE
        for base in range(start, end, step):
            _extend_runs(runs, base, self._entries(base, min(end, base + step)))
        return runs

    def _entries(self, start: int, end: int) -> bytes:
        try:
            return os.pread(self._fd, (end - start) // PAGE * 8, start // PAGE * 8)
        except OSError as error:
            if error.errno == errno.ESRCH:
                raise TargetGone(self.pid, "its address space is gone (exit or exec)") from error
            raise ProbeFailed("cannot read pagemap", why=error.strerror or "") from error

    def _scan_once(
        self, start: int, end: int, mask: int, inverted: int, returned: int
    ) -> tuple[list[tuple[int, int, int]], int]:
        arg = bytearray(
            _SCAN_ARG.pack(
                _SCAN_ARG.size,
                0,  # flags
                start,
                end,
                0,  # walk_end, set by the kernel
                ctypes.addressof(self._vector),
                _REGIONS_A_CALL,
                0,  # max_pages: no limit
                inverted,
                mask,
                0,  # category_anyof_mask
                returned,
            )
        )
        count = fcntl.ioctl(self._fd, _IOCTL, arg, True)
        walked = _SCAN_ARG.unpack(arg)[4]
        return list(_REGION.iter_unpack(memoryview(self._vector)[: count * _REGION.size])), walked

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> "Pagemap":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _extend_runs(runs: list[tuple[int, int]], base: int, entries: bytes) -> None:
    """Little-endian entries of 8 bytes: the highest bit of the last one is "present"."""
    for found in _PRESENT.finditer(entries[7::8]):
        start, end = base + found.start() * PAGE, base + found.end() * PAGE
        if runs and runs[-1][1] == start:
            start = runs.pop()[0]
        runs.append((start, end))
