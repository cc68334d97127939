"""/proc/PID/pagemap: which pages are there, without touching one.

Two ways: the PAGEMAP_SCAN ioctl (kernel 6.7, fs/proc/task_mmu.c, uapi/linux/fs.h) and the entries themselves
(Documentation/admin-guide/mm/pagemap.rst). Neither stops the target; both hold its mmap lock for reading for the
length of one call, so calls are bounded.
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
# One call holds the target's mmap lock: 0.2 to 0.4 ms for so many present pages, or so much of empty address space.
CALL_PAGES = 32768
CALL_PAGES_KINDS = 8192  # the same, where each page's kind is asked for too
CALL_BYTES = 1 << 30
_CALL_BYTES_EMPTY = 64 << 30  # reached by doubling, where nothing is present

# uapi/linux/fs.h
IS_FILE, IS_PRESENT, IS_PFNZERO, IS_HUGE = 1 << 2, 1 << 3, 1 << 5, 1 << 6
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
            self._scan_once(0, 0, IS_PRESENT)
        except OSError as error:
            return error.errno not in (errno.ENOTTY, errno.EINVAL, errno.ENOSYS)
        return True

    def scan(self, start: int, end: int, *, kinds: bool = False) -> Iterator[tuple[int, int, bool]]:
        """Runs (start, end, is file) of present pages, the zero page left out, ascending. `is file` (page cache or
        shared memory: not anonymous) is only told with `kinds`. One bounded call after the other.

        TargetGone when it left, ProbeFailed when this kernel has no PAGEMAP_SCAN.
        """
        run: tuple[int, int, int] | None = None
        for found in self.regions(start, end, IS_PRESENT | IS_FILE if kinds else IS_PRESENT):
            for first, last, categories in list(_REGION.iter_unpack(found)):
                if run is not None and run[1] == first and run[2] == categories:
                    run = run[0], last, categories  # divided between two calls
                    continue
                if run is not None:
                    yield run[0], run[1], bool(run[2] & IS_FILE)
                run = first, last, categories
        if run is not None:
            yield run[0], run[1], bool(run[2] & IS_FILE)

    def regions(self, start: int, end: int, returned: int) -> Iterator[memoryview]:
        """As `scan`: the kernel's own records, three words each (start, end, those categories of `returned` that hold),
        one bounded call after the other. Each is overwritten by the next."""
        pages = CALL_PAGES_KINDS if returned & IS_FILE else CALL_PAGES
        step = CALL_BYTES
        try:
            while start < end:
                count, walked = self._scan_once(start, min(end, start + step), returned, pages)
                yield memoryview(self._vector)[: count * _REGION.size]
                if walked <= start:
                    return
                step = min(2 * step, _CALL_BYTES_EMPTY) if not count else CALL_BYTES
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

    def _scan_once(self, start: int, end: int, returned: int, pages: int = 0) -> tuple[int, int]:
        """One call for present pages but the zero page, at most so many (0: no limit): the number of records in the
        vector, and how far it looked."""
        arg = bytearray(
            _SCAN_ARG.pack(
                _SCAN_ARG.size,
                0,  # flags
                start,
                end,
                0,  # walk_end, set by the kernel
                ctypes.addressof(self._vector),
                _REGIONS_A_CALL,
                pages,
                IS_PFNZERO,  # category_inverted
                IS_PRESENT | IS_PFNZERO,  # category_mask
                0,  # category_anyof_mask
                returned,
            )
        )
        count = fcntl.ioctl(self._fd, _IOCTL, arg, True)
        return count, _SCAN_ARG.unpack(arg)[4]

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
