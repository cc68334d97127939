"""The trace of page faults on programs with exactly known answers."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import LEAKERS, Child, compiled, python, running
from terminal import terminal
from tracing import PAGE, execs, functions, line_of, pythons, traced, tracer

from memforensics.case.store import CaseFile
from memforensics.probes.ebpf.faults.accounting import FaultAccounting
from memforensics.probes.ebpf.faults.probe import fault_trace
from memforensics.probes.ebpf.faults.space import FaultSpace
from memforensics.probes.ebpf.trace_loop import TraceLoop

pytestmark = [pytest.mark.live, pytest.mark.needs_bpf]

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def toucher() -> list[str | Path]:
    return [compiled("fault_touch.c", "-fomit-frame-pointer")]


def test_each_page_belongs_to_its_last_toucher() -> None:
    with traced(toucher(), fault_trace()) as it:
        for command in ("own 997", "again 53", "churn 307", "kernel 101", "shared 41"):
            it.do(command)
        result = it.result()
    own = result.through("touch_own")
    assert [(s.kind, s.outstanding_bytes, s.allocated_count) for s in own] == [("fault", 997 * PAGE, 997)]
    assert functions(own[0])[:2] == ["touch_own", "main"]
    assert functions(own[0])[-1] == "_start"
    assert own[0].stack.frames[0].line == line_of("fault_touch.c", "own")
    assert result.pages("touch_first") == (0, 53)
    assert result.pages("touch_last") == (53, 53)
    assert result.pages("touch_churn") == (0, 307)
    assert result.pages("read_into") == (101, 101)
    assert result.pages("touch_shared") == (41, 41)
    assert [s.shared for s in result.through("touch_shared")] == [True]
    result.accounts_for_growth(it.child.pid, within=0.01)


def test_reading_untouched_memory_makes_nothing_resident() -> None:
    with traced(toucher(), fault_trace()) as it:
        it.do("zero 211")
        it.do("cow 29")
        result = it.result()
    assert result.through("read_only") == []
    assert result.pages("touch_read") == (29, 29)


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(), reason="needs transparent huge pages"
)
def test_huge_pages_count_their_full_size() -> None:
    with traced(toucher(), fault_trace()) as it:
        it.do("huge 3")
        result = it.result()
    assert result.pages("touch_huge") == (3 * 512, 3 * 512)
    assert sum(s.allocated_count for s in result.through("touch_huge")) == 3


def test_an_innocent_temporary_takes_the_faults_of_a_leak() -> None:
    """16 pages leak in each of 61 rounds, and the leaker touches none of them first."""
    with traced(toucher(), fault_trace()) as it:
        it.do("innocent 61")
        result = it.result()
    assert result.pages("leak")[0] == 0
    resident, _ = result.pages("temporary")
    assert 60 * 16 <= resident <= 62 * 16


def test_pages_that_system_calls_populate() -> None:
    with traced(toucher(), fault_trace()) as it:
        it.do("populate 71")
        result = it.result()
    for function in ("by_mmap", "by_madvise", "by_mlock"):
        assert result.pages(function) == (71, 71), function
    assert not result.losses


def test_threads_that_touch_at_the_same_time() -> None:
    with traced(toucher(), fault_trace()) as it:
        it.do("threads 3001")
        result = it.result()
    assert result.pages("touch_own") == (4 * 3001, 4 * 3001)


def test_pages_of_the_thread_stack() -> None:
    """What lies between the stack pointer and the frames above was never touched: it cannot be read, nor need it be."""
    with traced(toucher(), fault_trace()) as it:
        it.do("stack 3")
        result = it.result()
    sites = result.through("touch_stack")
    assert 1 <= sum(s.outstanding_bytes for s in sites) // PAGE <= 4
    assert all(functions(s)[1] == "main" and s.stack.complete for s in sites)


def test_file_pages_are_separate() -> None:
    with traced(toucher(), fault_trace()) as it:
        pages = int(it.do("file 0").split()[1])
        result = it.result()
    files = [s for s in result.sites if s.file_backed and functions(s)[0] == "read_file"]  # not libc's own, below it
    assert sum(s.outstanding_bytes for s in files) == pages * PAGE
    assert result.through("read_file") == []
    assert result.summaries[it.child.pid].resident_bytes == sum(
        s.outstanding_bytes for s in result.sites if not s.file_backed
    )


@pytest.mark.parametrize("interpreter", pythons(("3.9", "3.12", "3.13")), ids=lambda path: Path(path).parts[-3])
def test_python_functions_and_lines(interpreter: str) -> None:
    with traced(python("fault_python.py", interpreter=interpreter), fault_trace()) as it:
        it.do("own 97")
        it.do("kernel 31")
        it.do("innocent 61")
        result = it.result()
    for function, mark, pages in (("keep_touched", "own", 97), ("read_into", "kernel", 31)):
        sites = [s for s in result.through(function) if s.outstanding_bytes == pages * PAGE]
        assert len(sites) == 1
        frames = [frame for frame in sites[0].stack.frames if frame.kind == "python"]
        assert [frame.function for frame in frames] == [function, "main", "<module>"]
        assert frames[0].file == str(LEAKERS / "fault_python.py")
        assert frames[0].line == line_of("fault_python.py", mark)
        assert sites[0].stack.complete
        assert not sites[0].stack.doubtful
    block = 60_000 * 61 // PAGE
    assert result.pages("leak")[0] <= block * 0.02
    assert result.pages("temporary")[0] >= block * 0.95


def test_a_forked_child_has_sites_of_its_own() -> None:
    with traced([compiled("trace_leaker.c", "-fomit-frame-pointer")], fault_trace()) as it:
        it.do("leak 13 12288")
        it.child.tell("fork 17 8192")
        child = int(it.child.wait_for("child").split()[1])
        it.child.wait_for("done")
        it.poll()
        result = it.result()
    touched = {
        pid: sum(s.outstanding_bytes for s in result.through("leak_many") if s.pid == pid) for pid in result.summaries
    }
    assert touched == {it.child.pid: 13 * 12288, child: 17 * 8192}


KEEP = """
import mmap
def keep_{name}(pages):
    global kept
    kept = mmap.mmap(-1, pages * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for offset in range(0, len(kept), 4096):
        kept[offset] = 1
keep_{name}({pages})
"""


def test_exec_releases_the_sites_of_the_old_program() -> None:
    with traced(execs(KEEP.format(name="before", pages=59), KEEP.format(name="after", pages=43)), fault_trace()) as it:
        it.do("")
        it.child.tell("")
        it.child.wait_for("again")
        it.handle_all()
        it.do("")
        it.handle_all()
        result = it.result()
    assert result.pages("keep_before") == (0, 59)
    assert result.pages("keep_after") == (43, 43)
    assert len({(s.pid, s.site_id) for s in result.sites}) == len(result.sites)


def test_sites_outlive_the_target() -> None:
    with traced(toucher(), fault_trace()) as it:
        it.do("own 997")
        it.sample()
        it.child.popen.kill()
        it.child.popen.wait()
        result = it.result()
    assert result.pages("touch_own") == (997, 997)


class _GrowsWhileSampled(TraceLoop[FaultSpace, FaultAccounting]):
    """Its target grows after the events were handled and the counters were read, and before its size is."""

    child: Child
    grow = ""

    def _sample_processes(self, now: int) -> None:
        if self.grow:
            self.child.tell(self.grow)
            self.child.wait_for("done")
        self.grow = ""
        super()._sample_processes(now)


def test_growth_during_a_sample_is_seen() -> None:
    trace = _GrowsWhileSampled(FaultAccounting())
    with traced(toucher(), trace) as it:
        trace.child, trace.grow = it.child, "shared 3001"
        it.sample()
        result = it.result()
    assert result.pages("touch_shared") == (3001, 3001)


def test_the_target_outlives_a_killed_tracer_and_its_code_is_untouched() -> None:
    with running(toucher()) as child:
        before = _code(child.pid)
        with tracer("trace-faults", child, "--duration", "60s", "--json") as popen:
            child.tell("own 500")
            child.wait_for("done")
            assert _code(child.pid) == before
            popen.kill()
            popen.wait()
        child.tell("own 500")
        child.wait_for("done")
        assert child.alive
        assert _code(child.pid) == before


def _code(pid: int) -> dict[str, bytes]:
    """The executable memory of the program and of libc."""
    code = {}
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb") as memory:
        for line in maps:
            place, rights, *_, path = line.split()
            if "x" in rights and path.startswith("/"):
                start, end = (int(edge, 16) for edge in place.split("-"))
                memory.seek(start)
                code[place] = memory.read(end - start)
    assert len(code) >= 2
    return code


def test_the_command_prints_json_and_keeps_a_case(tmp_path: Path) -> None:
    kept = tmp_path / "faults.case"
    with (
        running(toucher()) as child,
        tracer("trace-faults", child, "--duration", "3s", "--json", "--record", str(kept)) as popen,
    ):
        time.sleep(1)  # learning is over by then: the target is quiet
        child.tell("own 997")
        child.wait_for("done")
        out, _ = popen.communicate(timeout=30)
        assert popen.returncode == 0
    told = json.loads(out)
    assert set(told) >= {"meaning", "sites", "coverage", "losses", "overhead"}
    assert "a hint, not proof of a leak" in told["meaning"]
    site = next(s for s in told["sites"] if "touch_own" in [f["function"] for f in s["stack"]])
    assert (site["kind"], site["outstanding_bytes"], site["count"]) == ("fault", 997 * PAGE, 997)
    assert told["overhead"]["fault-trace"]["bpf_runs"] > 0
    assert [(one["dropped_events"], one["unknown_bytes"]) for one in told["traces"]] == [(0, None)]
    with CaseFile.open(kept) as case:
        sites = case.load().sites
    assert [s.outstanding_bytes for s in sites if "touch_own" in functions(s)] == [997 * PAGE]


def test_the_screen_has_its_meaning() -> None:
    with running(toucher()) as child, tracer("trace-faults", child, "--duration", "2s") as popen:
        time.sleep(1)
        child.tell("own 997")
        child.wait_for("done")
        out, _ = popen.communicate(timeout=30)
        assert popen.returncode == 0
    text = " ".join(out.decode().split())
    assert "a hint, not proof of a leak" in text
    assert "touch_own (fault_touch" in text
    assert "3.9 MiB" in text


def test_the_live_screen(tmp_path: Path) -> None:
    def touch(command: str) -> None:
        child.tell(command)
        child.wait_for("done")

    with running(toucher()) as child, terminal(tmp_path, "trace-faults", child.pid, "--duration", "60s") as screen:
        screen.wait_for(r"tracing \d.*q ends")
        touch("own 997")
        screen.wait_for(r"▸ +3\.9 MiB .* 997 .*touch_own")
        screen.press("e")
        screen.wait_for(r"site 1.*touch_own.* main ")
        screen.press("e", "p")
        screen.wait_for("p resumes")
        touch("shared 2003")
        touch("own 3")
        assert "3.9 MiB" in screen.wait_for(r"▸.*?\n")[0]
        screen.press("p")
        screen.wait_for(r"▸ +7\.8 MiB .* 2,?003 .*touch_shared.* 1,?000 .*touch_own")
        screen.press("q")
        screen.wait_for(r"a hint, not proof of a leak.*exit code 0")
        assert "q ends" not in screen.screen()


def test_it_lists_targets_without_a_pid() -> None:
    command = [sys.executable, "-m", "memforensics", "trace-faults"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "PID" in ended.stderr
