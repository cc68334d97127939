"""What tracing costs the traced: throughput with and without, in interleaved pairs, against the floor (empty BPF
programs on the same events) and peers.

    make bench-tracer        or: .venv/bin/python benchmarks/tracer.py [--pairs 7] [--seconds 1] [--only TOOL,...]

For each tool and workload: off, on, off, on, ...; a pair's figure is on / the mean of the two offs around it. The table
has the median of the pairs, and their range. Needs root; tools that are not installed are left out, and named.
"""

import argparse
import contextlib
import os
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from memforensics.errors import MemforensicsError
from memforensics.probes.base import Budget
from memforensics.probes.ebpf.engine import Engine
from memforensics.probes.ebpf.programs import TRACEPOINTS
from memforensics.probes.mmap_trace import MmapTrace
from memforensics.target import open_process

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parent / "examples" / "ucx_rcache_leak" / "run.py"

Tool = Callable[[int], AbstractContextManager[object]]


class Workload:
    """A running process that prints `served N ... [at T] [cpu S]`; figures between two of its lines."""

    def __init__(self, name: str, command: Sequence[str | Path]) -> None:
        self.name = name
        self.popen = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, start_new_session=True)
        self.pid = self.popen.pid
        self._rest = b""
        self.line()

    def line(self) -> tuple[float, float, float | None]:
        """The next line that it prints from now on: (time, served, CPU seconds where it says so)."""
        stream = self.popen.stdout
        assert stream is not None
        while True:
            while b"\n" not in self._rest:
                piece = os.read(stream.fileno(), 65536)
                if not piece:
                    raise SystemExit(f"the workload {self.name} ended")
                self._rest += piece
            line, _, self._rest = self._rest.partition(b"\n")
            words = line.decode().split()
            if words[:1] == ["served"]:
                named = dict(zip(words[::2], words[1::2], strict=False))
                cpu = float(named["cpu"]) if "cpu" in named else None
                return float(named.get("at", time.monotonic())), float(named["served"]), cpu

    def measure(self, seconds: float) -> float:
        """Served a second of wall time; of CPU time where the workload is paced."""
        assert self.popen.stdout is not None
        while select.select([self.popen.stdout], [], [], 0)[0]:
            os.read(self.popen.stdout.fileno(), 65536)
        self._rest = b""
        self.line()  # perhaps a part of one
        first = self.line()
        while True:
            last = self.line()
            if last[0] - first[0] >= seconds:
                break
        if first[2] is not None and last[2] is not None:
            return (last[1] - first[1]) / (last[2] - first[2])
        return (last[1] - first[1]) / (last[0] - first[0])

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait()
        assert self.popen.stdout is not None
        self.popen.stdout.close()


# --- tools


@contextlib.contextmanager
def memforensics(pid: int) -> Iterator[None]:
    """The tracer as `diagnose` runs it, polled ten times a second from a thread of this process."""
    trace, stop = MmapTrace(), threading.Event()
    process = open_process(pid)
    trace.open(process, Budget(seconds=60))
    failed: list[MemforensicsError] = []

    def poll() -> None:
        try:
            while not stop.wait(0.1):
                list(trace.poll())
        except MemforensicsError as error:
            failed.append(error)

    thread = threading.Thread(target=poll)
    thread.start()
    time.sleep(2.5)  # the first seconds are measured all the time
    try:
        yield
    finally:
        stop.set()
        thread.join()
        list(trace.close())
        process.close()
        if failed:
            raise failed[0]


@contextlib.contextmanager
def floor(_pid: int) -> Iterator[None]:
    engine = Engine(str(HERE / "tracer_floor.bpf.c"), {})
    engine.attach(dict.fromkeys(TRACEPOINTS, "on_event"))
    engine.stop_stats()
    try:
        yield
    finally:
        engine.close()


