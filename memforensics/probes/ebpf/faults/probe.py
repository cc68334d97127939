"""trace-faults: who touches memory that was not resident before, by hybrid stack.

`faults.bpf.c` walks a stack where a fault made something resident, and notes the page. A stack gets its names when it
is first seen. The pages are looked up in pagemap at the end, and now and then before. Nothing is written into the
target, nothing stops it. When there are very many faults (more than 8,000 a second on pages that are new to the
process, or 1,000 on others, above 16,384 saved up of each) a sample is walked and counts for the rest.

A site names who *touches* memory, not who leaks it: a leaked block that reuses pages costs no fault, and the next
temporary object takes the blame (measured: 0% of the faults for the leaker). So no finding is made of these sites.
"""

import time
from collections.abc import Callable

from memforensics.probes.ebpf.faults.accounting import FaultAccounting
from memforensics.probes.ebpf.faults.space import FaultSpace
from memforensics.probes.ebpf.trace_loop import TraceLoop

FaultTrace = TraceLoop[FaultSpace, FaultAccounting]


def fault_trace(*, python: bool = True, clock: Callable[[], int] = time.monotonic_ns) -> FaultTrace:
    """The probe. `python`: walk Python frames."""
    return TraceLoop(FaultAccounting(python=python), clock=clock)
