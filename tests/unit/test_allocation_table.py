"""The account of one address space: what a site says of itself, and what each event does to it."""

import itertools

import pytest

from memforensics.case.model import SitePoint, Stack
from memforensics.probes.ebpf.loader.layout import EventType, Kind, LiveRange, RangeEvent
from memforensics.probes.ebpf.mmap.allocation_table import (
    ALL_POINTS,
    MAX_POINTS,
    MAX_RECENT,
    AllocationTable,
    Counts,
    SiteRecord,
)

EMPTY = Stack(frames=())


def event(kind: EventType, start: int, end: int, **more: int) -> RangeEvent:
    fields = {"tid": 1, "space": 7, "t_ns": 100, "site": 0, "born_ns": 0, "old": 0, "old_length": 0, **more}
    return RangeEvent(type=kind, start=start, end=end, **fields)


def a_table(*ranges: LiveRange) -> AllocationTable:
    """With the sites 11 and 12, over a kernel that has these mappings."""
    kernel = {entry.start: entry for entry in ranges}
    table = AllocationTable(lambda start: kernel.pop(start, None), itertools.count(1))
    for site in (11, 12):
        table.add_site(site, (site,), Kind.mmap, False, False, True, lambda: EMPTY)
    return table


def spans(table: AllocationTable) -> list[tuple[int, int]]:
    return [(piece.start, piece.end) for piece in table.ledger]


def traffic(table: AllocationTable, site: int) -> tuple[int, int, int, int]:
    """Bytes and mappings allocated, bytes and mappings freed, of what was booked in user space."""
    table.update([])
    record = table.record(site)
    assert record is not None
    now = record.now
    return now.allocated_bytes, now.allocated_count, now.freed_bytes, now.freed_count


# --- one site


def test_counts_are_summed_and_their_times_span_both() -> None:
    counts = Counts()
    counts.add(Counts(10, 1, 4, 1, first_ns=50, last_ns=60))
    counts.add(Counts(5, 2, 1, 0, first_ns=30, last_ns=40))
    counts.add(Counts(1, 1, 0, 0))  # of user space, which has no times
    assert counts == Counts(16, 4, 5, 1, first_ns=30, last_ns=60)


def a_site(**more: int) -> SiteRecord:
    record = SiteRecord(
        3, Kind.shm, shared=True, file_backed=False, complete=True, make_stack=lambda: EMPTY, tmpfs=True
    )
    record.now = Counts(**{"allocated_bytes": 100, "allocated_count": 5, "freed_bytes": 40, "freed_count": 2, **more})
    return record


def test_a_site_tells_all_that_is_known_of_it() -> None:
    record = a_site(first_ns=7, last_ns=9)
    record.resident_bytes = 20
    assert record.note(8)
    site = record.site(pid=42, ended_ns=10)
    assert (site.pid, site.site_id, site.kind, site.stack) == (42, 3, "shm", EMPTY)
    assert (site.outstanding_bytes, site.outstanding_count) == (60, 3)
    assert (site.allocated_bytes, site.allocated_count, site.freed_bytes, site.freed_count) == (100, 5, 40, 2)
    assert (site.first_ns, site.last_ns, site.resident_bytes) == (7, 9, 20)
    assert (site.shared, site.file_backed, site.tmpfs) == (True, False, True)
    assert site.timeline == (SitePoint(t_ns=8, outstanding_bytes=60, outstanding_count=3),)
    assert site.cohorts == ()


def test_more_freed_than_seen_is_nothing_outstanding() -> None:
    record = a_site(freed_bytes=101, freed_count=6)
    assert (record.outstanding_bytes, record.outstanding_count) == (0, 0)


def test_births_of_unequal_weight_are_worth_fewer() -> None:
    for squares, worth in ((5, None), (4, None), (6, 4), (25, 1)):
        assert a_site(squares=squares).site(1, 0).effective_births == worth


