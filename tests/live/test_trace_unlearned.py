"""Stacks without unwind rules: what the kernel records before user space has decoded them."""

import pytest
from processes import compiled, running

from memforensics.case.model import AllocationSite, Loss
from memforensics.probes.base import Budget
from memforensics.probes.ebpf.faults.probe import FaultTrace, fault_trace
from memforensics.probes.ebpf.mmap.probe import MmapTrace, mmap_trace
from memforensics.target import open_process

pytestmark = [pytest.mark.live, pytest.mark.needs_bpf]

PAGE = 4096


def observed(probe: MmapTrace | FaultTrace, *commands: str) -> tuple[list[AllocationSite], list[Loss]]:
    """What a probe says of the leaker, which did all of this before the probe took anything in."""
    with running([compiled("trace_leaker.c", "-fomit-frame-pointer")]) as child:
        process = open_process(child.pid)
        try:
            probe.open(process, Budget(seconds=4))
            for command in commands:
                child.tell(command)
                child.wait_for("done")
            evidence = list(probe.close())
        finally:
            probe.close()
            process.close()
    return [e for e in evidence if isinstance(e, AllocationSite)], [e for e in evidence if isinstance(e, Loss)]


def outstanding(sites: list[AllocationSite], function: str) -> tuple[int, int]:
    """Bytes and blocks through a function, of all sites together; the pages of its code apart."""
    mine = [s for s in sites if function in [frame.function for frame in s.stack.frames] and not s.file_backed]
    return sum(s.outstanding_bytes for s in mine), sum(s.outstanding_count for s in mine)


def test_stacks_with_the_same_leaf_are_different_sites() -> None:
    """Both callers have the same depth, and no rule above the leaf is known at the second event."""
    sites, losses = observed(mmap_trace(), "leak 7 8192", "partial 5")
    assert outstanding(sites, "leak_many") == (7 * 8192, 7)
    assert outstanding(sites, "partial_many") == (5 * 4 * PAGE, 5)
    assert not losses


def test_faults_with_the_same_leaf_are_different_sites() -> None:
    sites, losses = observed(fault_trace(), "leak 7 8192", "partial 5")
    assert outstanding(sites, "leak_many") == (7 * 8192, 7 * 2)
    assert outstanding(sites, "partial_many") == (5 * 4 * PAGE, 5 * 4)
    assert not losses
