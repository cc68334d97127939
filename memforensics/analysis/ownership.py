"""The owner of each mapping, and the layers that sum to the kernel's RSS. Pure.

The layer of a resident byte, by the first rule that applies:

1. A mark (a probe recognized the range by its content or place) owns the bytes of its range. Marks of files only add to
   rule 3: `tmpfs-` means that the pages are RssShmem (layer `shmem`), `weights-file` that the file has model weights.
2. Anonymous pages of a private file mapping are private memory of the program: layer `anon-mmap`. For libraries and the
   program they are the group "library data", with the .bss that follows. So the layer `file` holds page cache only, and
   RssAnon, RssFile and RssShmem can be recognized in the rows.
3. The mapping's name: [heap], [stack], memfd, SysV and /dev/shm segments, devices, files. Shared anonymous memory
   (`/dev/zero (deleted)`, which Python's mmap.mmap(-1, n) maps) is used privately and belongs to `anon-mmap`.
4. Any other anonymous mapping is `anon-mmap`, in the group "anonymous".
5. Memory that the kernel counts but the mappings do not show (pages added between the two readings, unread mappings) is
   `unattributed`. If the mappings show more than the kernel counts (pages removed in between; before Linux 6.17 status
   itself is inexact by up to 64 pages per CPU and thread), the surplus is subtracted from `unattributed` and then from
   the largest row. So no row is negative, and the sum is exact.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Mapping as MappingOf
from dataclasses import dataclass

import msgspec
from msgspec import structs

from memforensics.case.model import (
    LAYERS,
    HeapState,
    KernelTotals,
    Layer,
    LayerRow,
    Mapping,
    OwnerMark,
    Rollup,
    Snapshot,
)
from memforensics.text import basename

# Kind of an OwnerMark -> name of the mapping group, and its layer.
MARK_OWNERS: dict[str, tuple[str, Layer]] = {
    "heap": ("program heap ([heap])", "native-heap"),
    "glibc-arena": ("glibc arenas", "native-heap"),
    "malloc-mmapped": ("mmapped malloc blocks", "native-heap"),
    "jemalloc": ("jemalloc", "native-heap"),
    "tcmalloc": ("tcmalloc", "native-heap"),
    "mimalloc": ("mimalloc", "native-heap"),
    "musl": ("musl malloc", "native-heap"),
    "pymalloc-arena": ("Python object arenas", "python-object"),
    "thread-stack": ("thread stacks", "thread-stack"),
    "thread-stack-unused": ("stacks of ended threads", "thread-stack"),
    "jvm-heap": ("Java heap", "jvm-heap"),
    "jvm-code": ("JVM code cache", "jvm-native"),
    "jvm-metaspace": ("JVM metaspace", "jvm-native"),
    "jvm-gc": ("JVM GC structures", "jvm-native"),
    "jvm-native": ("other JVM memory", "jvm-native"),
    "go-heap": ("Go heap", "native-heap"),
    "go-runtime": ("Go runtime structures", "native-heap"),
    "v8-heap": ("V8 heap (JavaScript)", "native-heap"),
}
# How a sentence calls a layer.
LAYER_NAMES: dict[Layer, str] = {
    "anon-mmap": "Anonymous memory",
    "native-heap": "C heap",
    "python-object": "Python heap",
    "allocator-retention": "Freed memory that the allocator keeps",
    "thread-stack": "Thread stack memory",
    "shmem": "Shared memory",
    "file": "Mapped file memory",
    "jvm-heap": "Java heap",
    "jvm-native": "JVM memory outside its heap",
    "gpu": "GPU memory",
    "device": "Device memory",
    "unattributed": "Memory",
}
FILE_MARKS = ("tmpfs-file", "weights-file", "tmpfs-weights-file")
HUGETLB = "hugetlb"
HUGE_PAGES = "huge pages (hugetlb)"
ANONYMOUS = "anonymous"
SHARED_ANONYMOUS = "anonymous, shared"
LIBRARY_DATA = "library data"

# Names of anonymous mappings (prctl PR_SET_VMA_ANON_NAME, Linux 5.17).
_ANON_NAMES: tuple[tuple[str, str], ...] = (
    ("glibc: malloc", "glibc-arena"),
    ("jemalloc", "jemalloc"),
    ("tcmalloc", "tcmalloc"),
    ("mimalloc", "mimalloc"),
    ("Go: heap", "go-heap"),
)
_DEVICES: tuple[tuple[str, str, Layer], ...] = (
    ("/dev/nvidia", "NVIDIA GPU mappings", "gpu"),
    ("/dev/dri/", "GPU mappings", "gpu"),
    ("/dev/kfd", "AMD GPU mappings", "gpu"),
    ("/dev/infiniband/", "RDMA device mappings", "device"),
    ("anon_inode:", "kernel buffers", "device"),  # io_uring, perf_event, bpf-map
    ("socket:", "kernel buffers", "device"),
    ("/dmabuf:", "kernel buffers", "device"),
    ("/sys/", "device mappings", "device"),  # memory of a PCI device: /sys/bus/pci/devices/.../resource0
    ("/proc/bus/pci/", "device mappings", "device"),
)
_NO_DEVICES = ("/dev/zero", "/dev/shm/", "/dev/hugepages")


Totals = MappingOf[tuple[Layer, bool], int]


class Piece(msgspec.Struct, frozen=True, gc=False):
    """The part of a mapping that one owner has. `bytes` None: not read. `in_rss` False: outside the kernel's RSS
    (device memory, hugetlb). A Struct for the same reason as Mapping."""

    mapping: Mapping
    group: str
    layer: Layer
    bytes: int | None
    in_rss: bool = True


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of most of a mapping."""

    group: str
    layer: Layer


