"""Resident bytes of every mapping by PAGEMAP_SCAN, at a tenth to a half of the cost of smaps. The target's mmap lock is
released after each bounded call.

Pages of a private file mapping are copies (anonymous) or the file's, and pages of a device are not counted by the
kernel: there each page is asked for its kind. In other mappings all pages are of one kind. Their dense parts are
counted by absent pages, because a page that is reported costs four times as much as one that is not; sparse parts are
counted by present pages.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from memforensics.probes.proc.pagemap_entries import Entries, Ints
from memforensics.target.maps import Columns
from memforensics.target.pagemap import ABSENT, IS_FILE, IS_HUGE, IS_PFNZERO, PAGE, PRESENT, PRESENT_KINDS, Pagemap

Bools = npt.NDArray[np.bool_]

_CALL_MAPPINGS = 500  # in one call: 0.2 ms
_GAP = 64 << 20  # the largest between two mappings of one call
_GAP_OF_SOME = 1 << 20  # the same if other mappings may lie between them
_TOP = np.uint64((1 << 63) - 1)

_NONE, _PLAIN, _KINDS = 0, 1, 2  # not memory; all pages of one kind; pages of several kinds
_OF_DEVICES = ("/dev/", "/sys/", "/proc/", "anon_inode:", "socket:", "/dmabuf:")
_SHMEM = ("/dev/zero", "/dev/shm/", "/memfd:", "/SYSV")


@dataclass(frozen=True, slots=True)
class Resident:
    """Bytes by mapping."""

    rss: list[int]
    anonymous: list[int]
    anon_huge: list[int] | None  # huge pages; None if the kernel does not report them
    shmem_huge: list[int] | None
    file_huge: list[int] | None


def count_resident(
    pagemap: Pagemap,
    columns: Columns,
    *,
    is_whole: bool = True,
    apart: Collection[str] = (),
    tmpfs: Collection[str] = (),
) -> Resident:
    """Resident bytes of these mappings. `is_whole`: they are all mappings of the process. `apart`: devices whose pages
    the kernel counts apart from RSS (`hugetlb_devices`). `tmpfs`: devices whose files are shared memory. TargetGone,
    ProbeFailed."""
    start, end = _addresses(columns.start), _addresses(columns.end)
    kinds = np.full(len(columns), _PLAIN)
    shared, shmem = np.zeros(len(columns), bool), np.zeros(len(columns), bool)
    for place, (path, perms) in enumerate(zip(columns.path, columns.perms, strict=True)):
        if path:
            shared[place] = perms[3:4] == "s"
            shmem[place] = path.startswith(_SHMEM) or columns.device[place] in tmpfs
            kinds[place] = _NONE if columns.device[place] in apart else _kind(path, shared=bool(shared[place]))
    scan = _Scan(pagemap) if pagemap.can_scan() else _ByEntries(pagemap)
    for first, last in _spans(start, end, kinds, min(scan.gap, _GAP if is_whole else _GAP_OF_SOME)):
        read = scan.by_kind if kinds[first] == _KINDS else scan.plain
        read(int(start[first]), int(end[last - 1]))
    return scan.of(start, end, shared, shmem, (kinds == _KINDS) & shared)


class _Scan:
    """The records of all calls, ascending."""

    gap = _GAP

    def __init__(self, pagemap: Pagemap) -> None:
        self._pagemap = pagemap
        self._present: list[Ints] = []  # records of present pages
        self._absent: list[Ints] = []  # records of absent and huge pages
        self._dense: list[tuple[int, int]] = []  # the ranges that were asked for absent pages

    def by_kind(self, at: int, end: int) -> None:
        while at < end:
            found, at = self._pagemap.call(PRESENT_KINDS, at, end)
            self._present.append(_copied(found))

    def plain(self, at: int, end: int) -> None:
        is_dense = True
        while at < end:
            if is_dense:
                found, last = self._pagemap.call(ABSENT, at, end)
                records = _copied(found)
                self._absent.append(records)
                self._dense.append((at, last))
                is_dense = 3 * _bytes_in(records, _is_absent(records[2::3])) < 2 * (last - at)
            else:
                found, last = self._pagemap.call(PRESENT, at, end)
                records = _copied(found)
                self._present.append(records)
                is_dense = 2 * _bytes_in(records) > last - at
            at = last

    def of(self, start: Ints, end: Ints, shared: Bools, shmem: Bools, of_device: Bools) -> Resident:
        """The sums of each mapping."""
        first, last, categories = _columns(self._present)
        is_file, is_huge = categories & IS_FILE != 0, categories & IS_HUGE != 0
        of_file = _within(first[is_file], last[is_file], start, end)
        present = _within(first, last, start, end)
        huge = _within(first[is_huge & ~is_file], last[is_huge & ~is_file], start, end)
        mapped_huge = _within(first[is_huge & is_file], last[is_huge & is_file], start, end)
        first, last, categories = _columns(self._absent)
        is_absent = _is_absent(categories)
        huge += _within(first[~is_absent], last[~is_absent], start, end)
        windows = np.array(self._dense, np.int64).reshape(-1, 2)
        present += _within(windows[:, 0], windows[:, 1], start, end)
        present -= _within(first[is_absent], last[is_absent], start, end)
        mapped_huge += np.where(shared, huge, 0)  # counted without their kind
        return Resident(
            rss=np.where(of_device, of_file, present).tolist(),
            anonymous=np.where(shared, 0, present - of_file).tolist(),
            anon_huge=np.where(shared, 0, huge).tolist(),
            shmem_huge=np.where(shmem, mapped_huge, 0).tolist(),
            file_huge=np.where(shmem, 0, mapped_huge).tolist(),
        )


class _ByEntries(_Scan):
    """The same without PAGEMAP_SCAN; entries do not show huge pages."""

    gap = 64 * PAGE  # a gap has entries, too

    def __init__(self, pagemap: Pagemap) -> None:
        super().__init__(pagemap)
        self._entries = Entries(pagemap)

    def by_kind(self, at: int, end: int) -> None:
        self._present += self._entries.present(at, end)

    plain = by_kind

    def of(self, start: Ints, end: Ints, shared: Bools, shmem: Bools, of_device: Bools) -> Resident:
        found = super().of(start, end, shared, shmem, of_device)
        return replace(found, anon_huge=None, shmem_huge=None, file_huge=None)


def _is_absent(categories: Ints) -> Bools:
    """Which records of ABSENT are of absent pages; the others are of huge pages."""
    absent: Bools = categories & (IS_HUGE | IS_PFNZERO) != IS_HUGE
    return absent


def _bytes_in(records: Ints, which: "Bools | slice" = slice(None)) -> int:
    return int((records[1::3] - records[::3])[which].sum())


def _copied(found: memoryview) -> Ints:
    words: Ints = np.frombuffer(found, np.int64).copy()
    return words


def _columns(records: Sequence[Ints]) -> tuple[Ints, Ints, Ints]:
    """Starts, ends and categories."""
    table = np.concatenate(records).reshape(-1, 3) if records else np.empty((0, 3), np.int64)
    return table[:, 0], table[:, 1], table[:, 2]


def _kind(path: str, *, shared: bool) -> int:
    if path.startswith(("[vvar", "[vsyscall", "/anon_hugepage")):
        return _NONE
    if path.startswith(_OF_DEVICES) and not path.startswith(("/dev/zero", "/dev/shm/")):
        return _KINDS
    if path == "[vdso]" or (path.startswith("/") and not shared and not path.startswith("/dev/zero")):
        return _KINDS
    return _PLAIN


def _addresses(values: Sequence[int]) -> Ints:
    """As signed numbers; [vsyscall] lies above all that is scanned."""
    addresses: Ints = np.minimum(np.array(values, np.uint64), _TOP).astype(np.int64)
    return addresses


def _spans(start: Ints, end: Ints, kinds: Ints, gap: int) -> Iterator[tuple[int, int]]:
    """Places (first, one past the last) of consecutive mappings that are scanned in one call."""
    cuts = np.flatnonzero((kinds[1:] != kinds[:-1]) | (start[1:] - end[:-1] > gap)) + 1
    for first, last in zip([0, *cuts.tolist()], [*cuts.tolist(), len(kinds)], strict=True):
        if first < last and kinds[first] != _NONE:
            for place in range(first, last, _CALL_MAPPINGS):
                yield place, min(place + _CALL_MAPPINGS, last)


def _within(first: Ints, last: Ints, start: Ints, end: Ints) -> Ints:
    """The bytes of the runs in each mapping."""
    if not len(first):
        return np.zeros(len(start), np.int64)
    return _below(first, last, end) - _below(first, last, start)


def _below(first: Ints, last: Ints, edges: Ints) -> Ints:
    """The bytes of the runs, which are ascending and disjoint, below each edge."""
    so_far = np.concatenate(([0], np.cumsum(last - first)))
    runs = np.searchsorted(first, edges, side="right")
    beyond = np.maximum(last[np.maximum(runs - 1, 0)] - edges, 0)
    below: Ints = so_far[runs] - np.where(runs > 0, beyond, 0)
    return below
