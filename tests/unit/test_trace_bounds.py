"""What a trace keeps in user space is bounded, however many stacks there are."""

import itertools

from memforensics.case.model import Stack
from memforensics.probes.ebpf.loader.layout import Kind
from memforensics.probes.ebpf.mmap.allocation_table import ALL_POINTS, MAX_KERNEL_SITES, MAX_POINTS, AllocationTable


def test_a_hundred_thousand_stacks() -> None:
    table = AllocationTable(lambda _start: None, itertools.count(1))
    for number in range(100_000):
        table.add_site(
            number, ("stack", number), Kind.mmap, False, False, True, lambda: Stack(frames=(), complete=True)
        )
    assert len(table.sites) == MAX_KERNEL_SITES
    assert table.dropped_sites == 100_000 - MAX_KERNEL_SITES
    assert len(table.sites) * table.max_points <= ALL_POINTS
    table.add_site(7, ("stack", 7), Kind.mmap, False, False, True, lambda: Stack(frames=(), complete=True))
    assert table.dropped_sites == 100_000 - MAX_KERNEL_SITES  # known ones are still taken


def test_points_of_a_timeline_are_thinned_out() -> None:
    table = AllocationTable(lambda _start: None, itertools.count(1))
    table.add_site(1, ("one",), Kind.mmap, False, False, True, lambda: Stack(frames=(), complete=True))
    assert table.max_points == MAX_POINTS
    (record,) = table.sites.values()
    for second in range(10_000):
        record.note(second, 50)
    assert len(record.points) <= 50
    assert record.points[0].t_ns == 0
    assert record.points[-1].t_ns == 9999