def pieces(snapshot: Snapshot) -> list[Piece]:
    """All mappings, split by owner. A mapping has at least one piece; its pieces with in_rss sum to its rss."""
    marks = sorted(snapshot.marks, key=lambda mark: mark.start)
    libraries = library_paths(snapshot)
    out: list[Piece] = []
    previous: Mapping | None = None
    first = 0
    for mapping in snapshot.mappings:
        while first < len(marks) and marks[first].end <= mapping.start:
            first += 1
        if first < len(marks) and marks[first].start < mapping.end:
            beyond = bisect_left(marks, mapping.end, first, key=lambda mark: mark.start)
            own = marks[first:beyond]
            out += _split(mapping, own, libraries, previous)
        elif mapping.path == "" and (
            previous is None or previous.path == ""
        ):  # the common case in processes with many mappings
            out.append(Piece(mapping, ANONYMOUS, "anon-mmap", mapping.rss))
        else:
            out += _by_name(mapping, mapping.rss, mapping.anonymous, libraries, previous)
        previous = mapping
    return out


def owner_of(mapping_pieces: Iterable[Piece]) -> Owner:
    """The owner of most bytes of one mapping."""
    largest = max(mapping_pieces, key=lambda piece: piece.bytes or 0)
    return Owner(largest.group, largest.layer)


def library_paths(snapshot: Snapshot) -> frozenset[str]:
    """Files with an executable mapping: libraries and the program."""
    return frozenset(m.path for m in snapshot.mappings if "x" in m.perms and m.path.startswith("/"))


def layers(before: Snapshot | None, after: Snapshot, *, heaps: Sequence[HeapState] = ()) -> tuple[LayerRow, ...]:
    """The layers at `after`, with the change since `before` (None: without changes)."""
    return waterfall(totals(before) if before is not None else None, totals(after), heaps=heaps)


def waterfall(then: Totals | None, now: Totals, *, heaps: Sequence[HeapState] = ()) -> tuple[LayerRow, ...]:
    """The rows of all layers. Those with in_rss sum exactly to rss_anon + rss_file + rss_shmem of the rollup, or
    without a rollup to the sum over mappings.

    `allocator-retention` is subtracted from its heap if `heaps` has it. Otherwise its row has no bytes and counts in no
    sum; the bytes are in the rows of the heaps. Changes are computed before the subtraction, because the retention of
    the earlier snapshot was not read.
    """
    shown = _without_retention(now, heaps)
    found: list[LayerRow] = []
    keys = {*shown, *(then or {}), ("unattributed", True)}
    for layer in LAYERS:
        for in_rss in (True, False):
            if (layer, in_rss) not in keys:
                continue
            size = shown.get((layer, in_rss), 0)
            change = None
            if then is not None and layer != "allocator-retention":
                change = now.get((layer, in_rss), 0) - then.get((layer, in_rss), 0)
            found.append(LayerRow(layer=layer, in_rss=in_rss, bytes=size, change_bytes=change))
        if layer == "allocator-retention" and (layer, True) not in keys:
            found.append(LayerRow(layer=layer, in_rss=False, bytes=None))
    return tuple(found)


