"""Births by time slot: whatever is read when, the sums are the counters', and nothing is left that was not born."""

import itertools

from hypothesis import given
from hypothesis import strategies as st
from stack_events import add_site

from memforensics.case.model import AllocationSite, Cohort, Stack
from memforensics.probes.ebpf.mmap.allocation_table import AllocationTable, Counts
from memforensics.probes.ebpf.mmap.cohorts import MAX_SLOTS, CounterReading, OutstandingBlock, Slots, cohorts

SECOND = 1_000_000_000
times = st.lists(st.integers(0, 100), max_size=60).map(sorted)
blocks = st.lists(st.tuples(st.integers(-2, 102), st.integers(1, 9), st.integers(1, 3)), max_size=60)


def _sums(found: tuple[Cohort, ...]) -> tuple[int, int, int, int]:
    return (
        sum(c.born_bytes for c in found),
        sum(c.born_count for c in found),
        sum(c.left_bytes for c in found),
        sum(c.left_count for c in found),
    )


@given(bounds=times, births=blocks, died=st.data(), late=st.integers(0, 3))
def test_cohorts_sum_up_to_the_counters(
    bounds: list[int], births: list[tuple[int, int, int]], died: st.DataObject, late: int
) -> None:
    """Readings may come late: births of the next slot are then counted in this one."""
    slots = Slots(0)
    readings = []
    for bound in bounds:
        if not slots.due(bound * SECOND):
            continue
        slots.close(bound * SECOND)
        before = [(size, weight) for at, size, weight in births if at <= bound + late]
        readings.append(CounterReading(bound * SECOND, sum(s * w for s, w in before), sum(w for _, w in before)))
    total = CounterReading(100 * SECOND, sum(s * w for _, s, w in births), sum(w for *_, w in births))
    kept = died.draw(st.lists(st.booleans(), min_size=len(births), max_size=len(births)))
    left = [
        OutstandingBlock(at * SECOND, s * w, w) for (at, s, w), is_kept in zip(births, kept, strict=True) if is_kept
    ]
    found = cohorts(slots, 100 * SECOND, readings, total, left)
    assert _sums(found) == (total.bytes, total.count, sum(x.bytes for x in left), sum(x.count for x in left))
    assert all(0 <= c.left_bytes <= c.born_bytes and 0 <= c.left_count <= c.born_count for c in found)
    assert len(found) <= MAX_SLOTS
    assert found[0].born_from_ns == 0
    assert found[-1].born_to_ns == 100 * SECOND
    assert all(a.born_to_ns == b.born_from_ns for a, b in itertools.pairwise(found))


@given(seconds=st.integers(1, 400), each=st.integers(1, 3))
def test_merging_slots_keeps_their_births(seconds: int, each: int) -> None:
    """A block a second; each slot has as many births as it has seconds."""
    table = AllocationTable(lambda _start: None, itertools.count(1))
    add_site(table, 1)
    (site,) = table.sites
    slots = Slots(0)
    for second in range(1, seconds + 1):
        table.update_counts([(1, Counts(allocated_bytes=4096 * each * second, allocated_count=each * second))])
        if slots.due(second * SECOND):
            slots.close(second * SECOND)
            site.end_slot(slots)
    assert len(site.readings) <= MAX_SLOTS
    found = site.cohorts(slots, seconds * SECOND, [])
    assert len(found) <= MAX_SLOTS
    for cohort in found:
        assert cohort.born_count == each * (cohort.born_to_ns - cohort.born_from_ns) / SECOND
    assert _sums(found)[:2] == (4096 * each * seconds, each * seconds)


def test_a_late_site_has_no_earlier_births() -> None:
    slots = Slots(0, bounds=[10 * SECOND, 20 * SECOND])
    found = cohorts(slots, 30 * SECOND, [CounterReading(20 * SECOND, 70, 7)], CounterReading(30 * SECOND, 100, 10), [])
    assert [c.born_count for c in found] == [0, 7, 3]


def test_blocks_born_after_the_end_are_in_the_last_cohort() -> None:
    slots = Slots(0, bounds=[10 * SECOND])
    found = cohorts(slots, 20 * SECOND, [], CounterReading(0, 8, 1), [OutstandingBlock(25 * SECOND, 8, 1)])
    assert (found[-1].born_count, found[-1].left_count) == (1, 1)


def _site(*left: int) -> AllocationSite:
    """Ten seconds a cohort."""
    return AllocationSite(
        pid=1,
        site_id=1,
        kind="mmap",
        stack=Stack(frames=()),
        outstanding_bytes=sum(left),
        outstanding_count=sum(left),
        allocated_bytes=sum(left),
        allocated_count=sum(left),
        freed_bytes=0,
        freed_count=0,
        first_ns=0,
        last_ns=0,
        cohorts=tuple(
            Cohort(
                born_from_ns=10 * at * SECOND,
                born_to_ns=10 * (at + 1) * SECOND,
                born_bytes=count,
                born_count=count,
                left_bytes=count,
                left_count=count,
            )
            for at, count in enumerate(left)
        ),
    )


def test_ages_come_from_the_cohorts() -> None:
    assert _site(10, 10, 10).age_quantiles_s == (3.0, 15.0, 27.0)
    ages = _site(100, 0, 1).age_quantiles_s
    assert ages is not None
    assert ages[1] > 20.0
    assert _site(0, 0).age_quantiles_s is None
    assert _site().age_quantiles_s is None


def test_weights_leave_fewer_effective_births() -> None:
    table = AllocationTable(lambda _start: None, itertools.count(1))
    for kernel_site in (1, 2):
        add_site(table, kernel_site, 1)
    (site,) = table.sites
    exact = Counts(allocated_bytes=10, allocated_count=10, squares=10)
    table.update_counts([(1, exact)])
    assert site.report(1, 0, Slots(0)).effective_births is None
    table.update_counts([(1, exact), (2, Counts(allocated_bytes=256, allocated_count=256, squares=256 * 256))])
    assert site.report(1, 0, Slots(0)).effective_births == 266 * 266 // (10 + 256 * 256)