def command(*words: str, settle: float = 1.5) -> Tool:
    @contextlib.contextmanager
    def run(pid: int) -> Iterator[None]:
        with tempfile.TemporaryDirectory() as folder:
            filled = [word.format(pid=pid, folder=folder) for word in words]
            popen = subprocess.Popen(
                filled, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            try:
                time.sleep(settle)
                if popen.poll() is not None:
                    raise RuntimeError(f"{filled[0]} ended with {popen.returncode}")
                yield
            finally:
                popen.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    popen.wait(5)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(popen.pid, signal.SIGKILL)
                popen.wait()

    return run


BPFTRACE = "tracepoint:syscalls:sys_exit_mmap /pid == {pid}/ {{ @[ustack] = count(); }} "
BPFTRACE += "tracepoint:syscalls:sys_enter_munmap /pid == {pid}/ {{ @freed = count(); }}"
PERF = ("perf", "record", "-q", "-e", "syscalls:sys_exit_mmap,syscalls:sys_enter_munmap", "-p", "{pid}")

TOOLS: dict[str, tuple[Tool, str | None, str]] = {
    "floor": (floor, None, "none (empty BPF programs)"),
    "memforensics": (memforensics, None, "whole, native and Python"),
    "bpftrace ustack": (command("bpftrace", "-e", BPFTRACE, settle=2.0), "bpftrace", "by frame pointers"),
    "perf record -g": (command(*PERF, "-g", "-o", "{folder}/perf.data"), "perf", "by frame pointers"),
    "strace": (command("strace", "-f", "-e", "trace=mmap,munmap", "-o", "/dev/null", "-p", "{pid}"), "strace", "none"),
}


# --- workloads


def churn() -> Workload:
    binary = Path(tempfile.gettempdir()) / f"memforensics-bench-{os.getuid()}" / "churn"
    binary.parent.mkdir(exist_ok=True, mode=0o700)
    subprocess.run(
        ["gcc", "-O1", "-g", "-fno-omit-frame-pointer", "-o", binary, HERE / "tracer_workload.c"], check=True
    )
    return Workload("churn", [binary])


def ucx() -> Workload:
    options = ["--rate", "max", "--threads", "1", "--report-every", "0.25", "--max-rss", "12G"]
    return Workload("ucx", [sys.executable, "-u", EXAMPLE, "--ucx-version", "1.19.0", *options])


def serve() -> Workload:
    return Workload("serve", [sys.executable, "-u", HERE / "tracer_service.py"])


WORKLOADS: dict[str, tuple[Callable[[], Workload], str]] = {
    "churn": (churn, "C, mmap+munmap of 16 KiB at full speed"),
    "ucx": (ucx, "the UCX example at full speed"),
    "serve": (serve, "500 requests/s of 2 MiB with numpy: requests per CPU second"),
}


def ratios(workload: Workload, tool: Tool, pairs: int, seconds: float) -> list[float]:
    out = []
    before = workload.measure(seconds)
    for _ in range(pairs):
        with ExitStack() as stack:
            stack.enter_context(tool(workload.pid))
            during = workload.measure(seconds)
        after = workload.measure(seconds)
        out.append(during / ((before + after) / 2))
        before = after
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one measurement")
    parser.add_argument("--only", default=",".join(TOOLS), help="tools, with commas between")
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    options = parser.parse_args()
    names = [name for name in TOOLS if name in options.only.split(",")]
    kinds = [name for name in WORKLOADS if name in options.workloads.split(",")]
    print(f"{' '.join(sys.argv)}; {time.strftime('%Y-%m-%d')}, Linux {os.uname().release}, {os.cpu_count()} CPUs")
    table: dict[tuple[str, str], list[float]] = {}
    for kind in kinds:
        make, _ = WORKLOADS[kind]
        workload = make()
        try:
            time.sleep(1)
            for name in names:
                tool, needs, _ = TOOLS[name]
                if needs is not None and shutil.which(needs) is None:
                    print(f"{name}: not installed", file=sys.stderr)
                    continue
                table[kind, name] = ratios(workload, tool, options.pairs, options.seconds)
                print(kind, name, " ".join(f"{ratio:.3f}" for ratio in table[kind, name]), file=sys.stderr, flush=True)
        finally:
            workload.close()
    print(f"\n| tool | {' | '.join(kinds)} | stacks |\n|---|{'---|' * len(kinds)}---|")
    for name in names:
        cells = [table.get((kind, name)) for kind in kinds]
        row = [f"{statistics.median(c):.2f} ({min(c):.2f}-{max(c):.2f})" if c else "-" for c in cells]
        print(f"| {name} | {' | '.join(row)} | {TOOLS[name][2]} |")
    print("\nThroughput with over without: median of", options.pairs, "pairs, and their range.")
    for kind in kinds:
        print(f"- {kind}: {WORKLOADS[kind][1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
