"""More events than can be handled: a trace ends in time, keeps its memory, and says what it does not know."""

import json
import subprocess
import sys

import pytest
from processes import compiled, running

from memforensics.probes.base import Budget
from memforensics.probes.mmap_trace import MmapTrace
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
