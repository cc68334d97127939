"""Pairing: mappings merge, split and move, and nothing is lost on the way."""

import dataclasses
import io
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.console import Console

from memforensics.analysis.diff import SnapshotPair, diff, diff_tree, size_classes, total_change, total_sizes
from memforensics.case.model import Mapping, MappingGroup, OwnerMark, Snapshot
from memforensics.report.terminal.snapshot import groups_table
from memforensics.units import MIB

PAGE = 4096


def anonymous(start: int, pages: int, rss: int | None = None, path: str = "") -> Mapping:
    resident = (pages if rss is None else rss) * PAGE
    return Mapping(
        start=start * PAGE,
        end=(start + pages) * PAGE,
        perms="rw-p",
        offset=0,
        device="00:00",
        inode=0,
        path=path,
        rss=resident,
        anonymous=resident,
    )


def snapshot(*mappings: Mapping, pid: int = 1) -> Snapshot:
    return Snapshot(pid=pid, t_ns=0, reader="smaps", mappings=mappings)


def changed(groups: tuple[MappingGroup, ...]) -> list[MappingGroup]:
    return [group for group in groups if group.what != "same"]


def test_a_region_that_grows_downwards_keeps_its_end() -> None:
    (group,) = changed(diff(snapshot(anonymous(100, 50)), snapshot(anonymous(80, 70))))
    assert (group.what, group.moved, group.change_bytes) == ("grew", True, 20 * PAGE)
    assert f"ending at {150 * PAGE:x}" in group.name


def test_a_region_that_grows_upwards_has_not_moved() -> None:
    (group,) = changed(diff(snapshot(anonymous(100, 50)), snapshot(anonymous(100, 70))))
    assert (group.moved, group.change_bytes) == (False, 20 * PAGE)


def test_mappings_that_merge_are_one_region() -> None:
    before = snapshot(anonymous(100, 10), anonymous(112, 10))
    (group,) = changed(diff(before, snapshot(anonymous(100, 22))))
    assert (group.count_before, group.count_after, group.change_bytes) == (2, 1, 2 * PAGE)


def test_a_mapping_that_is_split_is_one_region() -> None:
    after = snapshot(anonymous(100, 10), anonymous(112, 10))
    (group,) = changed(diff(snapshot(anonymous(100, 22)), after))
    assert (group.count_before, group.count_after, group.change_bytes) == (1, 2, -2 * PAGE)


def test_many_of_one_size_are_one_group() -> None:
    before = snapshot(*(anonymous(1000 * i, 256) for i in range(3)))
    after = snapshot(*(anonymous(1000 * i, 256) for i in range(103)))
    (group,) = changed(diff(before, after))
    assert (group.name, group.count_before, group.count_after) == ("anonymous, 1.0 MiB each", 3, 103)
    assert group.change_bytes == 100 * MIB


def test_groups_that_appear_and_go() -> None:
    seen = diff(snapshot(anonymous(10, 5, path="/dev/shm/a")), snapshot(anonymous(10, 9, path="[heap]")))
    assert {group.what for group in seen} == {"appeared", "went"}
    assert {(group.before_bytes, group.after_bytes) for group in seen} == {(None, 9 * PAGE), (5 * PAGE, None)}


def test_another_process_is_not_paired_by_address() -> None:
    before, after = snapshot(anonymous(100, 50)), snapshot(anonymous(80, 70), pid=2)
    assert not any(group.moved for group in diff(before, after))


def test_without_resident_bytes_sizes_are_compared() -> None:
    bare = Mapping(start=0, end=PAGE, perms="rw-p", offset=0, device="00:00", inode=0, path="[heap]")
    (group,) = diff(snapshot(anonymous(0, 4, rss=1, path="[heap]")), snapshot(bare))
    assert group.change_bytes == -3 * PAGE


