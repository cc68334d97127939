"""The allocations of one address space: what a site reports, and what each event does to the ledger."""

import itertools

import pytest
from stack_events import add_site, decoded

from memforensics.case.model import SitePoint, Stack
from memforensics.probes.ebpf.loader.layout import EventType, Kind, LiveRange, RangeEvent
from memforensics.probes.ebpf.mmap.allocation_table import MAX_RECENT, AllocationTable, Counts, MmapSite
from memforensics.probes.ebpf.mmap.cohorts import Slots
from memforensics.probes.ebpf.stacks.sites import ALL_POINTS, MAX_POINTS, DecodedStack

EMPTY = Stack(frames=())


def event(kind: EventType, start: int, end: int, **more: int) -> RangeEvent:
    fields = {"tid": 1, "space": 7, "t_ns": 100, "site": 0, "born_ns": 0, "old": 0, "old_length": 0, **more}
    return RangeEvent(type=kind, start=start, end=end, **fields)


def a_table(*ranges: LiveRange) -> AllocationTable:
    """Has the sites 11 and 12. The kernel has these mappings."""
    kernel = {entry.start: entry for entry in ranges}
    table = AllocationTable(lambda start: kernel.pop(start, None), itertools.count(1))
    for site in (11, 12):
        add_site(table, site)
    return table


def site_of(table: AllocationTable, kernel_site: int) -> MmapSite:
    site = table.sites.get(kernel_site)
    assert site is not None
    return site


def spans(table: AllocationTable) -> list[tuple[int, int]]:
    return [(piece.start, piece.end) for piece in table.ledger]


def traffic(table: AllocationTable, site: int) -> tuple[int, int, int, int]:
    """Bytes and mappings allocated, bytes and mappings freed, that user space counted."""
    table.update_counts([])
    now = site_of(table, site).counts
    return now.allocated_bytes, now.allocated_count, now.freed_bytes, now.freed_count


# --- one site


def test_counts_are_summed_and_their_times_span_both() -> None:
    counts = Counts()
    counts.add(Counts(10, 1, 4, 1, first_ns=50, last_ns=60))
    counts.add(Counts(5, 2, 1, 0, first_ns=30, last_ns=40))
    counts.add(Counts(1, 1, 0, 0))  # of user space, which has no times
    assert counts == Counts(16, 4, 5, 1, first_ns=30, last_ns=60)


def a_site(**more: int) -> MmapSite:
    site = MmapSite(3, Kind.shm.name, decoded(), shared=True, tmpfs=True)
    site.counts = Counts(**{"allocated_bytes": 100, "allocated_count": 5, "freed_bytes": 40, "freed_count": 2, **more})
    return site


def test_a_site_reports_all_that_is_known_of_it() -> None:
    record = a_site(first_ns=7, last_ns=9)
    record.resident_bytes = 20
    assert record.note(8, MAX_POINTS)
    site = record.report(pid=42, ended_ns=10, slots=Slots(0))
    assert (site.pid, site.site_id, site.kind, site.stack.frames) == (42, 3, "shm", ())
    assert (site.outstanding_bytes, site.outstanding_count) == (60, 3)
    assert (site.allocated_bytes, site.allocated_count, site.freed_bytes, site.freed_count) == (100, 5, 40, 2)
    assert (site.first_ns, site.last_ns, site.resident_bytes) == (7, 9, 20)
    assert (site.shared, site.file_backed, site.tmpfs) == (True, False, True)
    assert site.timeline == (SitePoint(t_ns=8, outstanding_bytes=60, outstanding_count=3),)
    assert site.cohorts == ()


def test_more_freed_than_allocated_means_nothing_outstanding() -> None:
    record = a_site(freed_bytes=101, freed_count=6)
    assert (record.outstanding_bytes, record.outstanding_count) == (0, 0)


