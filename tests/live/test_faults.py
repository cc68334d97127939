"""The trace of page faults on programs with exactly known answers."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import LEAKERS, Child, compiled, python, running

from memforensics.case.model import AllocationSite, Cost, Loss, TraceSummary
from memforensics.case.store import CaseFile
from memforensics.probes.base import Budget
from memforensics.probes.faults import FaultTrace
from memforensics.target import open_process

pytestmark = [pytest.mark.live, pytest.mark.needs_bpf]

PAGE = 4096
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@dataclass
class Traced:
    """A tracer on a child. `result` closes it."""

    child: Child
    trace: FaultTrace

    def do(self, command: str) -> str:
        """The last line before "done"."""
        self.child.tell(command)
        said = ""
        while (line := self.child.read_line()) != "done":
            said = line
        list(self.trace.poll())
        return said

    def result(self) -> "Result":
        evidence = list(self.trace.close())
        return Result(
            [e for e in evidence if isinstance(e, AllocationSite)],
            {e.pid: e for e in evidence if isinstance(e, TraceSummary)},
            [e for e in evidence if isinstance(e, Loss)],
            next(e for e in evidence if isinstance(e, Cost)),
        )


@dataclass
class Result:
    sites: list[AllocationSite]
    summaries: dict[int, TraceSummary]
    losses: list[Loss]
    cost: Cost

    def through(self, function: str) -> list[AllocationSite]:
        """The sites of memory (not of files) with that function on their stacks."""
        return [s for s in self.sites if function in functions(s) and not s.file_backed]

    def pages(self, function: str) -> tuple[int, int]:
        """Pages still resident, pages touched."""
        sites = self.through(function)
        return sum(s.outstanding_bytes for s in sites) // PAGE, sum(s.allocated_bytes for s in sites) // PAGE


def functions(site: AllocationSite) -> list[str | None]:
    return [frame.function for frame in site.stack.frames]


@contextlib.contextmanager
def traced(command: list[str | Path]) -> Iterator[Traced]:
    with running(command) as child:
        process = open_process(child.pid)
        trace = FaultTrace()
        trace.open(process, Budget(seconds=4))
        try:
            yield Traced(child, trace)
        finally:
            trace.close()
            process.close()


def toucher() -> list[str | Path]:
    return [compiled("fault_touch.c", "-fomit-frame-pointer")]


def line_of(source: str, mark: str) -> int:
    text = (LEAKERS / source).read_text().splitlines()
    return next(n for n, line in enumerate(text, 1) if line.rstrip(" */").endswith(f"LINE {mark}"))


def test_pages_by_who_touched_them_last() -> None:
    with traced(toucher()) as it:
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
    assert not result.losses
    summary = result.summaries[it.child.pid]
    assert summary.coverage is not None
    assert 0.99 <= summary.coverage <= 1.01
    assert result.cost.bpf_runs


def test_reading_untouched_memory_makes_nothing_resident() -> None:
    with traced(toucher()) as it:
        it.do("zero 211")
        it.do("cow 29")
        result = it.result()
    assert result.through("read_only") == []
    assert result.pages("touch_read") == (29, 29)


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(), reason="needs transparent huge pages"
)
def test_huge_pages_weigh_what_they_are() -> None:
    with traced(toucher()) as it:
        it.do("huge 3")
        result = it.result()
    assert result.pages("touch_huge") == (3 * 512, 3 * 512)
    assert sum(s.allocated_count for s in result.through("touch_huge")) == 3


def test_an_innocent_temporary_takes_the_faults_of_a_leak() -> None:
    """16 pages leak in each of 61 rounds, and the leaker touches none of them first."""
    with traced(toucher()) as it:
        it.do("innocent 61")
        result = it.result()
    assert result.pages("leak")[0] == 0
    resident, _ = result.pages("temporary")
    assert 60 * 16 <= resident <= 62 * 16


def test_system_calls_that_populate() -> None:
    with traced(toucher()) as it:
        it.do("populate 71")
        result = it.result()
    for function in ("by_mmap", "by_madvise", "by_mlock"):
        assert result.pages(function) == (71, 71), function
    assert not result.losses


def test_threads_that_touch_at_the_same_time() -> None:
    with traced(toucher()) as it:
        it.do("threads 3001")
        result = it.result()
    assert result.pages("touch_own") == (4 * 3001, 4 * 3001)


def test_the_stack_itself() -> None:
    """What lies between the stack pointer and the frames above was never touched: it cannot be read, nor need it be."""
    with traced(toucher()) as it:
        it.do("stack 3")
        result = it.result()
    sites = result.through("touch_stack")
    assert 1 <= sum(s.outstanding_bytes for s in sites) // PAGE <= 4
    assert all(functions(s)[1] == "main" and s.stack.complete for s in sites)


def test_files_apart() -> None:
    with traced(toucher()) as it:
        pages = int(it.do("file 0").split()[1])
        result = it.result()
    files = [s for s in result.sites if s.file_backed and functions(s)[0] == "read_file"]  # not libc's own, below it
    assert sum(s.outstanding_bytes for s in files) == pages * PAGE
    assert result.through("read_file") == []
    assert result.summaries[it.child.pid].resident_bytes == sum(
        s.outstanding_bytes for s in result.sites if not s.file_backed
    )


def _pythons() -> list[str]:
    """The running Python, and one of each other version that is installed."""
    found = {f"{sys.version_info.major}.{sys.version_info.minor}": sys.executable}
    for path in sorted(Path.home().glob(".pyenv/versions/3.*/bin/python")):
        version = ".".join(path.parts[-3].split(".")[:2])
        if version in ("3.9", "3.12", "3.13"):
            found.setdefault(version, str(path))
    return sorted(found.values())


@pytest.mark.parametrize("interpreter", _pythons(), ids=lambda path: Path(path).parts[-3])
def test_python_functions_and_lines(interpreter: str) -> None:
    with traced(python("fault_python.py", interpreter=interpreter)) as it:
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


def test_a_forked_child_has_an_account_of_its_own() -> None:
    with traced([compiled("trace_leaker.c", "-fomit-frame-pointer")]) as it:
        it.do("leak 13 12288")
        it.child.tell("fork 17 8192")
        child = int(it.child.wait_for("child").split()[1])
        it.child.wait_for("done")
        list(it.trace.poll())
        result = it.result()
    touched = {
        pid: sum(s.outstanding_bytes for s in result.through("leak_many") if s.pid == pid) for pid in result.summaries
    }
    assert touched == {it.child.pid: 13 * 12288, child: 17 * 8192}


AFTER_EXEC = """
import mmap
print("again", flush=True)
input()
def keep_after(pages):
    global kept
    kept = mmap.mmap(-1, pages * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for offset in range(0, len(kept), 4096):
        kept[offset] = 1
keep_after(43)
print("done", flush=True)
input()
"""
BEFORE_EXEC = f"""
import mmap, os, sys
print("ready", flush=True)
input()
def keep_before(pages):
    global kept
    kept = mmap.mmap(-1, pages * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for offset in range(0, len(kept), 4096):
        kept[offset] = 1
keep_before(59)
print("done", flush=True)
input()
os.execv(sys.executable, [sys.executable, "-c", {AFTER_EXEC!r}])
"""


def test_exec_ends_one_account_and_begins_another() -> None:
    with traced([sys.executable, "-c", BEFORE_EXEC]) as it:
        it.do("")
        it.child.tell("")
        it.child.wait_for("again")
        list(it.trace.poll())
        it.do("")
        result = it.result()
    assert result.pages("keep_before") == (0, 59)
    assert result.pages("keep_after") == (43, 43)
    assert len({(s.pid, s.site_id) for s in result.sites}) == len(result.sites)


def test_what_was_collected_outlives_the_target() -> None:
    with traced(toucher()) as it:
        it.do("own 997")
        it.trace._next_look_ns = 0
        list(it.trace.poll())
        it.child.popen.kill()
        it.child.popen.wait()
        result = it.result()
    assert result.pages("touch_own") == (997, 997)


@contextlib.contextmanager
def tracer(child: Child, *options: str) -> Iterator["subprocess.Popen[bytes]"]:
    """The command, armed."""
    command = [sys.executable, "-m", "memforensics", "trace-faults", str(child.pid), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as popen:
        try:
            _wait_for_programs(popen.pid)
            yield popen
        finally:
            popen.kill()


def _wait_for_programs(pid: int) -> None:
    """Until a process holds eBPF programs that are attached (perf events), and reads the target's maps no more."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        links = []
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                links.append(os.readlink(descriptor))
        if sum("perf_event" in link for link in links) >= 7:
            return
        time.sleep(0.05)
    raise AssertionError("the tracer did not arm")


def test_the_target_outlives_a_killed_tracer_and_its_code_is_untouched() -> None:
    with running(toucher()) as child:
        before = _code(child.pid)
        with tracer(child, "--duration", "60s", "--json") as popen:
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
    with running(toucher()) as child, tracer(child, "--duration", "3s", "--json", "--record", str(kept)) as popen:
        time.sleep(1)  # learning is over by then: the target is quiet
        child.tell("own 997")
        child.wait_for("done")
        out, _ = popen.communicate(timeout=30)
        assert popen.returncode == 0
    told = json.loads(out)
    assert set(told) >= {"meaning", "sites", "coverage", "losses", "overhead"}
    assert "not of who leaks" in told["meaning"]
    site = next(s for s in told["sites"] if "touch_own" in [f["function"] for f in s["stack"]])
    assert (site["kind"], site["outstanding_bytes"], site["count"]) == ("fault", 997 * PAGE, 997)
    assert told["overhead"]["fault-trace"]["bpf_runs"] > 0
    with CaseFile.open(kept) as case:
        sites = case.load().sites
    assert [s.outstanding_bytes for s in sites if "touch_own" in functions(s)] == [997 * PAGE]


def test_the_screen_says_what_it_means() -> None:
    with running(toucher()) as child, tracer(child, "--duration", "2s") as popen:
        time.sleep(1)
        child.tell("own 997")
        child.wait_for("done")
        out, _ = popen.communicate(timeout=30)
        assert popen.returncode == 0
    text = " ".join(out.decode().split())
    assert "who touches new memory, not of who leaks" in text
    assert "touch_own (fault_touch.c" in text
    assert "3.9 MiB" in text


def test_it_lists_targets_without_a_pid() -> None:
    command = [sys.executable, "-m", "memforensics", "trace-faults"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "PID" in ended.stderr
