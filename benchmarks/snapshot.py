"""What reading a process costs us and the process: `make bench-snapshot`.

Readers, interleaved, on a process with 60,000 mappings, one with a single large region, and a Python process with torch
and a model: CPU and wall time of each reading, and the target's own mmap (each 50 us in a thread of its own) while it
is read. Medians over the rounds, and their range; of the longest mmap of each reading the median and the greatest.
Prints Markdown. Needs root or the same user; tools that are not installed are left out, and named.
"""

import argparse
import contextlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from memforensics.probes.repeated import Earlier
from memforensics.probes.snapshots import take_snapshot
from memforensics.target import Process, open_process

HERE = Path(__file__).resolve().parent
TORCH = "torch==2.13.0+cpu"  # the build without CUDA: a tenth of the size
IDLE_S = 0.1

Read = Callable[[], object]


class Target:
    """A running process that measures its own mmap."""

    def __init__(self, command: Sequence[str | Path]) -> None:
        self.popen = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.pid = self.popen.pid
        self._line("ready")

    def _line(self, word: str) -> list[str]:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        if not line.startswith(word):
            raise SystemExit(f"the target said {line!r}")
        return line.split()

    def ask(self, command: str, answer: str) -> list[str]:
        assert self.popen.stdin is not None
        self.popen.stdin.write(command + "\n")
        self.popen.stdin.flush()
        return self._line(answer)

    def close(self) -> None:
        self.popen.kill()
        self.popen.wait()
        for stream in (self.popen.stdin, self.popen.stdout):
            if stream is not None:
                stream.close()


# --- readers


def tool(*words: str) -> Callable[[Process], Read]:
    def prepared(process: Process) -> Read:
        command = [word.format(pid=process.pid) for word in words]
        return lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True)

    return prepared


def repeated(process: Process) -> Read:
    """A second reading of a process of which little changed."""
    earlier = Earlier()
    return lambda: take_snapshot(process, "pagemap", marks=False, earlier=earlier)


READERS: dict[str, Callable[[Process], Read]] = {
    "nothing": lambda process: lambda: time.sleep(IDLE_S),
    "cat smaps": tool("cat", "/proc/{pid}/smaps"),
    "pmap -X": tool("pmap", "-X", "{pid}"),
    "psutil memory_maps": lambda process: lambda: psutil.Process(process.pid).memory_maps(grouped=False),
    "cat smaps_rollup": tool("cat", "/proc/{pid}/smaps_rollup"),
    "memforensics": lambda process: lambda: take_snapshot(process, "pagemap", marks=False),
    "memforensics, again": repeated,
    "memforensics, smaps": lambda process: lambda: take_snapshot(process, "smaps", marks=False),
    "memforensics, with owners": lambda process: lambda: take_snapshot(process, "pagemap"),
}


# --- targets


@contextlib.contextmanager
def built(*flags: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="memforensics-bench-") as folder:
        program = Path(folder) / "snapshot_target"
        subprocess.run(["gcc", "-O1", *flags, "-o", program, HERE / "snapshot_target.c", "-lpthread"], check=True)
        yield program


@contextlib.contextmanager
def native(count: int, size: int) -> Iterator[Target]:
    with built() as program, contextlib.closing(Target([program, str(count), str(size)])) as target:
        yield target


@contextlib.contextmanager
def with_torch(python: Path | None) -> Iterator[Target]:
    interpreter = python or torch_environment()
    with contextlib.ExitStack() as stack:
        library = stack.enter_context(built("-shared", "-fPIC"))
        command = [interpreter, "-u", HERE / "snapshot_torch.py", library]
        yield stack.enter_context(contextlib.closing(Target(command)))


