"""What tracing costs the traced, other processes and itself; against the floor (empty BPF programs) and other tools.

    make bench-tracer                                        everything (hours);   make bench-tracer PLAN=quick: minutes
    .venv/bin/python benchmarks/tracer.py --json FILE --part mappings --workload serve,torch \\
        --tool floor,memforensics --pairs 20
    .venv/bin/python benchmarks/tracer.py --json FILE --render
    MEMFORENSICS_BEFORE=PROGRAM ... --tool "memforensics;memforensics before"     this version against another one

Parts: mappings (trace-mmap and its peers), faults (trace-faults and its), others (what processes pay that nobody
traces), first (the time to the first result). With --json each part is kept as it is done, and what is measured again
takes the place of the old; --render prints the tables of the file alone. Needs root. Tools that are missing are
installed (Debian packages); one that cannot run stands in the table with the reason. A quiet machine is wanted.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tracer_tools as tools
from tracer_measure import First, bystanders, first_result, measured, say
from tracer_report import report
from tracer_tools import Tool
from tracer_workloads import KINDS

MAPPINGS = ("churn", "ucx", "serve", "torch", "torch-trim")
FAULTS = ("faults", "ucx", "serve", "torch", "torch-trim")
BYSTANDERS = ("getppid", "churn", "faults")
QUIET_LOAD = 0.5
PARTS = ("mappings", "faults", "others", "first")


@dataclass(frozen=True, slots=True)
class Plan:
    """Pairs of our own rows and the floor, of other tools, and of those that slow a target down a lot; of bystanders;
    tries for the first result. Seconds of one measurement."""

    own: int
    other: int
    dear: int
    bystander: int
    first: int
    seconds: float


PLANS = {"full": Plan(20, 7, 5, 10, 7, 2.0), "quick": Plan(3, 2, 1, 2, 2, 1.0)}


def pairs_of(tool: Tool, plan: Plan, asked: int | None) -> int:
    return asked or (plan.own if tool.own else plan.dear if tool.dear else plan.other)


class Results:
    """What was measured, kept after each workload."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.data: dict[str, Any] = {}
        if path is not None and path.exists():
            self.data = json.loads(path.read_text())
        for part in ("cells", "others", "first"):
            self.data.setdefault(part, {})

    def keep(self, part: str, key: str, value: dict[str, Any]) -> None:
        self.data[part][key] = value

    def save(self) -> None:
        self.data |= about()
        if self.path is not None:
            fresh = self.path.with_suffix(".new")
            fresh.write_text(json.dumps(self.data, indent=1))
            fresh.replace(self.path)


def about() -> dict[str, Any]:
    model = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    uname = os.uname()
    versions = {}
    for name, words in {
        "bpftrace": ["bpftrace", "--version"],
        "perf": ["perf", "--version"],
        "strace": ["strace", "--version"],
        "gdb": ["gdb", "--version"],
        "heaptrack": ["heaptrack", "--version"],
        "memforensics": [str(tools.MEMFORENSICS), "--version"],
    }.items():
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            said = subprocess.run(
                words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
            ).stdout
            found = re.search(r"\d+(\.\d+)+", said.splitlines()[0] if said else "")
            if found:
                versions[name] = found[0]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "kernel": uname.release.split("-")[0],
        "machine": uname.machine,
        "cpus": len(os.sched_getaffinity(0)),
        "cpu": model[1] if model else "?",
        "versions": versions,
    }


