"""A process that imitates what recognisers look for: it is read for a bounded time, and what it says adds up."""

import contextlib

import pytest
from owned import adds_up, settle
from processes import compiled, running

from memforensics.probes.proc.snapshots import take_snapshot
from memforensics.runtimes.reading import PageReader
from memforensics.target import open_process
from memforensics.target.pagemap import PAGE, Pagemap

pytestmark = pytest.mark.live


@pytest.mark.parametrize("seed", range(2))
def test_hostile_memory_is_read_in_bounded_time(seed: int) -> None:
    with (
        running([compiled("own_hostile.c"), str(seed)]) as child,
        contextlib.closing(open_process(child.pid)) as process,
    ):
        settle(process)
        seen, losses = take_snapshot(process)
        adds_up(process, seen)
    inside = [(m.start, m.end) for m in seen.mappings]
    assert all(any(a <= mark.start < mark.end <= b for a, b in inside) for mark in seen.marks)
    assert any("records were not read" in loss.what for loss in losses)


def test_impossible_addresses_are_not_read() -> None:
    with (
        running([compiled("own_layers.c"), "anon", "1", "4096"]) as child,
        contextlib.closing(open_process(child.pid)) as process,
        Pagemap(process.pid, process.proc) as pagemap,
    ):
        top = 1 << 47
        for can_scan in {False, pagemap.can_scan()}:
            reader = PageReader(process.memory, pagemap, can_scan=can_scan)
            for address in (-PAGE, 0, top - PAGE, top - 8, top, 1 << 56, 1 << 63, (1 << 64) - PAGE, 1 << 70):
                assert reader.read(address, 16) is None
                assert reader.read_present(address, 16) is None
                assert reader.present(address & -PAGE, (address & -PAGE) + 2 * PAGE) == []
