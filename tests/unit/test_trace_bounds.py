"""What a trace keeps in user space is bounded, however many stacks there are."""

import itertools

from memforensics.case.model import Stack
from memforensics.probes.ebpf.loader.layout import Kind
from memforensics.probes.ebpf.mmap.allocation_table import ALL_POINTS, MAX_KERNEL_SITES, MAX_POINTS, Book


def test_a_hundred_thousand_stacks() -> None:
    book = Book(lambda _start: None, itertools.count(1))
    for number in range(100_000):
        book.new_site(number, ("stack", number), Kind.mmap, False, False, True, lambda: Stack(frames=(), complete=True))
    assert len(book.sites) == MAX_KERNEL_SITES
    assert book.left_out == 100_000 - MAX_KERNEL_SITES
    assert len(book.sites) * book.most_points <= ALL_POINTS
    book.new_site(7, ("stack", 7), Kind.mmap, False, False, True, lambda: Stack(frames=(), complete=True))
    assert book.left_out == 100_000 - MAX_KERNEL_SITES  # known ones are still taken


def test_points_of_a_timeline_are_thinned_out() -> None:
    book = Book(lambda _start: None, itertools.count(1))
    book.new_site(1, ("one",), Kind.mmap, False, False, True, lambda: Stack(frames=(), complete=True))
    assert book.most_points == MAX_POINTS
    (record,) = book.sites.values()
    for second in range(10_000):
        record.note(second, 50)
    assert len(record.points) <= 50
    assert record.points[0].t_ns == 0
    assert record.points[-1].t_ns == 9999