def test_a_stack_is_made_once_when_it_is_asked_for() -> None:
    made = []
    record = SiteRecord(1, Kind.mmap, False, False, True, make_stack=lambda: made.append(1) or EMPTY)  # type: ignore[func-returns-value]
    assert not record.symbolized
    assert record.stack is record.stack
    assert record.symbolized
    assert made == [1]


def test_a_point_is_a_change_where_bytes_or_mappings_differ() -> None:
    record = a_site()
    assert record.note(1)
    assert not record.note(2)
    record.now.freed_bytes += 1
    assert record.note(3)
    record.now.freed_count += 1
    assert record.note(4)
    assert [point.t_ns for point in record.points] == [1, 2, 3, 4]


def test_beyond_the_most_points_every_second_one_goes() -> None:
    record = a_site()
    for second in range(6):
        record.note(second, most=5)
    assert [point.t_ns for point in record.points] == [0, 2, 4, 5]
    record = a_site()
    for second in range(5):
        record.note(second, most=5)
    assert len(record.points) == 5


# --- sites of a table


def test_sites_with_the_same_stack_are_one_record() -> None:
    table = a_table()
    table.add_site(13, (11,), Kind.brk, True, True, True, lambda: EMPTY)
    assert table.record(13) is table.record(11)
    assert table.record(99) is None
    assert [record.number for record in table.sites.values()] == [1, 2]
    table.update([(11, Counts(allocated_bytes=5)), (13, Counts(allocated_bytes=7)), (99, Counts(allocated_bytes=9))])
    assert [record.now.allocated_bytes for record in table.sites.values()] == [12, 0]
    table.update([(12, Counts(allocated_bytes=1))])
    assert [record.now.allocated_bytes for record in table.sites.values()] == [0, 1], "the kernel's counts are sums"


def test_a_complete_stack_is_not_replaced_by_another() -> None:
    table = a_table()
    table.add_site(11, ("other",), Kind.mmap, False, False, True, lambda: EMPTY)
    assert table.record(11) is table.sites[(11,)]


def test_a_new_site_keeps_what_it_is_told() -> None:
    table = a_table()
    table.add_site(14, ("x",), Kind.shm, True, False, False, lambda: EMPTY, tmpfs=True)
    record = table.record(14)
    assert record is not None
    assert (record.kind, record.shared, record.file_backed, record.complete) == (Kind.shm, True, False, False)
    assert (record.tmpfs, record.number) == (True, 3)
    table.add_site(15, ("y",), Kind.mmap, False, True, True, lambda: EMPTY)
    record = table.record(15)
    assert record is not None
    assert (record.shared, record.file_backed, record.complete, record.tmpfs) == (False, True, True, False)


