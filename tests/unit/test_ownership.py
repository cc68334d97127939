"""The waterfall sums to the kernel's figure, and each byte lies in the layer of its owner."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from memforensics.analysis.ownership import HUGE_PAGES, MARK_OWNERS, Owner, kernel_totals, layers, owner_of, pieces
from memforensics.case.model import HeapState, KernelTotals, LayerRow, Mapping, OwnerMark, Rollup, Snapshot
from memforensics.target.maps import parse_maps
from memforensics.units import MIB

PAGE = 4096
LIBC = "/usr/lib/x86_64-linux-gnu/libc.so.6"


def mapping(
    start: int, pages: int, path: str = "", *, perms: str = "rw-p", rss: int | None = None, anon: int | None = None
) -> Mapping:
    """`rss` and `anon` in pages; all resident when not told, all anonymous where there is no file."""
    resident = pages if rss is None else rss
    anonymous = anon if anon is not None else (0 if perms.endswith("s") or path.startswith("/") else resident)
    return Mapping(
        start=start * PAGE,
        end=(start + pages) * PAGE,
        perms=perms,
        offset=0,
        device="00:00",
        inode=0,
        path=path,
        rss=resident * PAGE,
        anonymous=anonymous * PAGE,
    )


def snapshot(*mappings: Mapping, marks: tuple[OwnerMark, ...] = (), extra_pages: int = 0) -> Snapshot:
    """With a rollup of what the mappings sum to, and `extra_pages` more."""
    total = sum(m.rss or 0 for m in mappings) + extra_pages * PAGE
    rollup = Rollup(rss_anon=max(total, 0), rss_file=0, rss_shmem=0)
    return Snapshot(pid=1, t_ns=0, reader="smaps", mappings=mappings, rollup=rollup, marks=marks)


def by_layer(rows: tuple[LayerRow, ...]) -> dict[str, int]:
    return {row.layer: (row.bytes or 0) // PAGE for row in rows if row.in_rss and row.bytes}


def test_layers_by_mapping_names() -> None:
    seen = snapshot(
        mapping(10, 1, "[heap]"),
        mapping(20, 2, "[stack]"),
        mapping(30, 4),
        mapping(40, 8, "/dev/zero (deleted)", perms="rw-s"),
        mapping(50, 16, "/memfd:pool (deleted)", perms="rw-s"),
        mapping(70, 32, "/dev/shm/segment", perms="rw-s"),
        mapping(110, 64, "/models/a.safetensors", perms="r--p"),
    )
    assert by_layer(layers(None, seen)) == {
        "native-heap": 1, "thread-stack": 2, "anon-mmap": 12, "shmem": 48, "file": 64,
    }  # fmt: skip


def test_modified_library_pages_are_anonymous() -> None:
    seen = snapshot(
        mapping(10, 8, LIBC, perms="r-xp"), mapping(18, 4, LIBC, perms="rw-p", anon=3), mapping(22, 2), mapping(40, 5)
    )
    assert [(p.group, (p.bytes or 0) // PAGE) for p in pieces(seen)] == [
        ("libraries and program", 8),
        ("library data", 3),
        ("libraries and program", 1),
        ("library data", 2),  # its .bss, directly behind
        ("anonymous", 5),
    ]
    assert by_layer(layers(None, seen)) == {"file": 9, "anon-mmap": 10}


def test_a_mark_owns_its_part_of_a_mapping() -> None:
    mark = OwnerMark(start=12 * PAGE, end=16 * PAGE, kind="pymalloc-arena", resident_bytes=3 * PAGE)
    seen = snapshot(mapping(10, 10, rss=8), marks=(mark,))
    assert by_layer(layers(None, seen)) == {"python-object": 3, "anon-mmap": 5}


def test_device_mappings_are_outside_rss() -> None:
    rows = layers(None, snapshot(mapping(10, 4, "/dev/nvidia-uvm", perms="rw-s", rss=0)))
    assert [(row.layer, row.in_rss, row.bytes) for row in rows if row.bytes] == [("gpu", False, 4 * PAGE)]


# Lines as drivers make them. What is inaccessible is reserved address space only.
DEVICES = """\
200000000-200200000 ---p 00000000 00:00 0
200200000-200400000 rw-s 00000000 00:06 627                              /dev/nvidiactl
203c00000-204800000 rw-s 00000000 00:06 628                              /dev/nvidia-uvm
7f6a3c000000-7f6a3c200000 rw-s 00000000 00:06 629                        /dev/nvidia0
7f6a40000000-7f6a60000000 rw-s 00000000 00:06 628                        /dev/nvidia-uvm (deleted)
7f6a60000000-7f6e60000000 ---s 00000000 00:06 628                        /dev/nvidia-uvm
7f6e70000000-7f6e70001000 -w-s 00000000 00:06 310                        /dev/infiniband/uverbs0
7f6e70001000-7f6e70002000 rw-s 500000000 00:06 310                       /dev/infiniband/uverbs0
7f6e80000000-7f6e80400000 rw-s 10c4b5000 00:06 480                       /dev/dri/renderD128
7f6e81000000-7f6e81200000 rw-s 4000000000000000 00:06 481                /dev/kfd
7f6e90000000-7f6e90100000 rw-s 00000000 00:06 99                         /dev/hfi1_0
7f6e91000000-7f6e91040000 rw-s 00000000 00:06 1034                       /dev/accel/accel0
7f6ea0000000-7f6ea0200000 rw-s 00000000 00:0f 21                         anon_inode:[io_uring]
7f6ea1000000-7f6ea1081000 rw-s 00000000 00:0f 1033                       anon_inode:[perf_event]
7f6ea2000000-7f6ea2400000 rw-s 00000000 00:10 9                          /dmabuf:
7f6ea3000000-7f6ea3200000 rw-s 00000000 00:2c 77                         /dev/hugepages/rtemap_0
7f6ea4000000-7f6ea4001000 rw-s 00000000 00:06 7                          /dev/zero
what is this
"""


def test_device_mappings_by_device_node() -> None:
    parsed = parse_maps(DEVICES)
    assert parsed.unparsed_lines == 1
    unread = Snapshot(pid=1, t_ns=0, reader="maps", mappings=parsed.mappings)
    found: dict[tuple[str, str], int] = {}
    for piece in pieces(unread):
        if not piece.in_rss:
            found[piece.group, piece.layer] = found.get((piece.group, piece.layer), 0) + (piece.bytes or 0)
    assert found == {
        ("NVIDIA GPU mappings", "gpu"): (2 + 12 + 2 + 512) * MIB,
        ("GPU mappings", "gpu"): 4 * MIB,
        ("AMD GPU mappings", "gpu"): 2 * MIB,
        ("RDMA device mappings", "device"): 2 * PAGE,
        ("device mappings", "device"): MIB + 256 * 1024,
        ("kernel buffers", "device"): 2 * MIB + 0x81000 + 4 * MIB,
    }
    named = {piece.mapping.path: piece.group for piece in pieces(unread)}
    assert named["/dev/zero"] == "anonymous, shared"
    assert named["/dev/hugepages/rtemap_0"] == HUGE_PAGES, "a mount that happens to lie there"


def test_memory_that_mappings_do_not_show_is_unattributed() -> None:
    assert by_layer(layers(None, snapshot(mapping(10, 4), extra_pages=3))) == {"anon-mmap": 4, "unattributed": 3}
    assert by_layer(layers(None, snapshot(mapping(10, 4), extra_pages=-3))) == {"anon-mmap": 1}


def test_retention_is_subtracted_from_the_heap_once_read() -> None:
    seen = snapshot(mapping(10, 10, "[heap]"))
    (unread,) = (row for row in layers(None, seen) if row.layer == "allocator-retention")
    assert (unread.bytes, unread.in_rss) == (None, False)
    heap = HeapState(pid=1, t_ns=0, allocator="glibc", retained_bytes=4 * PAGE)
    assert by_layer(layers(None, seen, heaps=[heap])) == {"native-heap": 6, "allocator-retention": 4}
    later = HeapState(pid=1, t_ns=1, allocator="glibc", retained_bytes=2 * PAGE)
    rows = layers(seen, seen, heaps=[later, heap])
    assert by_layer(rows) == {"native-heap": 8, "allocator-retention": 2}, "the last reading counts"
    assert {row.change_bytes for row in rows} == {0, None}


def unread(start: int, pages: int, path: str = "", perms: str = "rw-p") -> Mapping:
    """As /proc/PID/maps tells it: nothing of what is resident."""
    return replace(mapping(start, pages, path, perms=perms), rss=None, anonymous=None)


def owners(*mappings: Mapping, marks: tuple[OwnerMark, ...] = ()) -> list[tuple[str, str, int | None, bool]]:
    """Group, layer, pages and whether in RSS, of each piece."""
    return [
        (p.group, p.layer, None if p.bytes is None else p.bytes // PAGE, p.in_rss)
        for p in pieces(snapshot(*mappings, marks=marks))
    ]


def marked(start: int, pages: int, kind: str, resident: int | None = None) -> OwnerMark:
    in_bytes = None if resident is None else resident * PAGE
    return OwnerMark(start=start * PAGE, end=(start + pages) * PAGE, kind=kind, resident_bytes=in_bytes)


NAMES = [
    ("[stack]", "thread stacks", "thread-stack"),
    ("[anon:glibc: malloc arena]", "glibc arenas", "native-heap"),
    ("[anon: Go: heap]", "Go heap", "native-heap"),
    ("[anon_shmem:mimalloc]", "mimalloc", "native-heap"),
    ("[anon:stage 2]", "anonymous, named 'stage 2'", "anon-mmap"),
    ("[vdso]", "kernel pages (vdso, vvar)", "file"),
    ("/dev/zero (deleted)", "anonymous", "anon-mmap"),
    ("/anon_hugepage (deleted)", HUGE_PAGES, "anon-mmap"),
    ("/dev/hugepages/a", HUGE_PAGES, "shmem"),
    ("/memfd:java_heap (deleted)", "Java heap", "jvm-heap"),
    ("/memfd:pool (deleted)", "memfd pool", "shmem"),
    ("/memfd: (deleted)", "memfd", "shmem"),
    ("/SYSV00000000 (deleted)", "SysV shared memory", "shmem"),
    ("/dev/shm/a", "POSIX shared memory (/dev/shm)", "shmem"),
    ("/srv/a/table.bin (deleted)", "file table.bin", "file"),
]


@pytest.mark.parametrize(("path", "group", "layer"), NAMES)
def test_group_and_layer_by_name(path: str, group: str, layer: str) -> None:
    assert owners(mapping(10, 4, path)) == [(group, layer, 4, True)]
    assert owners(unread(10, 4, path)) == [(group, layer, None, True)]


@pytest.mark.parametrize(
    ("path", "copies"),
    [
        ("/memfd:pool", "private copies of memfd pages"),
        ("/dev/shm/a", "private copies of shared memory"),
        ("/srv/table.bin (deleted)", "modified pages of table.bin"),
    ],
)
def test_private_copies_of_file_pages_are_anonymous(path: str, copies: str) -> None:
    """Those of a private mapping that were written to."""
    (own, rest) = owners(mapping(10, 8, path, rss=5, anon=2))
    assert (own, rest[2:]) == ((copies, "anon-mmap", 2, True), (3, True))
    assert owners(mapping(10, 8, path, rss=2, anon=2)) == [(copies, "anon-mmap", 2, True)]
    assert len(owners(replace(mapping(10, 8, path, rss=5), anonymous=None))) == 1


DATA = mapping(10, 4, LIBC, perms="rw-p")
CODE = mapping(4, 2, LIBC, perms="r-xp")


@pytest.mark.parametrize(
    ("before", "what", "is_bss"),
    [
        (DATA, mapping(14, 3), True),
        (DATA, mapping(15, 3), False),  # does not touch it
        (DATA, mapping(14, 3, perms="r--p"), False),
        (mapping(10, 4, LIBC, perms="r--p"), mapping(14, 3), False),
        (mapping(10, 4, "/srv/table.bin"), mapping(14, 3), False),  # no library
    ],
)
def test_anonymous_memory_after_library_data_is_its_bss(before: Mapping, what: Mapping, is_bss: bool) -> None:
    assert owners(CODE, before, what)[-1][0] == ("library data" if is_bss else "anonymous")


def test_a_file_with_an_executable_mapping_is_a_program() -> None:
    found = owners(mapping(1, 1, "[vdso]", perms="r-xp"), CODE, mapping(30, 2, "/srv/table.bin", perms="r--p"))
    assert [group for group, *_ in found][1:] == ["libraries and program", "file table.bin"]


def test_marks_of_one_mapping_own_their_parts() -> None:
    marks = (marked(12, 2, "glibc-arena"), marked(16, 4, "v8-heap", resident=1), marked(0, 5, "jemalloc"))
    assert owners(mapping(10, 10), marks=marks) == [
        ("glibc arenas", "native-heap", 2, True),
        ("V8 heap (JavaScript)", "native-heap", 1, True),
        ("anonymous", "anon-mmap", 7, True),
    ]
    assert owners(mapping(10, 10, rss=1), marks=marks) == [
        ("glibc arenas", "native-heap", 1, True),
        ("V8 heap (JavaScript)", "native-heap", 0, True),
    ]
    assert [found[2] for found in owners(unread(10, 10), marks=marks)] == [None, None]


def test_a_mark_can_cover_several_mappings() -> None:
    """The whole of a mapping is its, whatever part of that it says is resident."""
    over = (marked(12, 10, "pymalloc-arena", resident=1),)
    found = owners(mapping(10, 4), mapping(14, 6), mapping(20, 5), mapping(25, 5), marks=over)
    assert [(layer, size) for _, layer, size, _ in found] == [
        ("python-object", 1), ("anon-mmap", 3), ("python-object", 6), ("python-object", 1), ("anon-mmap", 4),
        ("anon-mmap", 5),
    ]  # fmt: skip


def test_stacks_of_ended_threads_are_a_group_of_thread_stacks() -> None:
    """glibc keeps them for the next thread: they are the threads' memory, and no anonymous mapping."""
    marks = (marked(10, 3, "thread-stack"), marked(20, 2, "thread-stack-unused"))
    assert owners(mapping(10, 3), mapping(20, 2), marks=marks) == [
        ("thread stacks", "thread-stack", 3, True),
        ("stacks of ended threads", "thread-stack", 2, True),
    ]


