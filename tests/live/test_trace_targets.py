"""Processes whose PIDs share a slot of the kernel's table are traced separately."""

from typing import Any

import pytest
from processes import compiled
from tracing import traced

from memforensics.probes.ebpf.loader import layout
from memforensics.probes.ebpf.loader.target_table import SLOTS
from memforensics.probes.ebpf.mmap.accounting import MmapAccounting
from memforensics.probes.ebpf.mmap.probe import MmapTrace
from memforensics.probes.ebpf.mmap.programs import MmapPrograms
from memforensics.probes.ebpf.mmap.space import MmapSpace
from memforensics.probes.ebpf.trace_loop import TraceLoop

pytestmark = [pytest.mark.live, pytest.mark.needs_bpf]

FAR = 1 << 22  # above every PID (PID_MAX_LIMIT)


def test_two_processes_share_a_slot() -> None:
    programs = MmapPrograms(files=False, python=False)
    try:
        targets = programs.targets
        one, two, three = ((FAR + n * SLOTS, layout.TARGET.pack(n, 0, 0, n * 7, 0, 0)) for n in (1, 2, 3))
        for pid, value in (one, two):
            assert targets.add(pid, value)
            assert targets.get(pid) == value
        assert targets.get(one[0]) == one[1]
        assert targets.get(three[0]) is None
        programs.remove_target(one[0])
        assert targets.get(one[0]) is None
        assert programs.stacks_skipped(two[0]) == 14
        assert targets.add(*three)
        assert targets.add(*two)
        programs.remove_target(two[0])
        assert targets.get(two[0]) is None
        assert programs.stacks_skipped(three[0]) == 21
    finally:
        programs.close()


class Crowded(MmapAccounting):
    """Other processes have all slots."""

    def load(self, trace: TraceLoop[MmapSpace, Any], *, bounded: bool) -> MmapPrograms:
        programs = super().load(trace, bounded=bounded)
        for pid in range(FAR, FAR + SLOTS):
            assert programs.targets.add(pid, layout.TARGET.pack(1, 0, 0, 0, 0, 0))
        return programs


def test_a_process_without_a_slot() -> None:
    trace: MmapTrace = TraceLoop(Crowded())
    with traced([compiled("trace_leaker.c", "-fomit-frame-pointer")], trace) as it:
        it.do("leak 13 12288")
        it.do("churn 307 8192")
        result = it.result()
    kept = result.only("leak_many")
    assert (kept.outstanding_bytes, kept.outstanding_count) == (13 * 12288, 13)
    assert result.only("churn_many").allocated_count == 307