def kernel_rss(rollup: Rollup) -> int:
    """VmRSS."""
    return rollup.rss_anon + rollup.rss_file + rollup.rss_shmem


def kernel_totals(snapshots: Iterable[Snapshot]) -> KernelTotals:
    """The totals of several processes, one snapshot each. None if a snapshot lacks the figure."""
    sums = [_kernel_sums(snapshot) for snapshot in snapshots]
    out: dict[str, int | None] = {}
    for name in KernelTotals.__dataclass_fields__:
        known = [size for each in sums if (size := each[name]) is not None]
        out[name] = sum(known) if known and len(known) == len(sums) else None
    return KernelTotals(**out)


def _kernel_sums(snapshot: Snapshot) -> dict[str, int | None]:
    """The kernel's own figure, or the sum over the mappings that have it."""
    out = {}
    for name in KernelTotals.__dataclass_fields__:
        size = getattr(snapshot.rollup, name, None)
        if size is None and hasattr(Mapping, name):
            read = [value for mapping in snapshot.mappings if (value := getattr(mapping, name)) is not None]
            size = sum(read) if read else None
        out[name] = size
    return out


# --- sums ---------------------------------------------------------------------------------------------------------


def totals(snapshot: Snapshot) -> Totals:
    """Bytes by layer and in_rss, adjusted to the kernel's RSS (rule 5 above)."""
    sums: dict[tuple[Layer, bool], int] = {}
    huge = 0
    for piece in pieces(snapshot):
        if piece.bytes:
            huge += piece.bytes if piece.group == HUGE_PAGES else 0
            key = (piece.layer, piece.in_rss)
            sums[key] = sums.get(key, 0) + piece.bytes
    if snapshot.rollup is not None:
        _adjust(sums, kernel_rss(snapshot.rollup))
        rest = (snapshot.rollup.hugetlb or 0) - huge
        if rest > 0:  # of mappings that are not known
            key = ("anon-mmap", False)
            sums[key] = sums.get(key, 0) + rest
    return sums


def totals_of(snapshots: Iterable[Snapshot]) -> Totals:
    """The sums over several processes, one snapshot each."""
    sums: dict[tuple[Layer, bool], int] = {}
    for snapshot in snapshots:
        for key, size in totals(snapshot).items():
            sums[key] = sums.get(key, 0) + size
    return sums


def _adjust(totals: dict[tuple[Layer, bool], int], figure: int) -> None:
    """Adjusts the rows in RSS so that they sum to the kernel's RSS (rule 5 above)."""
    rest = figure - sum(size for (_, in_rss), size in totals.items() if in_rss)
    totals["unattributed", True] = totals.get(("unattributed", True), 0) + rest
    surplus = -totals["unattributed", True]
    if surplus <= 0:
        return
    totals["unattributed", True] = 0
    for key in sorted((key for key in totals if key[1]), key=lambda key: -totals[key]):
        taken = min(surplus, totals[key])
        totals[key] -= taken
        surplus -= taken


def _without_retention(
    totals: MappingOf[tuple[Layer, bool], int], heaps: Sequence[HeapState]
) -> dict[tuple[Layer, bool], int]:
    """The totals with the retention of each allocator, as last read, moved from its heap to `allocator-retention`."""
    out = dict(totals)
    latest = {heap.allocator: heap for heap in sorted(heaps, key=lambda h: h.t_ns) if heap.retained_bytes is not None}
    for heap in latest.values():
        home: Layer = "python-object" if heap.allocator == "pymalloc" else "native-heap"
        moved = min(heap.retained_bytes or 0, out.get((home, True), 0))
        out[home, True] = out.get((home, True), 0) - moved
        key: tuple[Layer, bool] = ("allocator-retention", True)
        out[key] = out.get(key, 0) + moved
    return out


# --- one mapping --------------------------------------------------------------------------------------------------


