"""The waterfall sums to the kernel's figure, and each byte lies in the layer of its owner."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from memforensics.analysis.ownership import HUGE_PAGES, MARK_OWNERS, beside, layers, pieces
from memforensics.case.model import Beside, HeapState, LayerRow, Mapping, OwnerMark, Rollup, Snapshot
from memforensics.target.parse import parse_maps
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


def test_names_tell_the_layer() -> None:
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


def test_pages_that_a_library_changed_are_no_page_cache() -> None:
    seen = snapshot(
        mapping(10, 8, LIBC, perms="r-xp"), mapping(18, 4, LIBC, perms="rw-p", anon=3), mapping(22, 2), mapping(40, 5)
    )
    assert [(p.group, (p.bytes or 0) // PAGE) for p in pieces(seen)] == [
        ("libraries and program", 8),
        ("libraries' data", 3),
        ("libraries and program", 1),
        ("libraries' data", 2),  # its .bss, directly behind
        ("anonymous", 5),
    ]
    assert by_layer(layers(None, seen)) == {"file": 9, "anon-mmap": 10}


def test_a_mark_owns_its_part_of_a_mapping() -> None:
    mark = OwnerMark(start=12 * PAGE, end=16 * PAGE, kind="pymalloc-arena", resident_bytes=3 * PAGE)
    seen = snapshot(mapping(10, 10, rss=8), marks=(mark,))
    assert by_layer(layers(None, seen)) == {"python-object": 3, "anon-mmap": 5}


def test_devices_lie_beside_rss() -> None:
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


def test_mappings_of_devices_by_the_node_they_come_from() -> None:
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
        ("kernel's buffers", "device"): 2 * MIB + 0x81000 + 4 * MIB,
    }
    named = {piece.mapping.path: piece.group for piece in pieces(unread)}
    assert named["/dev/zero"] == "anonymous, shared"
    assert named["/dev/hugepages/rtemap_0"] == HUGE_PAGES, "a mount that happens to lie there"


def test_what_the_mappings_do_not_show_is_unattributed() -> None:
    assert by_layer(layers(None, snapshot(mapping(10, 4), extra_pages=3))) == {"anon-mmap": 4, "unattributed": 3}
    assert by_layer(layers(None, snapshot(mapping(10, 4), extra_pages=-3))) == {"anon-mmap": 1}


def test_retention_is_null_until_it_is_read_and_then_carved_out() -> None:
    seen = snapshot(mapping(10, 10, "[heap]"))
    (unread,) = (row for row in layers(None, seen) if row.layer == "allocator-retention")
    assert (unread.bytes, unread.in_rss) == (None, False)
    heap = HeapState(pid=1, t_ns=0, allocator="glibc", retained_bytes=4 * PAGE)
    assert by_layer(layers(None, seen, heaps=[heap])) == {"native-heap": 6, "allocator-retention": 4}
    later = HeapState(pid=1, t_ns=1, allocator="glibc", retained_bytes=2 * PAGE)
    rows = layers(seen, seen, heaps=[later, heap])
    assert by_layer(rows) == {"native-heap": 8, "allocator-retention": 2}, "the last reading counts"
    assert {row.change_bytes for row in rows} == {0, None}


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
def test_rows_sum_to_the_kernels_figure_and_none_is_negative(seen: Snapshot) -> None:
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
def test_changes_sum_to_the_change_of_the_figure(before: Snapshot, after: Snapshot) -> None:
    assert before.rollup is not None
    assert after.rollup is not None
    changes = sum(row.change_bytes or 0 for row in layers(before, after) if row.in_rss)
    assert changes == after.rollup.rss_anon - before.rollup.rss_anon


def test_sums_beside_the_layers_are_of_all_members_or_not_told() -> None:
    def member(swap: int | None, huge: int | None) -> Snapshot:
        one = replace(mapping(10, 4), anon_huge=huge)
        rollup = Rollup(rss_anon=4 * PAGE, rss_file=0, rss_shmem=0, swap=swap, locked=PAGE)
        return Snapshot(pid=1, t_ns=0, reader="smaps", mappings=(one, one), rollup=rollup)

    both = beside([member(PAGE, PAGE), member(2 * PAGE, 0)])
    assert (both.swap, both.locked, both.anon_huge, both.hugetlb) == (3 * PAGE, 2 * PAGE, 2 * PAGE, None)
    one_unread = beside([member(PAGE, None), member(None, 0)])
    assert (one_unread.swap, one_unread.anon_huge) == (None, None)
    assert beside([]) == Beside()
