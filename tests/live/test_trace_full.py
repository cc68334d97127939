"""Full tables of the kernel: each loss is counted, with what reduces it, and the traced process goes on."""

from collections.abc import Callable

import pytest
from processes import compiled, running

from memforensics.case.model import AllocationSite, Loss
from memforensics.probes.base import Budget
from memforensics.probes.ebpf.faults.accounting import FaultAccounting
from memforensics.probes.ebpf.faults.probe import FaultTrace
from memforensics.probes.ebpf.loader.program_set import Sizes
from memforensics.probes.ebpf.mmap.accounting import MmapAccounting
from memforensics.probes.ebpf.mmap.probe import MmapTrace
from memforensics.probes.ebpf.trace_loop import TraceLoop
from memforensics.target import open_process

pytestmark = [pytest.mark.live, pytest.mark.needs_bpf]

COMMANDS = ("leak 300 4096", "churn 100 8192", "partial 5", "failing 5", "fixed 5", "threads 3 4096")
FEW_STACKS = Sizes(sites=2, rules=3, rules_preallocated=3, misses=64, event_pages=1, miss_pages=16)


def small_mmap_trace(sizes: Sizes | None = None, most: int = 64) -> MmapTrace:
    return TraceLoop(MmapAccounting(sizes=sizes, max_live=most))


def small_fault_trace(sizes: Sizes | None = None, most: int = 64) -> FaultTrace:
    return TraceLoop(FaultAccounting(sizes=sizes, max_pages=most))


def losses(probe: MmapTrace | FaultTrace) -> dict[str, Loss]:
    """The losses of a trace of a program, which goes on after it."""
    with running([compiled("trace_leaker.c", "-fomit-frame-pointer")]) as child:
        process = open_process(child.pid)
        try:
            probe.open(process, Budget(seconds=4))
            for command in COMMANDS:
                child.tell(command)
                child.wait_for("done")
                list(probe.poll())
            evidence = list(probe.close())
        finally:
            probe.close()
            process.close()
        child.tell("leak 3 4096")
        child.wait_for("done")
    assert [e for e in evidence if isinstance(e, AllocationSite)]
    return {e.what: e for e in evidence if isinstance(e, Loss)}


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (small_mmap_trace, "mappings dropped: the table of live mappings is full"),
        (small_fault_trace, "pages dropped: the table of touched pages is full"),
    ],
    ids=["mappings", "faults"],
)
def test_full_tables_of_memory_are_losses(make: Callable[..., MmapTrace | FaultTrace], what: str) -> None:
    lost = losses(make())
    assert lost[what].count > 200
    assert lost[what].reduce


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (small_mmap_trace, "mappings dropped: the stack table is full"),
        (small_fault_trace, "faults dropped: the stack table is full"),
    ],
    ids=["mappings", "faults"],
)
def test_full_tables_of_stacks_and_rules_are_losses(make: Callable[..., MmapTrace | FaultTrace], what: str) -> None:
    lost = losses(make(FEW_STACKS, 1 << 16))
    assert lost[what].count > 0
    assert lost[what].reduce
    rules = lost["unwind rules not stored: the table was full"]
    assert rules.count > 0
    assert rules.reduce
