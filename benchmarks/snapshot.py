"""What reading a process costs us and the process: `make bench-snapshot`.

Readers, interleaved, on processes with 60,000 mappings, with one large region of small and of huge pages, with 200 GiB
of address space of which 2 are used, and with Python, torch and a model: CPU and wall time of each reading, and the
target's own mmap (each 50 us in a thread of its own) while it is read; then the same under `memforensics watch`. A
ratio is of one reader to `cat smaps` of the same round. Prints Markdown, in about five minutes. Needs root or the same
user; tools that are not installed are left out, and named.
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
from tracer_statistics import Estimate, estimate, estimate_ratio

from memforensics.probes.proc.snapshot_cache import SnapshotCache
from memforensics.probes.proc.snapshots import Reader, take_snapshot
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


def repeated(*, marks: bool) -> Callable[[Process], Read]:
    """A second reading of a process of which little changed."""

    def prepared(process: Process) -> Read:
        cache = SnapshotCache()
        return lambda: take_snapshot(process, "pagemap", marks=marks, cache=cache)

    return prepared


def once(reader: Reader, *, marks: bool = False) -> Callable[[Process], Read]:
    return lambda process: lambda: take_snapshot(process, reader, marks=marks)


PEER = "cat smaps"
READERS: dict[str, Callable[[Process], Read]] = {
    "nothing": lambda process: lambda: time.sleep(IDLE_S),
    PEER: tool("cat", "/proc/{pid}/smaps"),
    "pmap -X": tool("pmap", "-X", "{pid}"),
    "psutil memory_maps": lambda process: lambda: psutil.Process(process.pid).memory_maps(grouped=False),
    "cat smaps_rollup": tool("cat", "/proc/{pid}/smaps_rollup"),
    "memforensics": once("pagemap"),
    "memforensics, again": repeated(marks=False),
    "memforensics, entries": once("entries"),
    "memforensics, smaps": once("smaps"),
    "memforensics, with owners": once("pagemap", marks=True),
    "memforensics, with owners, again": repeated(marks=True),
}

# CPU over that of `cat smaps`, at most: reader, target, figure. Entries are read where there is no PAGEMAP_SCAN.
GOALS = (
    ("memforensics", "mappings", 0.5),
    ("memforensics", "region", 0.25),
    ("memforensics, entries", "mappings", 1.3),
    ("memforensics, entries", "region", 1.3),
    ("memforensics, smaps", "mappings", 1.3),
    ("memforensics, again", "mappings", 0.25),
    ("memforensics, again", "region", 0.25),
    ("memforensics, again", "torch", 0.25),
)
STALL_MS = 5.0  # the longest under `watch`, at any size


# --- targets


@contextlib.contextmanager
def built(*flags: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="memforensics-bench-") as folder:
        program = Path(folder) / "snapshot_target"
        subprocess.run(["gcc", "-O1", *flags, "-o", program, HERE / "snapshot_target.c", "-lpthread"], check=True)
        yield program


@contextlib.contextmanager
def native(*words: object) -> Iterator[Target]:
    with built() as program, contextlib.closing(Target([program, *map(str, words)])) as target:
        yield target


@contextlib.contextmanager
def with_torch(python: Path | None) -> Iterator[Target]:
    interpreter = python or torch_environment()
    with contextlib.ExitStack() as stack:
        library = stack.enter_context(built("-shared", "-fPIC"))
        command: list[str | Path] = [interpreter, "-u", HERE / "snapshot_torch.py", library]
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


def of_target(target: Target, names: Sequence[str], rounds: int, seconds: float) -> dict[str, Figures]:
    """So many rounds, or as many as there is time for."""
    figures = {name: Figures() for name in names}
    with contextlib.closing(open_process(target.pid)) as process:
        reads = {name: READERS[name](process) for name in names}
        for read in reads.values():
            read()  # caches warm, modules imported
        end = time.monotonic() + seconds
        for _ in range(rounds):
            for name, read in reads.items():
                measure(target, read, figures[name])
            if time.monotonic() > end:
                break
    return figures


def under_watch(target: Target, seconds: float) -> dict[str, Figures]:
    """The target left alone, and while `watch` takes a reading each second."""
    figures = {"nothing": Figures(), "memforensics watch": Figures()}
    measure(target, lambda: time.sleep(seconds), figures["nothing"])
    words = [sys.executable, "-m", "memforensics", "watch", str(target.pid), "--interval", "1s", "--json"]
    watch = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert watch.stdout is not None
        if not watch.stdout.readline():
            raise SystemExit("watch ended")
        measure(target, lambda: time.sleep(seconds), figures["memforensics watch"])
    finally:
        watch.kill()
        watch.communicate()
    return figures


# --- tables


def text(found: Estimate, digits: int) -> str:
    low, high, brackets = found.low, found.high, "[]"
    if low is None or high is None:
        low, high, brackets = found.smallest, found.largest, "()"
    return f"{found.median:.{digits}f} {brackets[0]}{low:.{digits}f} to {high:.{digits}f}{brackets[1]}"


def ratio(figures: dict[str, Figures], name: str) -> Estimate | None:
    """Of CPU time, by rounds."""
    if name == PEER or not {name, PEER} <= figures.keys():
        return None
    return estimate_ratio([one / peer for one, peer in zip(figures[name].cpu, figures[PEER].cpu, strict=True)])


def table(figures: dict[str, Figures]) -> str:
    lines = [
        f"| reader | CPU ms | of `{PEER}` | wall ms | mmap p50 us | p99 us | longest ms (of all) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, each in figures.items():
        cost = ["-", "-", "-"]
        if name != "nothing":
            of_peer = ratio(figures, name)
            cost = [text(estimate(each.cpu), 1), text(of_peer, 2) if of_peer else "-", text(estimate(each.wall), 0)]
        lines.append(f"| {' | '.join([name, *cost, *stalls(each)])} |")
    return "\n".join(lines)


def stalls(each: Figures) -> list[str]:
    return [
        f"{statistics.median(each.p50):.1f}",
        f"{statistics.median(each.p99):.0f}",
        f"{statistics.median(each.longest) / 1e3:.2f} ({max(each.longest) / 1e3:.2f})",
    ]


def goals(found: dict[str, dict[str, Figures]], watched: dict[str, dict[str, Figures]]) -> Iterator[str]:
    """Reached: the whole interval is below."""
    yield "| goal | at most | measured | |\n|---|---|---|---|"
    for name, target, most in GOALS:
        of_peer = ratio(found.get(target, {}), name)
        if of_peer is not None:
            high = of_peer.largest if of_peer.high is None else of_peer.high
            word = "reached" if high <= most else "not shown" if of_peer.median <= most else "missed"
            yield f"| {name} of `{PEER}`, {target} | {most} | {text(of_peer, 2)} | {word} |"
    for target, figures in watched.items():
        longest, alone = (max(figures[name].longest) / 1e3 for name in ("memforensics watch", "nothing"))
        word = "reached" if longest < STALL_MS else "missed"
        yield f"| longest mmap under watch, {target} | {STALL_MS:.0f} ms | {longest:.2f} (alone {alone:.2f}) | {word} |"


def load() -> str:
    return f"load {os.getloadavg()[0]:.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=60, help="a target at most, after which no round begins")
    parser.add_argument("--watch-seconds", type=float, default=8, help="under watch, and as long alone")
    parser.add_argument("--region-gib", type=int, default=6, help="the size of the large region")
    parser.add_argument("--mappings", type=int, default=60000)
    parser.add_argument("--targets", default="mappings,region,huge,sparse,torch", help="with commas between")
    parser.add_argument("--readers", default=";".join(READERS), help="with semicolons between")
    parser.add_argument("--torch-python", type=Path, help="a Python that has torch (default: one in the cache folder)")
    options = parser.parse_args()
    names = [name for name in READERS if name in options.readers.split(";")]
    for name in [name for name in names if name.startswith("pmap") and shutil.which("pmap") is None]:
        print(f"{name}: not installed", file=sys.stderr)
        names.remove(name)
    region = options.region_gib << 30
    targets: dict[str, tuple[str, Callable[[], contextlib.AbstractContextManager[Target]]]] = {
        "mappings": (f"{options.mappings:,} mappings of 16 KiB", lambda: native(options.mappings, 16384)),
        "region": (f"one region of {options.region_gib} GiB", lambda: native(1, region)),
        "huge": (f"one region of {options.region_gib} GiB in huge pages", lambda: native(1, region, "huge")),
        "sparse": ("one region of 200 GiB of which 2 are used", lambda: native(1, 200 << 30, "sparse")),
        "torch": ("Python with torch and a model", lambda: with_torch(options.torch_python)),
    }
    host = f"Linux {os.uname().release}, {os.uname().machine}, {os.cpu_count()} CPUs ({cpu_model()})"
    print(f"Measured {time.strftime('%Y-%m-%d')} on {host}; {load()} at the begin.")
    print("Medians; in brackets the 95% interval (Wilcoxon's signed ranks), in parentheses the range of fewer than 6.")
    found, watched = {}, {}
    for name in options.targets.split(","):
        title, make = targets[name]
        with make() as target:
            maps = Path(f"/proc/{target.pid}/maps").read_bytes().count(b"\n")
            rss = psutil.Process(target.pid).memory_info().rss
            before, chosen = load(), [each for each in names if (name, each) != ("sparse", "memforensics, entries")]
            found[name] = of_target(target, chosen, options.rounds, options.seconds)
            watched[name] = under_watch(target, options.watch_seconds)
        n = min(len(each.cpu) for each in found[name].values())
        print(
            f"\n### {name}: {title} ({maps:,} mappings, {rss / 2**20:,.0f} MiB resident), n={n}, {before} to {load()}"
        )
        print(f"\n{table(found[name])}", flush=True)
    print("\n### Under `memforensics watch --interval 1s`\n")
    print("| target | mmap p50 us, alone | p99 | longest ms | p50, watched | p99 | longest ms |")
    print("|---|---|---|---|---|---|---|")
    for name, each in watched.items():
        print(f"| {' | '.join([name, *stalls(each['nothing']), *stalls(each['memforensics watch'])])} |")
    print("\n" + "\n".join(goals(found, watched)))
    return 0


def cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    sys.exit(main())