def test_births_of_unequal_weight_are_fewer_effective_births() -> None:
    for squares, effective in ((5, None), (4, None), (6, 4), (25, 1)):
        assert a_site(squares=squares).report(1, 0, Slots(0)).effective_births == effective


def test_names_are_found_once_when_the_stack_is_first_read() -> None:
    found: list[Stack] = []

    def find_names() -> Stack:
        found.append(EMPTY)
        return EMPTY

    stack = DecodedStack((), (), True, find_names, lambda stack: (stack, True))
    assert not stack.is_named
    assert stack.stack is stack.stack
    assert stack.is_named
    assert len(found) == 1


def test_a_point_says_whether_bytes_or_mappings_changed() -> None:
    site = a_site()
    assert site.note(1, MAX_POINTS)
    assert not site.note(2, MAX_POINTS)
    site.counts.freed_bytes += 1
    assert site.note(3, MAX_POINTS)
    site.counts.freed_count += 1
    assert site.note(4, MAX_POINTS)
    assert [point.t_ns for point in site.timeline] == [1, 2, 3, 4]


def test_a_full_timeline_drops_every_second_point() -> None:
    site = a_site()
    for second in range(6):
        site.note(second, 5)
    assert [point.t_ns for point in site.timeline] == [0, 2, 4, 5]
    site = a_site()
    for second in range(5):
        site.note(second, 5)
    assert len(site.timeline) == 5


# --- sites of a table


def test_kernel_sites_with_the_same_stack_are_one_site() -> None:
    table = a_table()
    add_site(table, 13, 11)
    assert site_of(table, 13) is site_of(table, 11)
    assert table.sites.get(99) is None
    assert [site.number for site in table.sites] == [1, 2]
    table.update_counts([(n, Counts(allocated_bytes=size)) for n, size in ((11, 5), (13, 7), (99, 9))])
    assert [site.counts.allocated_bytes for site in table.sites] == [12, 0]
    table.update_counts([(12, Counts(allocated_bytes=1))])
    assert [site.counts.allocated_bytes for site in table.sites] == [0, 1], "the kernel's counts are sums"


def test_another_kind_of_memory_is_another_site() -> None:
    table = a_table()
    add_site(table, 13, 11, kind=Kind.brk)
    add_site(table, 14, 11, tmpfs=True)
    assert len({id(site_of(table, number)) for number in (11, 13, 14)}) == 3


def test_a_complete_stack_is_not_replaced() -> None:
    table = a_table()
    before = site_of(table, 11)
    add_site(table, 11, 99)
    assert site_of(table, 11) is before


def test_a_new_site_keeps_its_kind_and_flags() -> None:
    table = a_table()
    add_site(table, 14, kind=Kind.shm, shared=True, tmpfs=True, complete=False)
    site = site_of(table, 14)
    assert (site.kind, site.shared, site.file_backed, site.decoded.complete) == ("shm", True, False, False)
    assert (site.tmpfs, site.number) == (True, 3)
    add_site(table, 15, file_backed=True)
    site = site_of(table, 15)
    assert (site.shared, site.file_backed, site.decoded.complete, site.tmpfs) == (False, True, True, False)


