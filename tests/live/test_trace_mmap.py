"""The tracer on programs with exactly known answers."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import LEAKERS, compiled, python, running
from tracing import PAGE, Traced, execs, functions, line_of, pythons, traced, tracer

from memforensics.analysis.frames import layer_of
from memforensics.case.model import AllocationSite
from memforensics.probes.base import Budget
from memforensics.probes.ebpf.mmap.probe import mmap_trace
from memforensics.target import open_process

pytestmark = [pytest.mark.live, pytest.mark.needs_bpf]

CHAIN = ["leak_1", "leak_2", "leak_3", "leak_4", "leak_5", "leak_6", "leak_7", "leak_8"]


def leaker() -> list[str | Path]:
    return [compiled("trace_leaker.c", "-fomit-frame-pointer")]


def sizes(site: AllocationSite) -> tuple[int, int, int]:
    return site.outstanding_bytes, site.outstanding_count, site.allocated_count


def test_kept_unmapped_and_cut_mappings_in_c() -> None:
    with traced(leaker(), mmap_trace()) as it:
        for command in ("leak 13 12288", "churn 997 8192", "partial 7", "failing 11", "heap 1000001"):
            it.do(command)
        result = it.result()
    kept = result.only("leak_many")
    assert sizes(kept) == (13 * 12288, 13, 13)
    assert kept.resident_bytes == 13 * 12288
    assert functions(kept)[1:11] == [*CHAIN, "leak_many", "main"]
    assert functions(kept)[-1] == "_start"
    assert kept.stack.complete
    assert not any(frame.guessed for frame in kept.stack.frames)
    assert kept.stack.frames[1].file is not None
    assert kept.stack.frames[1].file.endswith("trace_leaker.c")
    assert kept.stack.frames[1].build_id
    assert sizes(result.only("churn_many")) == (0, 0, 997)
    assert sizes(result.only("partial_many")) == (7 * 4 * PAGE, 7, 7)
    assert result.only("partial_many").resident_bytes == 7 * 4 * PAGE
    assert sizes(result.only("failing_many")) == (11 * PAGE, 11, 11)
    heap = result.only("heap_more")
    assert heap.kind == "brk"
    assert 1000001 <= heap.outstanding_bytes < 1000001 + 2 * PAGE
    result.accounts_for_growth(it.child.pid, within=0.05)


def test_replaced_and_remapped_mappings_in_c() -> None:
    with traced(leaker(), mmap_trace()) as it:
        it.do("fixed 5")
        it.do("grow 3")
        result = it.result()
    assert sizes(result.only("leak_1", "fixed_many"))[0] == 5 * 2 * PAGE
    assert sizes(result.only("replace_middle")) == (5 * 2 * PAGE, 5, 5)
    assert sizes(result.only("leak_1", "grow_many")) == (0, 0, 3)
    grown = result.only("grow_one")
    assert grown.kind == "mremap"
    assert sizes(grown) == (3 * 5 * PAGE, 3, 3)


def test_only_a_busy_balanced_size_is_sampled() -> None:
    with traced(leaker(), mmap_trace()) as it:
        for _ in range(4):
            it.do("churn 20000 8192")
            it.do("leak 13 12288")
        result = it.result()
    assert sizes(result.only("leak_many")) == (4 * 13 * 12288, 52, 52)
    churned = result.only("churn_many")
    assert sizes(churned)[:2] == (0, 0)
    summary = result.summaries[it.child.pid]
    assert summary.unwalked
    walked = 80_000 - summary.unwalked
    assert walked < 20_000
    # by weight, within six standard deviations of the 80,000 that there were
    assert summary.sampled_one_in
    assert abs(churned.allocated_count - 80_000) < 6 * (80_000 * summary.sampled_one_in) ** 0.5
    assert not result.losses


def test_threads_and_a_forked_child() -> None:
    with traced(leaker(), mmap_trace()) as it:
        it.do("threads 19 4096")
        it.child.tell("fork 17 8192")
        child = int(it.child.wait_for("child").split()[1])
        it.child.wait_for("done")
        it.poll()
        result = it.result()
    assert sizes(result.only("thread_main", "leak_many")) == (4 * 19 * PAGE, 76, 76)
    inner = [s for s in result.sites if s.pid == child and "leak_many" in functions(s)]
    assert [sizes(s) for s in inner] == [(17 * 8192, 17, 17)]
    assert functions(inner[0])[1:11] == [*CHAIN, "leak_many", "main"]
    assert result.summaries[child].resident_bytes == 17 * 8192


def test_the_heap_of_a_forked_worker_begins_at_its_program_break() -> None:
    with running(leaker()) as child:
        child.tell("heap 20000000")
        child.wait_for("done")
        child.tell("worker 1000000")
        pid = int(child.wait_for("worker").split()[1])
        child.wait_for("done")
        assert Path(f"/proc/{pid}/maps").read_text().count("[heap]") == 2
        trace = mmap_trace()
        with contextlib.closing(open_process(pid)) as process:
            trace.open(process, Budget(seconds=4))
            try:
                it = Traced(child, trace)
                it.do("heap 3000000")
                result = it.result()
            finally:
                trace.close()
    heap = result.only("heap_more")
    assert 3_000_000 <= heap.outstanding_bytes < 3_000_000 + 2 * PAGE
    result.accounts_for_growth(pid, within=0.05)


def test_tmpfs_files_count_as_memory() -> None:
    with traced(python("trace_python.py"), mmap_trace()) as it:
        it.do("memfd 7 65536")
        it.do("disk 5 131072")
        result = it.result()
    kept = result.only("keep_file")
    assert sizes(kept) == (7 * 65536, 7, 7)
    assert kept.resident_bytes == 7 * 65536
    assert (kept.tmpfs, kept.file_backed) == (True, False)
    assert "keep_memfd" in functions(kept)
    assert layer_of(kept) == "shmem"


@pytest.mark.parametrize("interpreter", pythons(("3.11", "3.12", "3.13")), ids=lambda path: Path(path).parts[-3])
def test_python_functions_and_lines(interpreter: str) -> None:
    with traced(python("trace_python.py", interpreter=interpreter), mmap_trace()) as it:
        it.do("private 7 65536")
        it.do("shared 5 131072")
        it.do("churn 101 8192")
        it.do("thread 3 32768")
        result = it.result()
    for mark, count, size in (("private", 7, 65536), ("shared", 5, 131072)):
        sites = [s for s in result.sites if {f"keep_{mark}", "main"} <= set(functions(s))]
        assert len(sites) == 1
        site = sites[0]
        assert sizes(site) == (count * size, count, count)
        assert site.resident_bytes == count * size
        assert site.shared is (mark == "shared")
        assert site.stack.complete
        assert not site.stack.doubtful
        frames = [frame for frame in site.stack.frames if frame.kind == "python"]
        assert [frame.function for frame in frames] == [f"keep_{mark}", "main", "<module>"]
        assert frames[0].file == str(LEAKERS / "trace_python.py")
        assert frames[0].line == line_of("trace_python.py", mark)
        assert not any("_PyEval_EvalFrameDefault" in (name or "") for name in functions(site))
    churned = [s for s in result.sites if any("once" in (name or "") for name in functions(s))]
    assert [sizes(s) for s in churned] == [(0, 0, 101)]
    threaded = [s for s in result.sites if {"keep_private", "Worker.serve"} <= set(functions(s))]
    threaded = threaded or [s for s in result.sites if {"keep_private", "serve"} <= set(functions(s))]  # to 3.10
    assert [sizes(s)[:2] for s in threaded] == [(3 * 32768, 3)]


def test_sites_outlive_the_target() -> None:
    with traced(leaker(), mmap_trace()) as it:
        it.do("leak 13 12288")
        os.kill(it.child.pid, signal.SIGKILL)
        it.child.popen.wait()
        it.poll()
        result = it.result()
    kept = result.only("leak_many")
    assert sizes(kept) == (13 * 12288, 13, 13)
    assert functions(kept)[1:9] == CHAIN


KEEP = """
import mmap
def keep_{name}(): return mmap.mmap(-1, {size}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
kept = [keep_{name}() for _ in range({count})]
"""


def test_exec_releases_the_sites_of_the_old_program() -> None:
    before = KEEP.format(name="before", size=65536, count=7)
    with traced(execs(before, KEEP.format(name="after", size=131072, count=5)), mmap_trace()) as it:
        it.do("")
        assert (7 * 65536, 7, 7) in [sizes(s) for s in it.sample() if "keep_before" in functions(s)]
        it.child.tell("")
        it.child.wait_for("again")
        assert (0, 0, 7) in [sizes(s) for s in it.sample() if "keep_before" in functions(s)]
        it.do("")
        result = it.result()
    assert sizes(result.only("keep_after")) == (5 * 131072, 5, 5)
    assert sizes(result.only("keep_before")) == (0, 0, 7)
    assert len({(s.pid, s.site_id) for s in result.sites}) == len(result.sites)


def test_the_target_outlives_a_killed_tracer() -> None:
    with running(leaker()) as child:
        with tracer("trace-mmap", child, "--duration", "60s", "--json") as popen:
            child.tell("churn 5000 8192")
            child.wait_for("done")
            popen.kill()
            popen.wait()
        child.tell("leak 3 4096")
        child.wait_for("done")
        assert child.alive


MANY_THREADS = """
import mmap, threading
never = threading.Event()
for _ in range(700):
    threading.Thread(target=never.wait, daemon=True).start()
def keep(): return mmap.mmap(-1, 65536, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
kept = []
print("ready", flush=True)
while input():
    kept += [keep() for _ in range(7)]
    print("done", flush=True)
"""


@pytest.mark.parametrize("interpreter", pythons(("3.8", "3.11", "3.12", "3.13")), ids=lambda path: Path(path).parts[-3])
def test_the_main_thread_among_many_has_its_python_frames(interpreter: str) -> None:
    with traced([interpreter, "-c", MANY_THREADS], mmap_trace()) as it:
        it.do("keep")
        result = it.result()
    kept = result.only("keep")
    assert sizes(kept) == (7 * 65536, 7, 7)
    assert "<module>" in functions(kept)


def test_runs_for_other_processes_are_counted_apart() -> None:
    with running(leaker()) as other, traced(leaker(), mmap_trace()) as it:
        other.tell("churn 100000 8192")
        for _ in range(20):
            it.do("churn 97 8192")
        other.wait_for("done")
        it.poll()
        cost = it.result().cost
    assert cost.bpf_runs is not None
    assert cost.bpf_run_ns is not None
    assert cost.target_run_ns is not None
    assert cost.target_runs == 20 * 97 * 3  # mmap, and munmap at its entry and its exit
    assert cost.bpf_runs - cost.target_runs >= 250_000  # counted for a tenth of the time, estimated for the rest
    assert cost.target_run_ns < cost.bpf_run_ns / 2
    assert 20 < cost.target_run_ns / cost.target_runs < 20_000


REPLACE = """
import mmap
def filled(size):
    kept = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    kept.write(b"x" * size)
    return kept
old = filled(30 << 20)
print("ready", flush=True)
input()
new = filled(40 << 20)
old.close()
print("done", flush=True)
input()
"""


def test_sites_that_hold_more_than_rss_grew_by_are_a_loss() -> None:
    with traced([sys.executable, "-c", REPLACE], mmap_trace()) as it:
        it.do("")
        result = it.result()
    coverage = result.summaries[it.child.pid].coverage
    assert coverage is not None
    assert coverage > 3
    assert any(loss.count == 1 and f"up to {coverage:.0%}" in loss.what for loss in result.losses)


def test_the_command_prints_json() -> None:
    with running(leaker()) as child, tracer("trace-mmap", child, "--duration", "2s", "--json") as popen:
        time.sleep(0.5)  # the stacks of a quiet process are learned by then
        child.tell("leak 13 12288")
        child.wait_for("done")
        out, _ = popen.communicate(timeout=30)
        assert popen.returncode == 0
    told = json.loads(out)
    site = next(s for s in told["sites"] if "leak_many" in [f["function"] for f in s["stack"]])
    assert (site["outstanding_bytes"], site["count"]) == (13 * 12288, 13)
    assert set(told) >= {"sites", "coverage", "losses", "overhead"}
    assert told["overhead"]["mmap-trace"]["bpf_runs"] > 0
    assert [(one["dropped_events"], one["unknown_bytes"]) for one in told["traces"]] == [(0, None)]


def test_it_lists_targets_without_a_pid() -> None:
    command = [sys.executable, "-m", "memforensics", "trace-mmap"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "PID" in ended.stderr