def test_a_moved_region_has_not_changed() -> None:
    before = snapshot(*(anonymous(1000 * i, 256) for i in range(3)))
    after = snapshot(*(anonymous(1000 * i + 500, 256) for i in range(3)))
    (group,) = diff(before, after)
    assert (group.what, group.moved, group.change_bytes) == ("same", True, 0)
    assert not any(g.moved for g in diff(before, before))
    assert not any(g.moved for g in diff(before, after, same_process=False)), "addresses mean nothing between two"


def test_a_region_is_named_by_the_address_that_it_kept() -> None:
    for after, name, moved in (
        (anonymous(80, 70), f"region ending at {150 * PAGE:x}", True),
        (anonymous(100, 70), f"region starting at {100 * PAGE:x}", False),
        (anonymous(80, 90), f"region around {80 * PAGE:x}", False),
    ):
        (group,) = changed(diff(snapshot(anonymous(100, 50)), snapshot(after)))
        assert (group.name, group.moved) == (f"anonymous, {name}", moved)


def test_adjacent_regions_are_separate() -> None:
    """Two mappings side by side, one of which shrinks from its start."""
    before = snapshot(anonymous(100, 10), anonymous(110, 10))
    (group,) = changed(diff(before, snapshot(anonymous(100, 10), anonymous(114, 6))))
    assert (group.count_before, group.count_after, group.change_bytes) == (1, 1, -4 * PAGE)


