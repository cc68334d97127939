"""Traces of a child process, in this process and by commands."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from processes import LEAKERS, Child, interpreters, running

from memforensics.case.model import AllocationSite, Cost, Loss, TraceSummary
from memforensics.probes.base import Budget
from memforensics.probes.ebpf.faults.probe import FaultTrace
from memforensics.probes.ebpf.mmap.probe import MmapTrace
from memforensics.target import open_process

PAGE = 4096


def functions(site: AllocationSite) -> list[str | None]:
    return [frame.function for frame in site.stack.frames]


@dataclass
class Result:
    sites: list[AllocationSite]
    summaries: dict[int, TraceSummary]
    losses: list[Loss]
    cost: Cost

    def through(self, *names: str) -> list[AllocationSite]:
        """The sites of memory (not of files) with these functions on their stacks."""
        return [s for s in self.sites if set(names) <= set(functions(s)) and not s.file_backed]

    def only(self, *names: str) -> AllocationSite:
        found = self.through(*names)
        assert len(found) == 1, [functions(site) for site in self.sites]
        return found[0]

    def accounts_for_growth(self, pid: int, within: float) -> None:
        """Nothing was lost, and outstanding memory equals the growth of the process."""
        assert not self.losses
        coverage = self.summaries[pid].coverage
        assert coverage is not None
        assert abs(coverage - 1) <= within
        assert self.cost.bpf_runs

    def pages(self, function: str) -> tuple[int, int]:
        """Outstanding pages, and all pages ever allocated."""
        sites = self.through(function)
        return sum(s.outstanding_bytes for s in sites) // PAGE, sum(s.allocated_bytes for s in sites) // PAGE


@dataclass
class Traced:
    """A tracer on a child. `result` closes it."""

    child: Child
    trace: MmapTrace | FaultTrace

    def do(self, command: str) -> str:
        """Sends a command and returns the last line before "done"."""
        self.child.tell(command)
        said = ""
        while (line := self.child.read_line()) != "done":
            said = line
        self.poll()
        return said

    def poll(self) -> None:
        list(self.trace.poll())

    def handle_all(self) -> None:
        """Handles the events until now. Names of many stacks take longer than one poll does on a busy machine."""
        while not self.trace.handle_events():
            pass

    def sample(self) -> list[AllocationSite]:
        """The sites that changed, from a sample taken now."""
        self.trace._next_sample_ns = 0
        return [e for e in self.trace.poll() if isinstance(e, AllocationSite)]

    def result(self) -> Result:
        evidence = list(self.trace.close())
        return Result(
            [e for e in evidence if isinstance(e, AllocationSite)],
            {e.pid: e for e in evidence if isinstance(e, TraceSummary)},
            [e for e in evidence if isinstance(e, Loss)],
            next(e for e in evidence if isinstance(e, Cost)),
        )


@contextlib.contextmanager
def traced(command: list[str | Path], trace: MmapTrace | FaultTrace, overhead: float | None = None) -> Iterator[Traced]:
    with running(command) as child:
        process = open_process(child.pid)
        trace.open(process, Budget(seconds=4, overhead=overhead))
        try:
            yield Traced(child, trace)
        finally:
            trace.close()
            process.close()


def pythons(versions: Iterable[str]) -> list[str]:
    """The running Python, and one of each of these versions that is installed."""
    return sorted(path for version, path in interpreters().items() if version in versions or path == sys.executable)


def line_of(source: str, mark: str) -> int:
    """The line of tests/leakers/`source` that is marked "LINE mark"."""
    text = (LEAKERS / source).read_text().splitlines()
    return next(n for n, line in enumerate(text, 1) if line.rstrip(" */").endswith(f"LINE {mark}"))


def execs(before: str, after: str) -> list[str | Path]:
    """A Python program that prints "ready", runs `before` on request and executes another one, which prints "again" and
    runs `after`. Each prints "done"."""
    second = f'print("again", flush=True)\ninput()\n{after}\nprint("done", flush=True)\ninput()\n'
    first = f'print("ready", flush=True)\ninput()\n{before}\nprint("done", flush=True)\ninput()\n'
    first += f'import os, sys\nos.execv(sys.executable, [sys.executable, "-c", {second!r}])\n'
    return [sys.executable, "-c", first]


@contextlib.contextmanager
def tracer(command: str, child: Child, *options: str) -> Iterator["subprocess.Popen[bytes]"]:
    """memforensics trace-mmap or trace-faults on the child, after its programs are attached."""
    words = [sys.executable, "-m", "memforensics", command, str(child.pid), *options]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as popen:
        try:
            _wait_for_programs(popen.pid)
            yield popen
        finally:
            popen.kill()


def _wait_for_programs(pid: int) -> None:
    """Waits until the process has attached eBPF programs (perf events)."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        links = []
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                links.append(os.readlink(descriptor))
        if sum("perf_event" in link for link in links) >= 7:
            return
        time.sleep(0.05)
    raise AssertionError("the tracer did not attach its programs")