def test_a_mark_that_ends_at_a_mapping_does_not_own_it() -> None:
    around = (marked(6, 4, "jemalloc"), marked(14, 4, "jemalloc"))
    assert owners(mapping(10, 4), marks=around) == [("anonymous", "anon-mmap", 4, True)]


def test_a_mark_of_an_unknown_kind_is_unattributed() -> None:
    assert owners(mapping(10, 4), marks=(marked(10, 4, "moonmalloc"),)) == [("moonmalloc", "unattributed", 4, True)]


def test_files_on_tmpfs_are_shared_memory() -> None:
    path, whole = "/models/a.safetensors", mapping(10, 8, "/models/a.safetensors", rss=5, anon=1)
    changed = ("modified pages of a.safetensors", "anon-mmap", 1, True)
    for kind, group, layer in (
        ("tmpfs-file", "file a.safetensors", "shmem"),
        ("weights-file", "weights a.safetensors", "file"),
        ("tmpfs-weights-file", "weights a.safetensors", "shmem"),
    ):
        assert owners(whole, marks=(marked(10, 8, kind),)) == [changed, (group, layer, 4, True)], (kind, path)


def test_hugetlb_pages_are_outside_rss() -> None:
    for path, layer in (("/anon_hugepage (deleted)", "anon-mmap"), ("/mnt/huge/a", "shmem")):
        mark = (marked(10, 512, "hugetlb", resident=256),)
        assert owners(mapping(10, 512, path), marks=mark) == [(HUGE_PAGES, layer, 256, False)]


