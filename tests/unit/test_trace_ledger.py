"""The interval ledger against a model that keeps one entry a page."""

import itertools

from hypothesis import given
from hypothesis import strategies as st
from stack_events import add_site

from memforensics.probes.ebpf.loader.layout import EventType, LiveRange, RangeEvent
from memforensics.probes.ebpf.mmap.allocation_table import AllocationTable, Counts
from memforensics.probes.ebpf.mmap.ledger import Block, Freed, Ledger, freed_by_site, subtract, union

PAGES = 64
spans = st.tuples(st.integers(0, PAGES - 1), st.integers(1, 16)).map(lambda s: (s[0], min(PAGES, s[0] + s[1])))
operations = st.lists(
    st.one_of(
        st.tuples(st.just("map"), spans, st.integers(1, 4)),
        st.tuples(st.just("unmap"), spans, st.just(0)),
        st.tuples(st.just("failed unmap"), spans, st.just(0)),
        st.tuples(st.just("unmap old"), spans, st.integers(0, 40)),
    ),
    max_size=40,
)


@given(operations)
def test_ledger_agrees_with_a_page_table(steps: list[tuple[str, tuple[int, int], int]]) -> None:
    ledger = Ledger()
    model: dict[int, tuple[int, int, int]] = {}  # page -> site, born, block number
    outstanding: dict[int, int] = {}
    blocks_gone: list[int] = []
    for now, (what, (start, end), argument) in enumerate(steps):
        before = argument if what == "unmap old" else None
        touched = {p: model[p] for p in range(start, end) if p in model and (before is None or model[p][1] < before)}
        taken = ledger.remove(start, end, born_before_ns=before)
        assert sorted(p for piece in taken for p in range(piece.start, piece.end)) == sorted(touched)
        if what == "failed unmap":
            ledger.restore(taken)
        else:
            for page in touched:
                del model[page]
            left = {block for _, _, block in model.values()}
            gone = {block for _, _, block in touched.values()} - left
            blocks_gone.extend(gone)
            assert sum(freed.blocks for freed in freed_by_site(taken)) == len(gone)
            for freed in freed_by_site(taken):
                assert freed.bytes == sum(1 for site, _, _ in touched.values() if site == freed.site)
                outstanding[freed.site] -= freed.bytes
        if what == "map":
            ledger.add(start, end, Block(argument, now))
            model.update(dict.fromkeys(range(start, end), (argument, now, now)))
            outstanding[argument] = outstanding.get(argument, 0) + end - start
        assert {p: piece.block.site for piece in ledger for p in range(piece.start, piece.end)} == {
            p: site for p, (site, _, _) in model.items()
        }
        pieces = list(ledger)
        assert all(a.end <= b.start for a, b in itertools.pairwise(pieces))
        for site, size in outstanding.items():
            assert size == sum(piece.size for piece in pieces if piece.block.site == site)
    assert len(blocks_gone) == len(set(blocks_gone))