def strangers() -> list[str]:
    """Other processes that hold BPF programs. Besides their cost: a program that returns 0 at a tracepoint, as they all
    do, takes the event from every perf on the host (kernel/trace/trace_syscalls.c, perf_syscall_enter)."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if "bpf-prog" in os.readlink(link):
                found.add(f"{link.parts[2]} ({Path('/proc', link.parts[2], 'comm').read_text().strip()})")
    return sorted(found)


def firsts() -> list[First]:
    ours = str(tools.MEMFORENSICS)
    maps = "tracepoint:syscalls:sys_exit_mmap /pid == {pid}/ {{ @[ustack] = count(); }} interval:ms:100 {{ print(@); }}"
    perf = "perf record -q -N -e syscalls:sys_exit_mmap --call-graph dwarf -o {folder}/p -p {pid} -- sleep 1; "
    perf += "perf script -i {folder}/p"
    site = r"grow\b.*tracer_torch\.py|tracer_torch\.py.*\bgrow\b"
    in_the_end, call = "the sites with their Python lines, at the end", "a call without a stack"
    return [
        First("memforensics trace-mmap", (ours, "trace-mmap", "{pid}"), site, "a site with its Python line"),
        First(
            "memforensics trace-faults --duration 1s",
            (ours, "trace-faults", "{pid}", "--duration", "1s"),
            r"tracer_torch\.py",
            in_the_end,
        ),
        First("bpftrace ustack, printed ten times a second", ("bpftrace", "-e", maps), r"^@\[", "a stack"),
        First("perf record --call-graph dwarf for 1 s, perf script", ("sh", "-c", perf), "mmap", "a stack"),
        First("memleak 1", tools.MEMLEAK, "allocations from stack", "a stack", tools.bcc_headers),
        First("perf trace", ("perf", "trace", "-e", "mmap,munmap", "-p", "{pid}"), r"mmap\(", call),
        First("strace", (*tools.STRACE, "-p", "{pid}"), r"mmap\(", call),
        First("gdb, catch syscall + bt", tools.GDB, "#1 ", "a stack", ending=signal.SIGTERM),
    ]


def chosen(names: str | None, known: tuple[str, ...]) -> list[str]:
    if names is None:
        return list(known)
    wanted = [name.strip() for name in names.split(",")]
    return [name for name in known if name in wanted]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", choices=PLANS, default="full", help="how many pairs (default %(default)s)")
    parser.add_argument("--part", metavar="NAME,...", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument(
        "--workload", metavar="NAME,...", help=f"of {', '.join(dict.fromkeys(MAPPINGS + FAULTS + BYSTANDERS))}"
    )
    names = "; ".join(dict.fromkeys(name for _, name in tools.TOOLS)).replace("%", "%%")
    parser.add_argument("--tool", metavar="NAME;...", help=f"with semicolons (or commas) between, of: {names}")
    parser.add_argument("--pairs", type=int, help="of every tool, in the place of the plan's")
    parser.add_argument("--seconds", type=float, help="of one measurement, in the place of the plan's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures there; what is there stays")
    parser.add_argument("--render", action="store_true", help="only print the tables of --json FILE")
    return parser.parse_args(arguments)


def wanted_tools(names: str | None, family: str) -> list[Tool]:
    every = [tool for (of, _), tool in tools.TOOLS.items() if of == family]
    if names is None:
        return every
    # a name may hold a comma itself
    return [t for t in every if t.name in names.split(";") or t.name in names.split(",")]


def measure(options: argparse.Namespace, results: Results) -> None:
    plan = PLANS[options.plan]
    seconds = options.seconds or plan.seconds
    parts = chosen(options.part, PARTS)
    for family, workloads in (("mappings", MAPPINGS), ("faults", FAULTS)):
        if family not in parts:
            continue
        some = wanted_tools(options.tool, family)
        tools.install(some)
        for name in chosen(options.workload, workloads):
            if not some:
                continue
            counted = [(tool, pairs_of(tool, plan, options.pairs)) for tool in some]
            for cell in measured(KINDS[name], counted, seconds).values():
                results.keep("cells", f"{family}/{name}/{cell.tool}", cell.json())
            results.save()
    if "others" in parts:
        some = [
            tool
            for family in ("mappings", "faults")
            for tool in wanted_tools(options.tool, family)
            if tool.attach is not None and "gdb" not in tool.name and "memleak" not in tool.name
        ]
        if options.tool is None or tools.RAW_SYSCALLS.name in options.tool:
            some.append(tools.RAW_SYSCALLS)
        tools.install(some)
        kinds = [KINDS[name] for name in chosen(options.workload, BYSTANDERS)]
        for row in bystanders(KINDS["idle"], kinds, some, options.pairs or plan.bystander, seconds):
            results.keep("others", f"{row['family']}/{row['workload']}/{row['tool']}", row)
            results.save()
    if "first" in parts:
        for first in firsts():
            if options.tool is None or first.tool in options.tool.split(";"):
                found = first_result(KINDS["growing"], first, options.pairs or plan.first)
                say(f"first result: {first.tool}: {found}")
                results.keep("first", first.tool, {"tool": first.tool, "seconds": found, "what": first.what})
                results.save()


@contextlib.contextmanager
def own_folder() -> Iterator[None]:
    """All that tools write goes to one folder, which goes at the end; those of runs that were killed go first."""
    common = Path(tempfile.gettempdir())
    for left in common.glob("tracer-bench-[0-9]*-*"):
        if left.stat().st_uid == os.getuid() and not Path("/proc", left.name.split("-")[2]).exists():
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"tracer-bench-{os.getpid()}-") as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = None


def main() -> int:
    options = parse()
    results = Results(options.json)
    if not options.render:
        if os.geteuid() != 0:
            sys.exit("benchmarks/tracer.py needs root: it loads eBPF programs")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # what was started is ended on the way
        began = time.monotonic()
        if others := strangers():
            say(f"WARNING: BPF programs of others are loaded, perf may see nothing: {', '.join(others)}")
        if (load := os.getloadavg()[0]) > QUIET_LOAD:
            say(f"WARNING: the machine is not quiet (load {load:.1f})")
        results.data["load"] = load
        with own_folder():
            measure(options, results)
        say(f"took {(time.monotonic() - began) / 60:.0f} minutes")
    print(report(results.data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
