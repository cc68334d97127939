"""/proc/PID/pagemap: which pages are present, without touching one.

There are two ways: the PAGEMAP_SCAN ioctl (kernel 6.7, fs/proc/task_mmu.c, uapi/linux/fs.h) and the entries themselves
(Documentation/admin-guide/mm/pagemap.rst). Neither stops the target. Both hold its mmap lock for reading during one
call, so calls are bounded.
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import re
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

from memforensics.errors import MemforensicsError, ProbeFailed, TargetGone
from memforensics.target.procfs import ProcFS
from memforensics.target.realtime_priority import realtime_priority

PAGE = mmap.PAGESIZE

# uapi/linux/fs.h
IS_FILE, IS_PRESENT, IS_PFNZERO, IS_HUGE = 1 << 2, 1 << 3, 1 << 5, 1 << 6


class Query(NamedTuple):
    """The pages that a scan reports: those with all categories of `all_of` and one of `any_of`, after the categories of
    `inverted` are inverted. Records have the categories of `reported`. A call ends after `pages` pages; 0: no limit."""

    inverted: int
    all_of: int
    any_of: int
    reported: int
    pages: int


# Address space of one call, which holds the target's mmap lock for 0.2 to 0.8 ms. A limit of pages does not bound the
# time: page tables with one page each take as long as full ones.
SCAN_BYTES = 512 << 20
# The kernel does not count the zero page as resident memory.
PRESENT = Query(IS_PFNZERO, IS_PRESENT | IS_PFNZERO, 0, IS_PRESENT | IS_HUGE, 32768)
PRESENT_KINDS = PRESENT._replace(reported=IS_PRESENT | IS_HUGE | IS_FILE, pages=8192)  # needs each page's struct
# Absent pages and huge pages. A page that a scan does not report costs a quarter of one that it reports (0.7 ms a GiB),
# so this suits dense memory.
ABSENT = Query(IS_PRESENT, 0, IS_PRESENT | IS_PFNZERO | IS_HUGE, IS_PRESENT | IS_PFNZERO | IS_HUGE, 0)

ENTRIES_BYTES = 64 << 20  # read at a time: 0.6 ms

_SCAN_ARG = struct.Struct("12Q")
_REGION = struct.Struct("3Q")
_IOCTL = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg), 96 bytes
_REGIONS_A_CALL = 16384
# A waiting mmap that was woken may not run yet when the next call takes the lock again (locking/rwsem.c: readers may
# steal it until the waiter has waited for about 4 ms; 8 ms were measured). So there is a pause after a long call.
_LONG_S, _PAUSE_S = 50e-6, 50e-6
FRAME = (1 << 55) - 1  # the frame number in a pagemap entry
_HUGE = 2 << 20
_PRESENT = re.compile(rb"[\x80-\xff]+")  # bit 63 of a pagemap entry


class Pagemap:
    """The open file. `close` it, or use it in a with block."""

    def __init__(self, pid: int, proc: ProcFS, *, may_scan: bool = True) -> None:
        """`may_scan=False` behaves as a kernel without PAGEMAP_SCAN."""
        self.pid = pid
        self._may_scan = may_scan
        try:
            self._fd = os.open(proc.root / str(pid) / "pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise proc.explain(error, pid, "pagemap") from error
        self._vector = ctypes.create_string_buffer(_REGIONS_A_CALL * _REGION.size)

    def can_scan(self) -> bool:
        """Whether this kernel has PAGEMAP_SCAN."""
        if not self._may_scan:
            return False
        try:
            self._scan_once(PRESENT, 0, 0)
        except OSError as error:
            return error.errno not in (errno.ENOTTY, errno.EINVAL, errno.ENOSYS)
        return True

    def scan(self, start: int, end: int, *, kinds: bool = False) -> Iterator[tuple[int, int, bool]]:
        """Runs (start, end, is file) of present pages without the zero page, ascending, by bounded calls. `is file`
        (page cache or shared memory: not anonymous) is known only with `kinds`.

        TargetGone when the process left, ProbeFailed when this kernel has no PAGEMAP_SCAN.
        """
        query = PRESENT_KINDS if kinds else PRESENT
        run: tuple[int, int, int] | None = None
        while start < end:
            found, start = self.call(query, start, end)
            for first, last, categories in _REGION.iter_unpack(bytes(found)):
                kind = categories & IS_FILE
                if run is not None and run[1] == first and run[2] == kind:
                    run = run[0], last, kind  # divided between two calls, or by huge pages
                    continue
                if run is not None:
                    yield run[0], run[1], bool(run[2])
                run = first, last, kind
        if run is not None:
            yield run[0], run[1], bool(run[2])

    def call(self, query: Query, start: int, end: int) -> tuple[memoryview, int]:
        """One call: the kernel's records of three words (start, end, categories), valid until the next call, and the
        address where the call ended. It ends when its limit of pages, of address space or of records is reached.

        TargetGone when the process left, ProbeFailed when this kernel has no PAGEMAP_SCAN.
        """
        end = min(end, start + SCAN_BYTES)
        if not realtime_priority.is_able:
            os.sched_yield()  # others run first, so that this call has a whole time slice
        try:
            count, walked = self._scan_once(query, start, end)
        except OSError as error:
            if error.errno == errno.ESRCH:
                raise TargetGone(self.pid, "its address space is gone (exit or exec)") from error
            raise ProbeFailed("PAGEMAP_SCAN failed", why=os.strerror(error.errno or 0)) from error
        found = memoryview(self._vector)[: count * _REGION.size]
        # Linux leaves walk_end where its own buffer of 512 records was last full, even if it then reached the end
        # (fs/proc/task_mmu.c, do_pagemap_scan, 6.7 to 6.18). The last record is a lower bound.
        if count:
            walked = max(walked, _REGION.unpack_from(found, len(found) - _REGION.size)[1])
        return found, walked if walked > start else end

    def present(self, start: int, end: int, *, limit_bytes: int | None = None) -> list[tuple[int, int]]:
        """Runs (start, end) of present pages by the entries, on any kernel, in at most `limit_bytes` of address space.
        The zero page counts as present."""
        if limit_bytes is not None:
            end = min(end, start + limit_bytes)
        runs: list[tuple[int, int]] = []
        step = ENTRIES_BYTES
        for base in range(start, end, step):
            _extend_runs(runs, base, self.entries(base, min(end, base + step)))
        return runs

    def entries(self, start: int, end: int) -> bytes:
        """The entries, one little-endian word a page, on any kernel. The kernel takes the target's mmap lock anew for
        each 2 MiB (fs/proc/task_mmu.c, pagemap_read(), PAGEMAP_WALK_SIZE). Ask for at most ENTRIES_BYTES of address
        space. TargetGone, ProbeFailed."""
        try:
            with realtime_priority:
                return os.pread(self._fd, (end - start) // PAGE * 8, start // PAGE * 8)
        except OSError as error:
            if error.errno == errno.ESRCH:
                raise TargetGone(self.pid, "its address space is gone (exit or exec)") from error
            raise ProbeFailed("cannot read pagemap", why=error.strerror or "") from error

    def frame(self, address: int) -> int:
        """The frame number of the page; 0 if no page is present, or numbers are hidden. TargetGone, ProbeFailed."""
        (entry,) = struct.unpack("<Q", self.entries(address, address + PAGE))
        return entry & FRAME if entry >> 63 else 0

    def _scan_once(self, query: Query, start: int, end: int) -> tuple[int, int]:
        arg = bytearray(
            _SCAN_ARG.pack(
                _SCAN_ARG.size,
                0,  # flags
                start,
                end,
                0,  # walk_end, set by the kernel
                ctypes.addressof(self._vector),
                _REGIONS_A_CALL,
                query.pages,
                query.inverted,
                query.all_of,
                query.any_of,
                query.reported,
            )
        )
        began = time.perf_counter()
        with realtime_priority:
            count = fcntl.ioctl(self._fd, _IOCTL, arg, True)
        if time.perf_counter() - began > _LONG_S:
            time.sleep(_PAUSE_S)
        return count, _SCAN_ARG.unpack(arg)[4]

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> "Pagemap":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def zero_frames() -> list[range]:
    """Frame numbers of the zero page and of the huge zero page, which back all memory that was only ever read. They are
    present and not counted as resident. Read from our own memory; empty where frame numbers are hidden
    (CAP_SYS_ADMIN)."""
    found = []
    with contextlib.suppress(MemforensicsError, OSError), Pagemap(os.getpid(), ProcFS()) as own:
        for advice, size in (mmap.MADV_NOHUGEPAGE, PAGE), (mmap.MADV_HUGEPAGE, _HUGE):
            with mmap.mmap(-1, 2 * _HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as room:
                room.madvise(advice)
                place = -ctypes.addressof(ctypes.c_char.from_buffer(room)) % _HUGE
                room[place]
                address = ctypes.addressof(ctypes.c_char.from_buffer(room)) + place
                first, last = (own.frame(address + at) for at in (0, size - PAGE))
            if first and last == first + size // PAGE - 1:
                found.append(range(first, last + 1))
    return found


def _extend_runs(runs: list[tuple[int, int]], base: int, entries: bytes) -> None:
    """Adds the present pages of little-endian entries of 8 bytes, whose highest bit means present."""
    for found in _PRESENT.finditer(entries[7::8]):
        start, end = base + found.start() * PAGE, base + found.end() * PAGE
        if runs and runs[-1][1] == start:
            start = runs.pop()[0]
        runs.append((start, end))
