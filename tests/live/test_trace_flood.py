"""More events than can be handled: a trace ends in time, keeps its memory, and says what it does not know."""

import json
import subprocess
import sys

import pytest
from processes import compiled, running
from tracing import PAGE, functions, traced

from memforensics.probes.base import Budget
from memforensics.probes.ebpf.loader.program_set import Sizes
from memforensics.probes.ebpf.mmap.probe import MmapTrace
from memforensics.probes.ebpf.mmap.programs import MmapPrograms
from memforensics.target import open_process

pytestmark = [pytest.mark.live, pytest.mark.needs_bpf]


def test_duration_holds_while_events_come_faster_than_they_are_read() -> None:
    with running([compiled("trace_flood.c")]) as child:
        child.tell("4 1")
        child.wait_for("going")
        words = [sys.executable, "-m", "memforensics", "trace-mmap", str(child.pid), "--duration", "1s", "--json"]
        ended = subprocess.run(words, capture_output=True, timeout=90)
        assert child.alive
    assert ended.returncode == 0, ended.stderr
    assert any("events dropped" in loss["what"] for loss in json.loads(ended.stdout)["losses"]["mmap-trace"])


def test_one_reading_of_events_is_bounded_and_the_rest_waits() -> None:
    with running([compiled("trace_flood.c")]) as child:
        process = open_process(child.pid)
        trace = MmapTrace()
        trace.open(process, Budget(seconds=4))
        try:
            child.tell("0 2")
            engine = trace.programs.engine
            while trace.programs.dropped() == 0:  # the ring buffer is full
                pass
            waiting = engine.waiting_bytes()
            read = engine.events()
            assert len(read) <= 1024
            assert engine.waiting_bytes() > waiting // 2
            list(trace.close())
        finally:
            trace.close()
            process.close()


class _SmallRing(MmapTrace):
    pages = 16

    def _load(self) -> MmapPrograms:
        return MmapPrograms(files=False, python=False, sizes=Sizes(event_pages=self.pages))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("stands_still", [True, False])
def test_sum_is_that_of_proc_after_events_were_dropped(threads: int, stands_still: bool) -> None:
    """What is outstanding is never more than what is mapped; what is mapped and not known is said."""
    with traced([compiled("trace_flood.c")], _SmallRing()) as run:
        run.child.tell(f"0 {threads}")
        run.child.wait_for("going")
        while run.trace.programs.dropped() < 5000:
            run.poll()
        if stands_still:
            run.child.tell("")
            mapped = int(run.child.wait_for("bytes").split()[1])
            result = run.result()
        else:
            result = run.result()
            run.child.tell("")
            mapped = int(run.child.wait_for("bytes").split()[1])
    sites = [site for site in result.sites if {"keep", "churn"} & set(functions(site))]
    known = sum(site.outstanding_bytes for site in sites)
    summary = result.summaries[run.child.pid]
    assert summary.dropped_events >= 5000
    assert summary.unknown_bytes is not None
    if stands_still:
        assert 0 <= mapped - known <= summary.unknown_bytes
        assert sum(site.resident_bytes or 0 for site in sites) <= known
    else:  # it went on: `most` comes and goes
        most = 64 * 9 * threads * PAGE
        assert known <= mapped + most
