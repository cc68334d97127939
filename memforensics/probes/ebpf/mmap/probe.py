"""trace-mmap: outstanding mappings by hybrid stack.

What is outstanding is address space that came by mmap, mremap, brk and shmat. mprotect changes none of it: a glibc
arena is outstanding as it was reserved, and its growth shows in `resident_bytes`. So do madvise and process_madvise,
which give pages back and keep the mapping. Not followed: MREMAP_FIXED of a range with holes (Linux 6.17), and
MAP_FIXED over the memory of another thread while that thread unmaps it. A comparison with /proc/PID/maps finds, counts
and repairs these (reconcile.py).
"""

import time
from collections.abc import Callable

from memforensics.probes.ebpf.mmap.accounting import MmapAccounting
from memforensics.probes.ebpf.mmap.space import MmapSpace
from memforensics.probes.ebpf.trace_loop import TraceLoop

MmapTrace = TraceLoop[MmapSpace, MmapAccounting]


def mmap_trace(*, files: bool = False, python: bool = True, clock: Callable[[], int] = time.monotonic_ns) -> MmapTrace:
    """The probe. `files`: record file-backed mappings too, as sites of their own. `python`: walk Python frames."""
    return TraceLoop(MmapAccounting(files=files, python=python), clock=clock)