def test_hugetlb_pages_without_a_mapping_are_counted() -> None:
    mark = (marked(10, 512, "hugetlb", resident=256),)
    seen = snapshot(mapping(10, 512, "/mnt/huge/a", rss=0), marks=mark)
    assert seen.rollup is not None
    rows = layers(None, replace_rollup(seen, hugetlb=300 * PAGE))
    outside = {row.layer: row.bytes for row in rows if not row.in_rss and row.bytes}
    assert outside == {"shmem": 256 * PAGE, "anon-mmap": 44 * PAGE}
    rows = layers(None, replace_rollup(seen, hugetlb=256 * PAGE))
    assert [row.layer for row in rows if not row.in_rss and row.bytes] == ["shmem"]


def replace_rollup(seen: Snapshot, **sums: int) -> Snapshot:
    assert seen.rollup is not None
    return dataclasses.replace(seen, rollup=dataclasses.replace(seen.rollup, **sums))


def test_resident_device_pages_are_in_rss() -> None:
    assert owners(mapping(10, 8, "/dev/dri/card0", perms="rw-s", rss=3)) == [
        ("GPU mappings", "gpu", 3, True),
        ("GPU mappings", "gpu", 5, False),
    ]
    assert owners(mapping(10, 8, "/dev/dri/card0", perms="---s", rss=0)) == [("GPU mappings", "gpu", 0, False)]


