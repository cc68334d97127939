"""More events than can be handled: a trace ends in time, keeps its memory, and says what it does not know."""

import json
import subprocess
import sys

import pytest
from processes import compiled, running
from tracing import PAGE, execs, functions, traced

from memforensics.probes.base import Budget
from memforensics.probes.ebpf.loader.program_set import Sizes
from memforensics.probes.ebpf.mmap.accounting import MmapAccounting
from memforensics.probes.ebpf.mmap.probe import MmapTrace, mmap_trace
from memforensics.probes.ebpf.trace_loop import TraceLoop
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
    told = json.loads(ended.stdout)
    assert any("events dropped" in loss["what"] for loss in told["losses"]["mmap-trace"])
    assert len(told["traces"]) >= 4
    assert all(trace["dropped_events"] > 0 for trace in told["traces"])
    assert all(trace["unknown_bytes"] is None or trace["unknown_bytes"] >= 0 for trace in told["traces"])
    assert any(trace["unknown_bytes"] for trace in told["traces"])


def test_a_trace_of_many_faulting_processes_ends_in_time() -> None:
    with running([compiled("trace_flood.c")]) as child:
        child.tell("4 1 touch")
        child.wait_for("going")
        words = [sys.executable, "-m", "memforensics", "trace-faults", str(child.pid), "--duration", "1s", "--json"]
        ended = subprocess.run(words, capture_output=True, timeout=90)
        assert child.alive
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert sum(trace["events"] > 100 for trace in told["traces"]) == 4
    assert {"churn"} <= {frame["function"] for site in told["sites"] for frame in site["stack"]}


def test_one_read_of_events_is_bounded() -> None:
    with running([compiled("trace_flood.c")]) as child:
        process = open_process(child.pid)
        trace = mmap_trace()
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


def small_ring(*, python: bool = False) -> MmapTrace:
    return TraceLoop(MmapAccounting(python=python, sizes=Sizes(event_pages=16)))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("stands_still", [True, False])
def test_sums_agree_with_proc_after_events_were_dropped(threads: int, stands_still: bool) -> None:
    """What is outstanding is never more than what is mapped; what is mapped and not known is said."""
    with traced([compiled("trace_flood.c")], small_ring()) as run:
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
    else:  # the program went on, and maps and unmaps up to `most`
        most = 64 * 9 * threads * PAGE
        assert known <= mapped + most


CUTS = """
import ctypes
libc = ctypes.CDLL(None)
libc.mmap.restype, libc.mmap.argtypes = ctypes.c_size_t, [ctypes.c_size_t] * 6
libc.munmap.argtypes = [ctypes.c_size_t] * 2
def keep_before():
    at = libc.mmap(0, 8000 * 4096, 3, 0x22, -1 & (1 << 64) - 1, 0)
    for page in range(1, 8000, 2):
        libc.munmap(at + page * 4096, 4096)
keep_before()
"""
KEEP_AFTER = """
import mmap
def keep_after(): return mmap.mmap(-1, 131072, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
kept = [keep_after() for _ in range(5)]
"""


@pytest.mark.parametrize("noticed", ["by a sample", "by an event", "at the end"])
def test_an_exec_is_found_whose_event_was_dropped(noticed: str) -> None:
    with traced(execs(CUTS, KEEP_AFTER), small_ring(python=True)) as run:
        trace, child = run.trace, run.child
        child.tell("")
        child.wait_for("done")
        dropped = trace.programs.dropped()
        assert dropped > 1000  # and nobody reads: the ring buffer stays full
        child.tell("")
        child.wait_for("again")
        assert trace.programs.dropped() > dropped
        if noticed == "by a sample":
            run.sample()
        elif noticed == "by an event":
            run.handle_all()
        child.tell("")
        child.wait_for("done")
        if noticed == "by an event":
            run.handle_all()
            assert trace.processes[child.pid].former
        result = run.result()
    assert sum(site.outstanding_bytes for site in result.sites if "keep_before" in functions(site)) == 0
    if noticed != "at the end":
        (kept,) = [site for site in result.sites if "keep_after" in functions(site)]
        assert (kept.outstanding_bytes, kept.outstanding_count) == (5 * 131072, 5)
        assert kept.stack.complete
    assert result.summaries[child.pid].dropped_events > 1000
    assert result.summaries[child.pid].unknown_bytes is None