@pytest.mark.parametrize(
    ("sites", "points"), [(0, MAX_POINTS), (1, MAX_POINTS), (1024, ALL_POINTS // 1024), (1 << 15, 16)]
)
def test_the_sites_of_a_process_share_its_points(sites: int, points: int) -> None:
    table = AllocationTable(lambda _start: None, itertools.count(1))
    for number in range(sites):
        add_site(table, number)
    assert table.sites.max_points == points


def test_nothing_is_outstanding_after_an_exec() -> None:
    table = a_table()
    table.update_counts([(11, Counts(allocated_bytes=5, allocated_count=2, freed_bytes=1, freed_count=1))])
    table.release_all()
    site = site_of(table, 11)
    assert (site.outstanding_bytes, site.outstanding_count) == (0, 0)
    assert (site.counts.allocated_bytes, site.counts.allocated_count) == (5, 2)


# --- events


def test_evicted_mappings_are_not_counted_again() -> None:
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


def test_an_undo_matches_thread_and_range_once() -> None:
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


def test_recent_removals_can_be_undone() -> None:
    table = a_table()
    for at in range(MAX_RECENT + 1):
        table.handle(event(EventType.BRK, at * 10, at * 10 + 10, site=11, born_ns=5))
        table.handle(event(EventType.UNMAP, at * 10, at * 10 + 10))
    table.handle(event(EventType.UNDO, 0, 10))
    assert spans(table) == [], "too long ago"
    table.handle(event(EventType.UNDO, 10, 20))
    assert spans(table) == [(10, 20)]


def test_a_repeated_removal_is_the_latest() -> None:
    table = a_table()
    table.handle(event(EventType.UNMAP, 0, 10))
    for at in range(1, MAX_RECENT):
        table.handle(event(EventType.UNMAP, at * 10, at * 10 + 10))
    table.handle(event(EventType.BRK, 0, 10, site=11, born_ns=150))
    table.handle(event(EventType.UNMAP, 0, 10, t_ns=200))
    table.handle(event(EventType.UNMAP, 90000, 90010))
    table.handle(event(EventType.UNDO, 0, 10))
    assert spans(table) == [(0, 10)]


def test_a_removal_takes_only_older_mappings() -> None:
    table = a_table()
    table.handle(event(EventType.BRK, 100, 200, site=11, born_ns=500))
    table.handle(event(EventType.UNMAP, 100, 200, t_ns=400))
    assert spans(table) == [(100, 200)]
    assert table.remove_unmapped(100, 200, before_ns=500) is False
    assert table.remove_unmapped(100, 150, before_ns=501) is True
    assert spans(table) == [(150, 200)]
    assert traffic(table, 11) == (0, 0, 50, 0)


def test_a_mapping_of_unknown_origin_has_no_site() -> None:
    table = a_table()
    table.handle(event(EventType.BRK, 100, 200, site=11, born_ns=5))
    table.add_unknown(150, 250, now_ns=50)
    assert spans(table) == [(100, 150), (150, 250)]
    assert [piece.block.weight for piece in table.ledger] == [1, 0]
    assert traffic(table, 11) == (0, 0, 50, 0)
    table.handle(event(EventType.UNMAP, 150, 250))
    assert table._local_counts[0] == Counts()


def test_a_new_mapping_replaces_older_ones() -> None:
    table = a_table()
    table.handle(event(EventType.BRK, 100, 200, site=11, born_ns=5))
    table.handle(event(EventType.EVICT, 150, 250, site=12, born_ns=50, old=1))
    assert [(p.start, p.end, p.block.site) for p in table.ledger] == [(100, 150, 11), (150, 250, 12)]
    table.handle(event(EventType.EVICT, 140, 260, site=11, born_ns=20, old=2))  # older, and sent late
    assert [(p.start, p.end, p.block.site) for p in table.ledger] == [
        (100, 140, 11), (140, 150, 11), (150, 250, 12), (250, 260, 11),
    ]  # fmt: skip
    assert traffic(table, 11) == (0, 0, 50 + 10 + 2 * 100, 0)


def test_a_shared_segment_counts_from_its_attachment() -> None:
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


def test_an_evicted_mapping_follows_its_move() -> None:
    """The kernel kept the mapping as a whole, and sends it only when the address is used again."""
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
    table.take_over(LiveRange(300, 400, 12, 5, 6))  # a younger one is there by now: it waits
    assert spans(table) == [(100, 200)]
    table.take_over(LiveRange(900, 950, 12, 5, 6))  # gone
    table.resolve_unmaps([])
    assert [(p.start, p.end, p.block.weight, p.block.born_ns) for p in table.ledger] == [
        (100, 200, 4, 5),
        (300, 400, 6, 500),
    ]
    table.resolve_unmaps([])
    assert len(table.ledger) == 2