def test_the_owner_of_most_bytes_owns_the_mapping() -> None:
    found = pieces(snapshot(mapping(10, 10, rss=9), marks=(marked(10, 6, "jemalloc", resident=5),)))
    assert owner_of(found) == Owner("jemalloc", "native-heap")
    assert owner_of(reversed(found)) == Owner("jemalloc", "native-heap")
    assert owner_of(pieces(snapshot(unread(10, 4)))) == Owner("anonymous", "anon-mmap")


def test_a_surplus_is_subtracted_from_the_largest_row() -> None:
    """What the kernel counts is less than what the mappings show: no row becomes negative."""
    three = (mapping(10, 4), mapping(20, 7, "[heap]"), mapping(30, 1, "[stack]"))
    rows = by_layer(layers(None, snapshot(*three, extra_pages=-2)))
    assert rows == {"anon-mmap": 4, "native-heap": 5, "thread-stack": 1}
    rows = by_layer(layers(None, snapshot(*three, extra_pages=-8)))
    assert rows == {"anon-mmap": 3, "thread-stack": 1}


def test_without_a_rollup_the_mappings_are_summed() -> None:
    bare = Snapshot(pid=1, t_ns=0, reader="maps", mappings=(mapping(10, 4), mapping(20, 6)))
    assert by_layer(layers(None, bare)) == {"anon-mmap": 10}
    grown = Snapshot(pid=1, t_ns=1, reader="maps", mappings=(mapping(10, 9), mapping(30, 2, "[heap]")))
    changes = {row.layer: row.change_bytes for row in layers(bare, grown) if row.in_rss}
    assert changes == {"anon-mmap": -PAGE, "native-heap": 2 * PAGE, "unattributed": 0}