@pytest.mark.parametrize(
    ("sites", "most"), [(0, MAX_POINTS), (1, MAX_POINTS), (1024, ALL_POINTS // 1024), (1 << 17, 16)]
)
def test_sites_share_the_points_that_a_process_may_have(sites: int, most: int) -> None:
    table = AllocationTable(lambda _start: None, itertools.count(1))
    record = a_site()
    table.sites = {(number,): record for number in range(sites)}
    assert table.max_points == most


def test_after_an_exec_nothing_is_outstanding() -> None:
    table = a_table()
    table.update([(11, Counts(allocated_bytes=5, allocated_count=2, freed_bytes=1, freed_count=1))])
    table.release_all()
    record = table.record(11)
    assert record is not None
    assert (record.outstanding_bytes, record.outstanding_count) == (0, 0)
    assert (record.now.allocated_bytes, record.now.allocated_count) == (5, 2)


# --- events


def test_what_the_kernel_hands_over_is_not_counted_again() -> None:
    """The kernel counts the mappings that it evicts, and brk; freed bytes of them are counted here."""
    table = a_table()
    table.handle(event(EventType.EVICT, 100, 200, site=11, born_ns=5, old=3))
    table.handle(event(EventType.BRK, 300, 400, site=12, born_ns=5))
    assert (traffic(table, 11), traffic(table, 12)) == ((0, 0, 0, 0), (0, 0, 0, 0))
    table.handle(event(EventType.UNMAP, 150, 350))
    assert (traffic(table, 11), traffic(table, 12)) == ((0, 0, 150, 0), (0, 0, 50, 0))
    table.handle(event(EventType.UNMAP, 100, 400, tid=2))
    assert (traffic(table, 11), traffic(table, 12)) == ((0, 0, 300, 3), (0, 0, 100, 1))
    table.handle(event(EventType.UNDO, 100, 400, tid=2))
    assert (traffic(table, 11), traffic(table, 12)) == ((0, 0, 150, 0), (0, 0, 50, 0))
    assert spans(table) == [(100, 150), (350, 400)]


def test_an_undo_is_of_the_same_thread_and_range_and_once() -> None:
    table = a_table()
    table.handle(event(EventType.BRK, 100, 200, site=11, born_ns=5))
    table.handle(event(EventType.UNMAP, 100, 200))
    for other in ({"tid": 2}, {"start": 101}, {"end": 199}):
        table.handle(event(EventType.UNDO, **{"start": 100, "end": 200, **other}))
    assert spans(table) == []
    table.handle(event(EventType.UNDO, 100, 200))
    table.handle(event(EventType.UNDO, 100, 200))
    assert spans(table) == [(100, 200)]
    assert traffic(table, 11) == (0, 0, 0, 0)


def test_the_last_removals_can_be_undone() -> None:
    table = a_table()
    for at in range(MAX_RECENT + 1):
        table.handle(event(EventType.BRK, at * 10, at * 10 + 10, site=11, born_ns=5))
        table.handle(event(EventType.UNMAP, at * 10, at * 10 + 10))
    table.handle(event(EventType.UNDO, 0, 10))
    assert spans(table) == [], "too long ago"
    table.handle(event(EventType.UNDO, 10, 20))
    assert spans(table) == [(10, 20)]


def test_the_same_removal_again_is_the_latest() -> None:
    table = a_table()
    table.handle(event(EventType.UNMAP, 0, 10))
    for at in range(1, MAX_RECENT):
        table.handle(event(EventType.UNMAP, at * 10, at * 10 + 10))
    table.handle(event(EventType.BRK, 0, 10, site=11, born_ns=150))
    table.handle(event(EventType.UNMAP, 0, 10, t_ns=200))
    table.handle(event(EventType.UNMAP, 90000, 90010))
    table.handle(event(EventType.UNDO, 0, 10))
    assert spans(table) == [(0, 10)]


def test_a_removal_takes_only_what_is_older() -> None:
    table = a_table()
    table.handle(event(EventType.BRK, 100, 200, site=11, born_ns=500))
    table.handle(event(EventType.UNMAP, 100, 200, t_ns=400))
    assert spans(table) == [(100, 200)]
    assert table.repair(100, 200, before_ns=500) is False
    assert table.repair(100, 150, before_ns=501) is True
    assert spans(table) == [(150, 200)]
    assert traffic(table, 11) == (0, 0, 50, 0)


def test_a_mapping_of_unknown_origin_stands_for_nobody() -> None:
    table = a_table()
    table.handle(event(EventType.BRK, 100, 200, site=11, born_ns=5))
    table.adopt(150, 250, now_ns=50)
    assert spans(table) == [(100, 150), (150, 250)]
    assert [piece.block.weight for piece in table.ledger] == [1, 0]
    assert traffic(table, 11) == (0, 0, 50, 0)
    table.handle(event(EventType.UNMAP, 150, 250))
    assert table._local_counts[0] == Counts()


def test_a_mapping_that_comes_to_stand_ends_what_is_older_there() -> None:
    table = a_table()
    table.handle(event(EventType.BRK, 100, 200, site=11, born_ns=5))
    table.handle(event(EventType.EVICT, 150, 250, site=12, born_ns=50, old=1))
    assert [(p.start, p.end, p.block.site) for p in table.ledger] == [(100, 150, 11), (150, 250, 12)]
    table.handle(event(EventType.EVICT, 140, 260, site=11, born_ns=20, old=2))  # older, told late
    assert [(p.start, p.end, p.block.site) for p in table.ledger] == [
        (100, 140, 11), (140, 150, 11), (150, 250, 12), (250, 260, 11),
    ]  # fmt: skip
    assert traffic(table, 11) == (0, 0, 50 + 10 + 2 * 100, 0)


def test_a_shared_segment_is_booked_when_it_is_attached() -> None:
    table = a_table()
    table.attach(event(EventType.ATTACH, 1000, 1000, site=11, born_ns=10), 64)
    assert traffic(table, 11) == (64, 1, 0, 0)
    table.handle(event(EventType.DETACH, 1000, 0, t_ns=30))
    table.handle(event(EventType.DETACH, 1000, 0, t_ns=40))
    table.handle(event(EventType.DETACH, 2000, 0, t_ns=50))
    assert traffic(table, 11) == (64, 1, 64, 1)
    assert spans(table) == []


def test_a_mapping_that_shrinks_as_it_moves_keeps_its_beginning() -> None:
    table = a_table()
    table.handle(event(EventType.BRK, 100, 200, site=11, born_ns=5))
    table.handle(event(EventType.UNMAP, 100, 200, tid=2))
    table.handle(event(EventType.REMAP, 1000, 1060, tid=2, site=12, born_ns=120, old=100, old_length=100))
    assert spans(table) == [(1000, 1060)]
    assert traffic(table, 11) == (0, 0, 100, 1)
    assert traffic(table, 12) == (60, 1, 0, 0)


def test_a_mapping_that_grows_as_it_moves_is_one_mapping() -> None:
    table = a_table()
    table.handle(event(EventType.BRK, 100, 200, site=11, born_ns=5))
    table.handle(event(EventType.UNMAP, 100, 200, tid=2))
    table.handle(event(EventType.REMAP, 1000, 1150, tid=2, site=12, born_ns=120, old=100, old_length=100))
    assert [piece.block for piece in table.ledger][1:] == []
    assert spans(table) == [(1000, 1150)]
    assert traffic(table, 12) == (150, 1, 0, 0)


def test_what_is_found_after_it_was_moved_follows() -> None:
    """The kernel had the whole of it, and tells of it only when the address is used again."""
    table = a_table()
    table.handle(event(EventType.UNMAP, 100, 200, tid=2))
    table.handle(event(EventType.REMAP, 1000, 1060, tid=2, site=12, born_ns=120, old=100, old_length=100))
    assert spans(table) == []
    table.handle(event(EventType.EVICT, 100, 200, site=11, born_ns=5, old=1))
    assert spans(table) == [(1000, 1060)]
    assert traffic(table, 11) == (0, 0, 100, 1)
    assert traffic(table, 12) == (60, 1, 0, 0)


# --- the kernel's kernel


def test_only_mappings_that_were_cut_since_they_were_born_are_taken_over() -> None:
    cut, other, later = LiveRange(100, 200, 11, 5, 1), LiveRange(300, 400, 11, 5, 1), LiveRange(150, 160, 12, 500, 1)
    table = a_table(cut, other, later)
    table.handle(event(EventType.UNMAP, 180, 250))
    assert table.resolve_unmaps([cut, other, later]) == [other, later]
    assert spans(table) == [(100, 180)]
    assert traffic(table, 11) == (0, 0, 20, 0)


def test_a_weight_is_kept_when_a_mapping_is_taken_over() -> None:
    cut, late = LiveRange(100, 200, 11, 5, 4), LiveRange(300, 400, 12, 500, 6)
    table = a_table(cut, late)
    table.take_over(cut)
    assert [piece.block.weight for piece in table.ledger] == [4]
    table.take_over(LiveRange(300, 400, 12, 5, 6))  # a younger one stands there by now: it waits
    assert spans(table) == [(100, 200)]
    table.take_over(LiveRange(900, 950, 12, 5, 6))  # gone
    table.resolve_unmaps([])
    assert [(p.start, p.end, p.block.weight, p.block.born_ns) for p in table.ledger] == [
        (100, 200, 4, 5),
        (300, 400, 6, 500),
    ]
    table.resolve_unmaps([])
    assert len(table.ledger) == 2