def test_mappings_that_overlap_through_others_are_one_region() -> None:
    """A long mapping reaches over two short ones; the next begins where it ends."""
    before = snapshot(anonymous(100, 40), anonymous(140, 5))
    after = snapshot(anonymous(100, 2), anonymous(110, 2), anonymous(130, 10), anonymous(140, 7))
    groups = {(g.count_before, g.count_after): g.change_bytes // PAGE for g in changed(diff(before, after))}
    assert groups == {(1, 3): -26, (1, 1): 2}


def test_unique_sizes_are_named_by_their_range() -> None:
    assert size_classes([MIB, MIB, 5 * PAGE, 8 * PAGE, 16 * PAGE - 1]) == {
        MIB: "1.0 MiB each",
        5 * PAGE: "16.0 KiB to 32.0 KiB",
        8 * PAGE: "32.0 KiB to 64.0 KiB",
        16 * PAGE - 1: "32.0 KiB to 64.0 KiB",
    }


def test_sizes_with_equal_text_are_named_in_bytes() -> None:
    close = MIB + PAGE
    assert size_classes([MIB, MIB, close, close, 3 * MIB, 3 * MIB]) == {
        MIB: f"{MIB} bytes each",
        close: f"{close} bytes each",
        3 * MIB: "3.0 MiB each",
    }


def test_the_largest_mappings_of_a_group_are_its_examples() -> None:
    after = snapshot(*(anonymous(100 * i, i + 1, path="/dev/shm/a") for i in range(1, 6)))
    (group,) = diff(snapshot(), after)
    assert group.examples == tuple(f"{100 * i * PAGE:x}-{(100 * i + i + 1) * PAGE:x} rw-p" for i in (5, 4, 3))
    assert (group.before_bytes, group.after_bytes, group.what) == (None, 20 * PAGE, "appeared")
    (gone,) = diff(after, snapshot())
    assert (gone.before_bytes, gone.after_bytes, gone.what) == (20 * PAGE, None, "went")
    assert gone.examples == group.examples


def test_moved_mappings_of_an_owner_are_marked() -> None:
    def segments(*starts: int) -> Snapshot:
        return snapshot(*(anonymous(start, 8, path="/dev/shm/a") for start in starts))

    assert diff(segments(100, 200), segments(100, 300))[0].moved
    assert not diff(segments(100, 200), segments(100, 200))[0].moved
    assert not diff(segments(100, 200), segments(100, 200, 300))[0].moved, "one more"
    assert not diff(segments(100, 200), segments(300, 400), same_process=False)[0].moved


def test_without_resident_bytes_a_mapping_counts_once_by_its_size() -> None:
    def bare(pages: int) -> Snapshot:
        library = Mapping(start=0, end=PAGE, perms="r-xp", offset=0, device="00:00", inode=1, path="/lib/a.so")
        mark = OwnerMark(start=100 * PAGE, end=101 * PAGE, kind="pymalloc-arena")
        heap = replace(anonymous(100, pages), rss=None, anonymous=None)
        return dataclasses.replace(snapshot(library, heap), marks=(mark,))

    assert total_change(bare(10), bare(14)) == 4 * PAGE
    assert sum(group.change_bytes for group in diff(bare(10), bare(14))) == 4 * PAGE


def test_memory_outside_rss_is_not_a_change() -> None:
    device = anonymous(500, 64, rss=0, path="/dev/nvidia0")
    assert diff(snapshot(anonymous(10, 1)), snapshot(anonymous(10, 1), device))[0].what == "same"
    assert total_change(snapshot(anonymous(10, 1)), snapshot(anonymous(10, 1), device)) == 0


def test_smaller_groups_are_summed() -> None:
    before = snapshot(*(anonymous(1000 * i, 10 + i, path=f"/m/{i}") for i in range(4)))
    after = snapshot(*(anonymous(1000 * i, 10, path=f"/m/{i}") for i in range(4)))
    *_, rest = diff(before, after, limit=2)
    assert (rest.name, rest.layer, rest.what, rest.summed) == ("3 smaller groups", "anon-mmap", "shrank", 3)
    assert (rest.before_bytes, rest.after_bytes) == ((10 + 11 + 12) * PAGE, 30 * PAGE)
    assert (rest.count_before, rest.count_after) == (3, 3)
    *_, rest = diff(before, snapshot(*after.mappings, anonymous(9000, 1, path="[heap]")), limit=2)
    assert (rest.layer, rest.what) == ("unattributed", "shrank")
    *_, rest = diff(after, before, limit=2)
    assert rest.what == "grew"
    *_, rest = diff(after, after, limit=2)
    assert rest.what == "same"
    assert len(diff(before, after, limit=4)) == 4, "all of them have room"


def test_of_equal_changes_the_larger_group_comes_first() -> None:
    before = snapshot(anonymous(10, 5, path="/m/b"), anonymous(30, 5, path="/m/a"), anonymous(50, 9, path="/m/c"))
    after = snapshot(anonymous(10, 7, path="/m/b"), anonymous(30, 7, path="/m/a"), anonymous(50, 11, path="/m/c"))
    assert [group.name.split()[-1] for group in diff(before, after)] == ["c", "a", "b"]


def test_the_summed_group_has_the_number_of_groups() -> None:
    after = snapshot(*(anonymous(1000 * i, 1 + i, path=f"/m/{i}") for i in range(7)))
    groups = diff(snapshot(), after, limit=3)
    assert [group.summed for group in groups] == [0, 0, 5]
    assert groups[-1].change_bytes == sum(range(1, 6)) * PAGE


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    mappings, at = [], 1
    for path in draw(st.lists(st.sampled_from(["", "", "", "[heap]", "/dev/zero (deleted)", "/a.bin"]), max_size=30)):
        at += draw(st.integers(0, 3))
        pages = draw(st.integers(1, 6))
        mappings.append(anonymous(at, pages, draw(st.integers(0, pages)), path))
        at += pages
    return snapshot(*mappings, pid=draw(st.integers(1, 2)))


@given(snapshots(), snapshots(), st.integers(1, 8))
def test_changes_sum_to_the_total_with_any_limit(before: Snapshot, after: Snapshot, limit: int) -> None:
    groups = diff(before, after, limit=limit)
    assert sum(group.change_bytes for group in groups) == total_change(before, after)
    assert len(groups) <= limit
    assert sum(group.count_after for group in groups) == len({m.start for m in after.mappings})


@given(snapshots(), snapshots(), st.integers(1, 50))
def test_swapping_the_snapshots_inverts_the_signs(before: Snapshot, after: Snapshot, limit: int) -> None:
    there, back = diff(before, after, limit=limit), diff(after, before, limit=limit)
    assert sum(g.change_bytes for g in there) == -sum(g.change_bytes for g in back)
    turned = {"grew": "shrank", "shrank": "grew", "appeared": "went", "went": "appeared", "same": "same"}
    if limit == 50:
        assert sorted(g.what for g in there) == sorted(turned[g.what] for g in back)


@given(snapshots(), snapshots())
def test_the_largest_change_comes_first(before: Snapshot, after: Snapshot) -> None:
    changes = [abs(group.change_bytes) for group in diff(before, after, limit=50)]
    assert changes == sorted(changes, reverse=True)


@given(snapshots())
def test_a_snapshot_has_no_change_from_itself(seen: Snapshot) -> None:
    assert all(group.what == "same" and not group.change_bytes for group in diff(seen, seen))


@st.composite
def cut_up(draw: st.DrawFn) -> tuple[Snapshot, Snapshot, int]:
    """Anonymous memory before and after the mappings were split, merged, and grown at either end; what was added."""
    before: list[Mapping] = []
    after: list[Mapping] = []
    added, at = 0, 1000
    for pages in draw(st.lists(st.integers(1, 12), min_size=1, max_size=8)):
        down, up = draw(st.integers(0, 3)), draw(st.integers(0, 3))
        for side, first, last in ((before, at, at + pages), (after, at - down, at + pages + up)):
            cuts = draw(st.sets(st.integers(at + 1, at + pages - 1), max_size=3)) if pages > 1 else set()
            side += [anonymous(a, b - a) for a, b in pairwise([first, *sorted(cuts), last])]
        added += down + up
        at += pages + draw(st.integers(7, 30))
    return snapshot(*before), snapshot(*after), added * PAGE


@given(cut_up(), st.integers(1, 12))
def test_splits_and_merges_are_not_changes(cut: tuple[Snapshot, Snapshot, int], limit: int) -> None:
    before, after, added = cut
    groups = diff(before, after, limit=limit)
    assert sum(group.change_bytes for group in groups) == total_change(before, after) == added
    assert {group.what for group in groups} <= {"grew", "same"}, "nothing shrank, came or went"
    assert sum(group.count_before for group in groups) == len(before.mappings)
    assert sum(group.count_after for group in groups) == len(after.mappings)


def test_the_table_of_groups_fits_two_widths() -> None:
    """Narrow ones have no column for the layer; what has no bytes on either side is no change."""
    empty = anonymous(9000, 64, rss=0)
    groups = diff(snapshot(anonymous(100, 50)), snapshot(anonymous(80, 70), empty))
    for width, has_layer in ((80, False), (120, True)):
        console = Console(width=width, file=io.StringIO(), record=True)
        console.print(groups_table(groups, width))
        text = console.export_text()
        assert ("anon-mmap" in text) == has_layer
        assert "appeared" not in text
        assert "(downwards)" in text
        assert all(len(line) <= width for line in text.splitlines())


def test_groups_of_a_tree_sum_to_its_change() -> None:
    grew = SnapshotPair(
        snapshot(anonymous(100, 10)), snapshot(anonymous(100, 10), anonymous(200, 30), anonymous(300, 30))
    )
    came = SnapshotPair(None, snapshot(anonymous(500, 30, path="[heap]"), pid=2))
    went = SnapshotPair(snapshot(anonymous(700, 7, path="[heap]"), pid=3), None)
    groups = diff_tree([grew, came, went])
    assert sum(group.change_bytes for group in groups) == (60 + 30 - 7) * PAGE
    assert total_sizes([grew, came, went]) == [(10 * PAGE, 70 * PAGE), (None, 30 * PAGE), (7 * PAGE, None)]
    heap = next(group for group in groups if "heap" in group.name)
    assert (heap.before_bytes, heap.after_bytes) == (7 * PAGE, 30 * PAGE)
    assert diff_tree([went])[0].what == "went"
    assert diff_tree([came])[0].what == "appeared"
