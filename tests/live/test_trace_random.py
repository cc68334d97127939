"""The ledger against the kernel's: whatever a process does to its address space, all that was mapped since the trace
began and still is, and nothing else, stands in it. Exact to the page, without any repair."""

import os
import random

import pytest
from processes import compiled, running

from memforensics.case.model import Loss
from memforensics.probes.base import Budget
from memforensics.probes.ebpf.mmap.ledger import Span, subtract
from memforensics.probes.ebpf.mmap.probe import mmap_trace
from memforensics.probes.ebpf.mmap.proc_maps import mapped
from memforensics.target import open_process
from memforensics.target.process import Process

pytestmark = [pytest.mark.live, pytest.mark.needs_bpf]

# A longer run: MEMFORENSICS_LEDGER_RUNS=20 MEMFORENSICS_LEDGER_OPERATIONS=40000
RUNS = int(os.environ.get("MEMFORENSICS_LEDGER_RUNS", "1"))
OPERATIONS = int(os.environ.get("MEMFORENSICS_LEDGER_OPERATIONS", "20000"))
SEED = int(os.environ.get("MEMFORENSICS_LEDGER_SEED", str(random.SystemRandom().randrange(1 << 32))))


def anonymous(process: Process) -> list[Span]:
    return mapped(process.read_text("maps")).anonymous


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("run", range(RUNS))
def test_the_ledger_agrees_with_the_kernel(run: int, threads: int) -> None:
    seed = SEED + 1000 * run
    print(f"MEMFORENSICS_LEDGER_SEED={seed} threads={threads}")
    with running([compiled("trace_random.c")]) as child:
        process = open_process(child.pid)
        trace = mmap_trace()
        trace.open(process, Budget(seconds=4))
        try:
            before = anonymous(process)
            child.tell(f"{seed} {threads} {OPERATIONS // threads}")
            while not child.said("done"):
                list(trace.poll())
            now = subtract(anonymous(process), before)
            assert trace.accounting.outstanding(child.pid) == now
            told = list(trace.close())
        finally:
            trace.close()
            process.close()
        assert sum(end - start for start, end in now) > 100 * 4096
    assert not [e for e in told if isinstance(e, Loss) and "not seen" in e.what]