def torch_environment() -> Path:
    """The Python of a virtual environment with torch, kept in the XDG cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memforensics"
    folder = cache / f"bench-torch-cp{sys.version_info.major}{sys.version_info.minor}"
    python, stamp = folder / "bin" / "python", folder / "complete"
    if not stamp.exists():
        print(f"making {folder} ({TORCH}; once) ...", file=sys.stderr, flush=True)
        venv.EnvBuilder(clear=True, with_pip=True).create(folder)
        done = subprocess.run([python, "-m", "pip", "install", "--quiet", TORCH, "numpy"], check=False)
        if done.returncode:
            raise SystemExit(f"no {TORCH} where pip looks; name a Python that has torch: --torch-python PATH")
        stamp.touch()
    return python


# --- measuring


@dataclass
class Figures:
    """Of one reader on one target, a value a round, in milliseconds (mmap: microseconds)."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    longest: list[float] = field(default_factory=list)


def cpu_s() -> float:
    """Of this process and its children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure(target: Target, read: Read, into: Figures) -> None:
    target.ask("restart", "restarted")
    cpu, wall = cpu_s(), time.perf_counter()
    read()
    into.wall.append(1e3 * (time.perf_counter() - wall))
    into.cpu.append(1e3 * (cpu_s() - cpu))
    _, _, p50, p99, longest = target.ask("report", "measured")
    for values, value in ((into.p50, p50), (into.p99, p99), (into.longest, longest)):
        values.append(int(value) / 1e3)


def of_target(target: Target, names: Sequence[str], rounds: int) -> dict[str, Figures]:
    figures = {name: Figures() for name in names}
    with contextlib.closing(open_process(target.pid)) as process:
        reads = {name: READERS[name](process) for name in names}
        for read in reads.values():
            read()  # caches warm, modules imported
        for _ in range(rounds):
            for name, read in reads.items():
                measure(target, read, figures[name])
    return figures


def table(figures: dict[str, Figures]) -> str:
    smaps = statistics.median(figures["cat smaps"].cpu) if "cat smaps" in figures else None
    lines = [
        "| reader | CPU ms | of `cat smaps` | wall ms | mmap p50 us | p99 us | longest ms (greatest) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, each in figures.items():
        if name == "nothing":
            cost = ["-", "-", "-"]
        else:
            share = f"{statistics.median(each.cpu) / smaps:.2f}" if smaps else "-"
            cost = [spread(each.cpu), share, spread(each.wall)]
        stall = [f"{statistics.median(each.p50):.1f}", f"{statistics.median(each.p99):.0f}"]
        longest = f"{statistics.median(each.longest) / 1e3:.2f} ({max(each.longest) / 1e3:.1f})"
        lines.append(f"| {' | '.join([name, *cost, *stall, longest])} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--region-gib", type=int, default=6, help="the size of the large region")
    parser.add_argument("--mappings", type=int, default=60000)
    parser.add_argument("--targets", default="mappings,region,torch", help="with commas between")
    parser.add_argument("--readers", default=";".join(READERS), help="with semicolons between")
    parser.add_argument("--torch-python", type=Path, help="a Python that has torch (default: one in the cache folder)")
    options = parser.parse_args()
    names = [name for name in READERS if name in options.readers.split(";")]
    for name in [name for name in names if name.startswith("pmap") and shutil.which("pmap") is None]:
        print(f"{name}: not installed", file=sys.stderr)
        names.remove(name)
    targets: dict[str, tuple[str, Callable[[], contextlib.AbstractContextManager[Target]]]] = {
        "mappings": (f"{options.mappings:,} mappings of 16 KiB", lambda: native(options.mappings, 16384)),
        "region": (f"One region of {options.region_gib} GiB", lambda: native(1, options.region_gib << 30)),
        "torch": ("Python with torch and a model", lambda: with_torch(options.torch_python)),
    }
    print(f"{time.strftime('%Y-%m-%d')}, Linux {os.uname().release}, {os.cpu_count()} CPUs, {options.rounds} rounds")
    for name in options.targets.split(","):
        title, make = targets[name]
        with make() as target:
            maps = Path(f"/proc/{target.pid}/maps").read_bytes().count(b"\n")
            rss = psutil.Process(target.pid).memory_info().rss
            found = of_target(target, names, options.rounds)
        print(f"\n### {title} ({maps:,} mappings, {rss / 2**20:,.0f} MiB resident)\n\n{table(found)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