def test_retention_is_subtracted_from_the_allocator_s_heap() -> None:
    marks = (marked(20, 10, "pymalloc-arena"),)
    seen = snapshot(mapping(10, 10, "[heap]"), mapping(20, 10), marks=marks)
    heaps = [
        HeapState(pid=1, t_ns=0, allocator="glibc", retained_bytes=4 * PAGE),
        HeapState(pid=1, t_ns=0, allocator="pymalloc", retained_bytes=99 * PAGE),  # more than there is
        HeapState(pid=1, t_ns=9, allocator="jemalloc", retained_bytes=None),
    ]
    assert by_layer(layers(None, seen, heaps=heaps)) == {"native-heap": 6, "allocator-retention": 14}


PATHS = ["", "[heap]", "[stack]", LIBC, "/m/x.gguf", "/memfd:a (deleted)", "/dev/zero (deleted)", "/dev/shm/a",
         "[vdso]", "/dev/nvidia0", "/dev/infiniband/uverbs0", "/SYSV00000000 (deleted)"]  # fmt: skip


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    mappings, marks, at = [], [], 1
    for path in draw(st.lists(st.sampled_from(PATHS), max_size=12)):
        pages = draw(st.integers(1, 1000))
        rss = draw(st.integers(0, pages))
        perms = draw(st.sampled_from(["rw-p", "r-xp", "rw-s"]))
        mappings.append(mapping(at, pages, path, perms=perms, rss=rss, anon=draw(st.integers(0, rss))))
        if draw(st.booleans()):
            begin = at + draw(st.integers(0, pages - 1))
            kind = draw(st.sampled_from([*MARK_OWNERS, "tmpfs-file", "something new"]))
            resident = draw(st.none() | st.integers(0, pages).map(lambda p: p * PAGE))
            marks.append(OwnerMark(start=begin * PAGE, end=(at + pages) * PAGE, kind=kind, resident_bytes=resident))
        at += pages + draw(st.integers(0, 2))
    return snapshot(*mappings, marks=tuple(marks), extra_pages=draw(st.integers(-2000, 2000)))