def _split(
    mapping: Mapping, marks: Sequence[OwnerMark], libraries: frozenset[str], previous: Mapping | None
) -> Iterator[Piece]:
    huge = next((mark for mark in marks if mark.kind == HUGETLB), None)
    if huge is not None:
        layer: Layer = "anon-mmap" if mapping.path.startswith("/anon_hugepage") else "shmem"
        yield Piece(mapping, HUGE_PAGES, layer, huge.resident_bytes, in_rss=False)
        return  # a page-table reader may count them as resident, but they are outside RSS
    file_mark = next((mark.kind for mark in marks if mark.kind in FILE_MARKS), None)
    if file_mark is not None:
        weights, on_tmpfs = file_mark.endswith("weights-file"), file_mark.startswith("tmpfs-")
        for piece in _by_name(mapping, mapping.rss, mapping.anonymous, libraries, previous, weights=weights):
            yield structs.replace(piece, layer="shmem") if on_tmpfs and piece.layer == "file" else piece
        return
    left = mapping.rss
    for mark in marks:
        group, layer = MARK_OWNERS.get(mark.kind, (mark.kind, "unattributed"))
        covered = min(mark.end, mapping.end) - max(mark.start, mapping.start)
        if left is None:
            its = None
        elif mark.start <= mapping.start and mark.end >= mapping.end:
            its = left
        else:
            its = min(left, covered if mark.resident_bytes is None else mark.resident_bytes)
        yield Piece(mapping, group, layer, its)
        left = left - its if left is not None and its is not None else None
    if left:
        anonymous = None if mapping.anonymous is None else min(left, mapping.anonymous)
        yield from _by_name(mapping, left, anonymous, libraries, previous)


def _by_name(
    mapping: Mapping,
    rss: int | None,
    anonymous: int | None,
    libraries: frozenset[str],
    previous: Mapping | None,
    *,
    weights: bool = False,
) -> Iterator[Piece]:
    """Rules 2 to 4. `weights`: the file has model weights."""
    path = mapping.path
    device = next(((group, layer) for prefix, group, layer in _DEVICES if path.startswith(prefix)), None)
    if device is None and path.startswith("/dev/") and not path.startswith(_NO_DEVICES):
        device = ("device mappings", "device")
    if device is not None:
        if rss:
            yield Piece(mapping, *device, rss)
        is_open = mapping.perms[:3] != "---"  # else reserved address space
        yield Piece(mapping, *device, mapping.size - (rss or 0) if is_open else 0, in_rss=False)
        return
    group, layer, copies = _named(mapping, libraries, previous, weights)
    if copies is None or not anonymous or rss is None:
        yield Piece(mapping, group, layer, rss)
        return
    yield Piece(mapping, copies, "anon-mmap", anonymous)
    if rss > anonymous:
        yield Piece(mapping, group, layer, rss - anonymous)


def _named(
    mapping: Mapping, libraries: frozenset[str], previous: Mapping | None, weights: bool
) -> tuple[str, Layer, str | None]:
    """Group, layer, and the group of its anonymous pages if that differs."""
    path = mapping.path
    if path == "":
        is_bss = (
            previous is not None
            and previous.end == mapping.start
            and previous.path in libraries
            and previous.perms.startswith("rw")
            and mapping.perms.startswith("rw")
        )
        return (LIBRARY_DATA if is_bss else ANONYMOUS), "anon-mmap", None
    if path == "[heap]":
        return *MARK_OWNERS["heap"], None
    if path.startswith("[stack"):
        return *MARK_OWNERS["thread-stack"], None
    if path.startswith(("[anon:", "[anon_shmem:")):
        name = path.partition(":")[2].rstrip("]").strip()
        kind = next((kind for prefix, kind in _ANON_NAMES if name.startswith(prefix)), None)
        if kind is not None:
            return *MARK_OWNERS[kind], None
        return f"anonymous, named {name!r}", "anon-mmap", None
    if path.startswith("["):
        return "kernel pages (vdso, vvar)", "file", None
    if path.startswith("/dev/zero"):
        return (SHARED_ANONYMOUS if mapping.shared else ANONYMOUS), "anon-mmap", None
    if path.startswith("/anon_hugepage"):
        return HUGE_PAGES, "anon-mmap", None
    if path.startswith("/dev/hugepages"):
        return HUGE_PAGES, "shmem", None
    if path.startswith("/memfd:java_heap"):
        return *MARK_OWNERS["jvm-heap"], None
    if path.startswith("/memfd:"):
        return f"memfd {path[7:].removesuffix(' (deleted)')}".rstrip(), "shmem", "private copies of memfd pages"
    if path.startswith("/SYSV"):
        return "SysV shared memory", "shmem", None
    if path.startswith("/dev/shm/"):
        return "POSIX shared memory (/dev/shm)", "shmem", "private copies of shared memory"
    if path in libraries:
        return "libraries and program", "file", LIBRARY_DATA
    name = basename(path)
    if weights:
        return f"weights {name}", "file", f"modified pages of {name}"
    return f"file {name}", "file", f"modified pages of {name}"