@given(st.lists(spans, max_size=8), spans)
def test_overlapping_pieces_share_an_address(mapped: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    ledger = Ledger()
    for number, (start, end) in enumerate(mapped):
        ledger.remove(start, end)
        ledger.add(start, end, Block(1, number))
    assert ledger.overlapping(*asked) == [piece for piece in ledger if piece.start < asked[1] and asked[0] < piece.end]
    assert ledger.overlapping(asked[0], asked[0]) == []
    assert len(ledger) == len(list(ledger))


def test_a_block_that_is_born_at_the_time_of_a_removal_is_not_removed() -> None:
    """The kernel stamps a removal at its entry: what has the same stamp was mapped by another thread after it."""
    ledger = Ledger()
    ledger.add(0, 10, Block(1, born_ns=5))
    assert ledger.remove(0, 10, born_before_ns=5) == []
    assert [piece.size for piece in ledger.remove(0, 10, born_before_ns=6)] == [10]


def test_a_removal_of_one_block_leaves_the_others() -> None:
    ledger, mine, other = Ledger(), Block(1, born_ns=0), Block(1, born_ns=0)
    ledger.add(0, 10, mine)
    ledger.add(10, 20, other)
    assert [(piece.start, piece.end) for piece in ledger.remove(5, 15, only=other)] == [(10, 15)]
    assert [(piece.start, piece.end, piece.block) for piece in ledger] == [(0, 10, mine), (15, 20, other)]
    assert (mine.left, other.left) == (10, 5)


def test_freed_bytes_and_blocks_count_by_weight() -> None:
    ledger, sampled, not_walked = Ledger(), Block(1, born_ns=0, weight=3), Block(2, born_ns=0, weight=0)
    ledger.add(0, 10, sampled)
    ledger.add(10, 20, not_walked)
    assert freed_by_site(ledger.remove(0, 4)) == [Freed(site=1, bytes=12, blocks=0)]
    ledger.remove(6, 8)  # nobody asks what this one freed
    both_ends = ledger.remove(4, 20)
    assert freed_by_site(both_ends) == [Freed(site=1, bytes=12, blocks=3), Freed(site=2, bytes=0, blocks=0)]
    ledger.restore(both_ends)
    assert (sampled.left, not_walked.left) == (4, 10)


def test_an_empty_range_adds_nothing() -> None:
    ledger, block = Ledger(), Block(1, born_ns=0)
    ledger.add(5, 5, block)
    ledger.add(5, 4, block)
    assert (list(ledger), block.left) == ([], 0)


def _event(kind: EventType, start: int, end: int, **more: int) -> RangeEvent:
    fields = {"tid": 1, "space": 7, "t_ns": 100, "site": 0, "born_ns": 0, "old": 0, "old_length": 0, **more}
    return RangeEvent(type=kind, start=start, end=end, **fields)


def _allocation_table(kernel: list[LiveRange]) -> AllocationTable:
    """A table over a pretended kernel table."""

    def take(start: int) -> LiveRange | None:
        found = next((entry for entry in kernel if entry.start == start), None)
        if found is not None:
            kernel.remove(found)
        return found

    table = AllocationTable(take, itertools.count(1))
    for site in (11, 12):
        add_site(table, site)
    return table


def _spans(table: AllocationTable) -> list[tuple[int, int]]:
    return [(piece.start, piece.end) for piece in table.ledger]


def _outstanding(table: AllocationTable, allocated: dict[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
    table.update_counts((site, Counts(allocated_bytes=b, allocated_count=n)) for site, (b, n) in allocated.items())
    records = {site: table.sites.get(site) for site in (11, 12)}
    return {s: (r.outstanding_bytes, r.outstanding_count) for s, r in records.items() if r is not None}


def test_a_hole_in_the_kernels_mapping_leaves_both_ends() -> None:
    kernel = [LiveRange(100, 200, 11, 5, 1)]
    table = _allocation_table(kernel)
    table.handle(_event(EventType.UNMAP, 120, 150))
    assert table.resolve_unmaps(list(kernel)) == []
    assert _spans(table) == [(100, 120), (150, 200)]
    assert _outstanding(table, {11: (100, 1)})[11] == (70, 1)


def test_a_mapping_made_after_the_unmap_is_left_alone() -> None:
    kernel = [LiveRange(100, 200, 11, 500, 1)]
    table = _allocation_table(kernel)
    table.handle(_event(EventType.UNMAP, 100, 200, t_ns=400))
    assert table.resolve_unmaps(list(kernel)) == kernel
    assert _outstanding(table, {11: (100, 1)})[11] == (100, 1)


def test_a_younger_mapping_replaces_the_one_that_was_read() -> None:
    kernel = [LiveRange(100, 150, 12, 500, 1)]
    table = _allocation_table(kernel)
    table.handle(_event(EventType.UNMAP, 180, 200, t_ns=400))
    table.resolve_unmaps([LiveRange(100, 200, 11, 5, 1)])  # as it was when the table was read
    table.handle(_event(EventType.UNMAP, 100, 150, t_ns=450))  # of the older one, sent late
    table.resolve_unmaps([])
    assert _spans(table) == [(100, 150)]
    assert _outstanding(table, {12: (50, 1)})[12] == (50, 1)


def test_a_tail_and_then_the_whole() -> None:
    """The kernel closes the mapping as a whole. The tail was never counted as freed, so nothing counts twice."""
    kernel: list[LiveRange] = []
    table = _allocation_table(kernel)
    table.handle(_event(EventType.UNMAP, 180, 200))
    table.resolve_unmaps(list(kernel))
    assert not _spans(table)
    assert _outstanding(table, {11: (0, 0)})[11] == (0, 0)


def test_a_failed_unmap_changes_nothing() -> None:
    kernel = [LiveRange(100, 200, 11, 5, 1)]
    table = _allocation_table(kernel)
    for settled in (False, True):
        table.handle(_event(EventType.UNMAP, 90, 150))
        if settled:
            table.resolve_unmaps(list(kernel))
        table.handle(_event(EventType.UNDO, 90, 150))
        table.resolve_unmaps(list(kernel))
        assert _outstanding(table, {11: (100, 1)})[11] == (100, 1)
        assert [(e.start, e.end) for e in kernel] + union(_spans(table)) == [(100, 200)]


def test_an_unknown_failure_undoes_nothing() -> None:
    table = _allocation_table([])
    table.handle(_event(EventType.BRK, 100, 200, site=11, born_ns=5))
    table.handle(_event(EventType.UNMAP, 100, 150))
    table.handle(_event(EventType.UNDO, 300, 350))
    assert _spans(table) == [(150, 200)]


def test_mremap_moves_known_pieces_and_counts_the_growth() -> None:
    kernel = [LiveRange(100, 200, 11, 5, 1)]
    table = _allocation_table(kernel)
    table.handle(_event(EventType.UNMAP, 150, 200))  # half of it
    table.handle(_event(EventType.UNMAP, 100, 150, tid=2, t_ns=110))
    table.handle(_event(EventType.REMAP, 1000, 1080, tid=2, site=12, born_ns=120, old=100, old_length=50))
    table.resolve_unmaps(list(kernel))
    assert _outstanding(table, {11: (100, 1)}) == {11: (0, 0), 12: (80, 1)}
    assert union(_spans(table)) == [(1000, 1080)]


def test_a_mapping_that_was_moved_and_unmapped_is_gone() -> None:
    kernel = [LiveRange(100, 200, 11, 5, 1)]
    table = _allocation_table(kernel)
    table.handle(_event(EventType.UNMAP, 100, 150, tid=2, t_ns=110))
    table.handle(_event(EventType.REMAP, 1000, 1050, tid=2, site=12, born_ns=120, old=100, old_length=50))
    table.handle(_event(EventType.UNMAP, 1020, 1050, tid=2, t_ns=130))
    table.resolve_unmaps(list(kernel))
    assert _spans(table) == [(150, 200), (1000, 1020)]
    assert _outstanding(table, {11: (100, 1)}) == {11: (50, 1), 12: (20, 1)}


def test_mremap_of_older_memory_counts_only_the_growth() -> None:
    table = _allocation_table([])
    table.handle(_event(EventType.UNMAP, 100, 150))
    table.handle(_event(EventType.REMAP, 1000, 1080, site=12, born_ns=120, old=100, old_length=50))
    assert _outstanding(table, {})[12] == (30, 1)


def test_an_evicted_mapping_loses_what_was_unmapped_since_it_was_born() -> None:
    table = _allocation_table([])
    table.handle(_event(EventType.UNMAP, 180, 220, t_ns=100))
    table.resolve_unmaps([])  # it was sent just before the table was read, and is handled only now
    table.handle(_event(EventType.EVICT, 100, 200, site=11, born_ns=50, t_ns=150, old=3))
    assert _spans(table) == [(100, 180)]
    assert _outstanding(table, {11: (300, 3)})[11] == (240, 3)


def test_the_heap_shrinks_from_its_end() -> None:
    table = _allocation_table([])
    table.handle(_event(EventType.BRK, 1000, 1100, site=11, born_ns=10))
    table.handle(_event(EventType.BRK, 1100, 1150, site=12, born_ns=20))
    table.handle(_event(EventType.UNMAP, 1080, 1150, t_ns=30))
    assert _outstanding(table, {11: (100, 1), 12: (50, 1)}) == {11: (80, 1), 12: (0, 0)}


def test_detaching_a_segment_keeps_mappings_over_it() -> None:
    table = _allocation_table([])
    table.attach(_event(EventType.ATTACH, 1000, 1000, site=11, born_ns=10), 100)
    table.handle(_event(EventType.UNMAP, 1040, 1050, t_ns=20))
    table.handle(_event(EventType.BRK, 1040, 1050, site=12, born_ns=21))
    table.handle(_event(EventType.DETACH, 1000, 0, t_ns=30))
    assert _spans(table) == [(1040, 1050)]
    assert _outstanding(table, {12: (10, 1)}) == {11: (0, 0), 12: (10, 1)}


pages = st.sets(st.integers(0, 40))


def _union_of(pages_: set[int]) -> list[tuple[int, int]]:
    return union([(page, page + 1) for page in pages_])


@given(pages, pages)
def test_subtract_is_a_difference_of_sets(first: set[int], second: set[int]) -> None:
    assert union(subtract(_union_of(first), _union_of(second))) == _union_of(first - second)


def test_a_stack_completed_later_takes_over_its_site() -> None:
    table = AllocationTable(lambda _: None, itertools.count(1))
    add_site(table, 5, 100, complete=False)
    add_site(table, 5, 200)
    table.update_counts([(5, Counts(allocated_bytes=4096, allocated_count=1))])
    site = table.sites.get(5)
    assert site is not None
    assert site.decoded.complete
    assert site.outstanding_bytes == 4096
    assert sum(other.outstanding_bytes for other in table.sites) == 4096


def test_a_mapping_born_when_memory_is_removed_is_not_removed() -> None:
    """A removal at time T takes what was born before T: what is born at T came after it."""
    ledger = Ledger()
    ledger.add(0, 10, Block(1, 5))
    assert ledger.remove(0, 10, born_before_ns=5) == []
    assert [(piece.start, piece.end) for piece in ledger] == [(0, 10)]
    assert [piece.size for piece in ledger.remove(0, 10, born_before_ns=6)] == [10]


def test_the_younger_of_overlapping_ranges_stays() -> None:
    """The events of the removals between them were dropped."""
    kernel = [LiveRange(100, 200, 11, 5, 1), LiveRange(150, 180, 12, 50, 2), LiveRange(300, 400, 11, 6, 1)]
    table = _allocation_table(kernel)
    table.handle(_event(EventType.BRK, 380, 420, site=12, born_ns=70))
    table.take_over_overlapping(list(kernel))
    assert kernel == []
    assert [(p.start, p.end, p.block.site) for p in table.ledger] == [
        (100, 150, 11),
        (150, 180, 12),
        (180, 200, 11),
        (300, 380, 11),
        (380, 420, 12),
    ]


def test_ranges_that_share_nothing_stay_with_the_kernel() -> None:
    kernel = [LiveRange(100, 200, 11, 5, 1), LiveRange(200, 300, 12, 50, 2)]
    table = _allocation_table(kernel)
    table.handle(_event(EventType.BRK, 300, 320, site=12, born_ns=70))
    table.take_over_overlapping(list(kernel))
    assert len(kernel) == 2


def test_bytes_beyond_the_ranges_of_a_site_are_freed() -> None:
    live = [LiveRange(100, 150, 11, 5, 1)]
    table = _allocation_table([])
    table.handle(_event(EventType.BRK, 300, 340, site=12, born_ns=70))
    table.handle(_event(EventType.UNMAP, 320, 330, t_ns=80))  # one block, two pieces
    counters = {11: (500, 4), 12: (40, 1)}
    kernel = [(site, Counts(allocated_bytes=b, allocated_count=n)) for site, (b, n) in counters.items()]
    table.correct_counts(kernel, live)
    assert _outstanding(table, counters) == {11: (50, 1), 12: (30, 1)}


def test_removals_stay_while_events_wait() -> None:
    table = _allocation_table([])
    table.handle(_event(EventType.UNMAP, 180, 220, t_ns=100))
    for _ in range(3):
        table.resolve_unmaps([], is_behind=True)
    table.handle(_event(EventType.EVICT, 100, 200, site=11, born_ns=50, t_ns=150, old=1))
    assert _spans(table) == [(100, 180)]


def test_a_late_removal_is_found_by_its_time() -> None:
    table = _allocation_table([])
    table.handle(_event(EventType.UNMAP, 120, 130, t_ns=100))
    table.handle(_event(EventType.UNMAP, 140, 150, t_ns=90))  # by another CPU
    table.handle(_event(EventType.EVICT, 100, 200, site=11, born_ns=80, t_ns=150, old=1))
    table.handle(_event(EventType.EVICT, 400, 500, site=11, born_ns=95, t_ns=150, old=1))
    assert _spans(table) == [(100, 120), (130, 140), (150, 200), (400, 500)]


def test_pieces_that_do_not_fit_are_counted_and_in_no_sum() -> None:
    table = _allocation_table([])
    table.max_pieces = 2
    for start in (100, 200, 300):
        table.handle(_event(EventType.EVICT, start, start + 50, site=11, born_ns=5, old=1))
    assert (len(table.ledger), table.dropped_ranges) == (2, 1)
    assert _outstanding(table, {11: (150, 3)})[11] == (100, 2)
