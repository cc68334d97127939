"""What a trace keeps in user space is bounded, however many stacks there are."""

import itertools

from stack_events import add_site

from memforensics.probes.ebpf.mmap.allocation_table import AllocationTable
from memforensics.probes.ebpf.stacks.sites import ALL_POINTS, MAX_KERNEL_SITES, MAX_POINTS


def test_a_hundred_thousand_stacks() -> None:
    table = AllocationTable(lambda _start: None, itertools.count(1))
    for number in range(100_000):
        add_site(table, number)
    assert len(table.sites) == MAX_KERNEL_SITES
    assert table.sites.dropped == 100_000 - MAX_KERNEL_SITES
    assert len(table.sites) * table.sites.max_points <= ALL_POINTS
    add_site(table, 7)
    assert table.sites.dropped == 100_000 - MAX_KERNEL_SITES, "a known site is not dropped"


def test_a_long_timeline_keeps_its_ends() -> None:
    table = AllocationTable(lambda _start: None, itertools.count(1))
    add_site(table, 1)
    assert table.sites.max_points == MAX_POINTS
    (site,) = table.sites
    for second in range(10_000):
        site.note(second, 50)
    assert len(site.timeline) <= 50
    assert site.timeline[0].t_ns == 0
    assert site.timeline[-1].t_ns == 9999