@given(snapshots())
def test_rows_sum_to_rss_and_none_is_negative(seen: Snapshot) -> None:
    rows = layers(None, seen)
    assert seen.rollup is not None
    assert sum(row.bytes or 0 for row in rows if row.in_rss) == seen.rollup.rss_anon
    assert all(row.bytes is None or row.bytes >= 0 for row in rows)
    assert any(row.layer == "unattributed" for row in rows), "always shown"


@given(snapshots())
def test_pieces_sum_to_each_mappings_rss(seen: Snapshot) -> None:
    sums = {m.start: 0 for m in seen.mappings}
    for piece in pieces(seen):
        if piece.in_rss:
            sums[piece.mapping.start] += piece.bytes or 0
    assert sums == {m.start: m.rss for m in seen.mappings}


@given(snapshots(), snapshots())
def test_changes_sum_to_the_change_of_rss(before: Snapshot, after: Snapshot) -> None:
    assert before.rollup is not None
    assert after.rollup is not None
    changes = sum(row.change_bytes or 0 for row in layers(before, after) if row.in_rss)
    assert changes == after.rollup.rss_anon - before.rollup.rss_anon


def test_kernel_sums_the_layers_are_of_all_members_or_not_told() -> None:
    def member(swap: int | None, huge: int | None) -> Snapshot:
        one = replace(mapping(10, 4), anon_huge=huge)
        rollup = Rollup(rss_anon=4 * PAGE, rss_file=0, rss_shmem=0, swap=swap, locked=PAGE)
        return Snapshot(pid=1, t_ns=0, reader="smaps", mappings=(one, one), rollup=rollup)

    both = kernel_totals([member(PAGE, PAGE), member(2 * PAGE, 0)])
    assert (both.swap, both.locked, both.anon_huge, both.hugetlb) == (3 * PAGE, 2 * PAGE, 2 * PAGE, None)
    one_unread = kernel_totals([member(PAGE, None), member(None, 0)])
    assert (one_unread.swap, one_unread.anon_huge) == (None, None)
    assert kernel_totals([]) == KernelTotals()
