"""What `watch` costs when it is left running: itself, its case file, and the target's longest mmap.

    python benchmarks/watch.py [--minutes 10] [--hours 72] [--case FILE] [--targets torch,mappings,region]

Two runs, as Markdown:
- played back: a recorded case (or, without --case, a recorded series of tests/fixtures) again and again for --hours on
  a clock that is 100 times as fast: memory and CPU of days in minutes, the same code on the same path but for /proc;
- live: `memforensics watch --json --record` for --minutes beside real processes that time their own mmap each 50 us,
  and beside a twin of each that is not watched. The start is told apart from what follows.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from snapshot import Target, native, with_torch

from memforensics.case.model import Anchor, Case, Loss, Sample, Snapshot
from memforensics.case.model import Target as Identity
from memforensics.case.store import CaseFile
from memforensics.jobs.observe.recorder import Record, new_meta
from memforensics.jobs.observe.tree import Event
from memforensics.jobs.watch.loop import recorder_for, watch_with
from memforensics.target import Process
from memforensics.units import GIB, KIB, MIB, NS_PER_S

ROOT = Path(__file__).parent.parent
SPEED = 100.0


# --- played back ------------------------------------------------------------------------------------------------------


@dataclass
class Playback:
    """An observer whose readings come from a case, again and again, on a clock of its own."""

    case: Case
    interval_s: float = 1.0
    speed: float = SPEED
    now_ns: int = 0
    pid: int = 1
    events: list[Event] = field(default_factory=list)
    members: dict[int, Process] = field(default_factory=dict)
    root_left: str | None = None

    @property
    def clock(self) -> Callable[[], int]:
        return lambda: self.now_ns

    def losses(self) -> list[Loss]:
        return []

    def ticks(self, seconds: float | None) -> Iterator[list[Record]]:
        """One reading of each process a tick; a snapshot each minute where the case has some. Sleeps interval / speed,
        or not at all when it is late."""
        lines: dict[int, list[Sample]] = {}
        for sample in self.case.samples:
            lines.setdefault(sample.pid, []).append(sample)
        snapshots = self.case.snapshots
        began, number = time.monotonic(), 0
        while seconds is None or self.now_ns < seconds * NS_PER_S:
            found: list[Record] = [replace(line[number % len(line)], t_ns=self.now_ns) for line in lines.values()]
            if snapshots and number % 60 == 0:
                taken: Snapshot = snapshots[number // 60 % len(snapshots)]
                found.append(replace(taken, t_ns=self.now_ns))
            yield found
            number += 1
            self.now_ns += int(self.interval_s * NS_PER_S)
            time.sleep(max(0.0, began + number * self.interval_s / self.speed - time.monotonic()))


def recorded(path: Path | None) -> Case:
    """A case file; without one, a fixture's series as a case."""
    if path is not None:
        with CaseFile.open(path) as file:
            return file.load()
    meta = replace(new_meta("watch", 1, seed=1), anchor=Anchor(monotonic_ns=0, wall_ns=0))
    lines = (ROOT / "tests" / "fixtures" / "series" / "jvm.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines if line[:1].isdigit()][60:]
    samples = tuple(
        Sample(pid=1, t_ns=i * NS_PER_S, rss_anon=int(a) * KIB, rss_file=int(f) * KIB, rss_shmem=int(s) * KIB)
        for i, (_, a, f, s) in enumerate(rows)
    )
    return Case(meta=meta, samples=samples, targets=(Identity(pid=1, start_ticks=1, start_wall_ns=0),))


def play(case: Case, hours: float) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        observer = Playback(case, pid=case.meta.root_pid or 1)
        path = Path(folder) / "soak.case"
        meta = replace(case.meta, anchor=Anchor(monotonic_ns=0, wall_ns=time.time_ns()))
        marks = [hours * 3600 * share for share in (0.01, 0.25, 0.5, 1.0)]
        rows: list[str] = []
        began_cpu, began = time.process_time(), time.monotonic()
        with recorder_for(meta, path, clock=observer.clock) as recorder:
            recorder.put(case.targets)
            ticks = 0
            for tick in watch_with(observer, recorder, seconds=hours * 3600):
                ticks += 1
                while marks and (observer.now_ns / NS_PER_S >= marks[0] or tick.ended):
                    cpu = (time.process_time() - began_cpu) / max(observer.now_ns / NS_PER_S, 1.0)
                    size = sum(p.stat().st_size for p in Path(folder).iterdir())
                    rows.append(
                        f"| {marks.pop(0) / 3600:.1f} h | {rss_of('self') / MIB:.1f} MiB | {cpu:.2%} |"
                        f" {len(tick.case.samples)} | {size / MIB:.2f} MiB | {tick.diagnosis.verdict} |"
                    )
        fast = observer.now_ns / NS_PER_S / (time.monotonic() - began)
        yield f"Played back: {hours:g} hours of readings at {fast:.0f} times their speed, {ticks:,} ticks at 1 s."
        yield ""
        yield "| after | own RSS | own CPU, of the time played | samples kept | case file | verdict |"
        yield "|---|---|---|---|---|---|"
        yield from rows


# --- live -------------------------------------------------------------------------------------------------------------

WINDOW_S = 20.0  # of the target's own measurement
START_S = 15.0  # imports, the first readings
SETTLED_S = 60.0

Make = Callable[[argparse.Namespace], AbstractContextManager[Target]]
TARGETS: dict[str, tuple[str, Make]] = {
    "torch": ("Python with torch and a model", lambda options: with_torch(options.torch_python)),
    "mappings": ("60,000 mappings of 16 KiB", lambda _: native(60_000, 16 * KIB)),
    "region": ("One region of 6 GiB", lambda _: native(1, 6 * GIB)),
}


def twin_of(name: str, options: argparse.Namespace) -> AbstractContextManager[Target]:
    """The same process, but for the size of its one region: that does not matter to an mmap."""
    return native(1, 256 * MIB) if name == "region" else TARGETS[name][1](options)


@dataclass
class Latency:
    """Of the target's own mmap: windows of (p50, p99, longest), in microseconds."""

    windows: list[tuple[float, float, float]] = field(default_factory=list)

    def measured(self, target: Target) -> None:
        """Takes up the window that ends now, and begins the next."""
        _, count, *figures = target.ask("report", "measured")
        if int(count):
            p50, p99, longest = (int(figure) / 1e3 for figure in figures)
            self.windows.append((p50, p99, longest))
        target.ask("restart", "restarted")

    def row(self, name: str) -> str:
        if not self.windows:
            return f"| {name} | - | - | - | - |"
        p50, p99, longest = (list(column) for column in zip(*self.windows, strict=True))
        return (
            f"| {name} | {median(p50):.1f} us | {median(p99):.0f} us | {median(longest) / 1e3:.2f} ms"
            f" | {max(longest) / 1e3:.2f} ms |"
        )


def rss_of(pid: int | str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * KIB
    return 0


def cpu_of(pid: int) -> float:
    """Seconds, of all threads (Documentation/scheduler/sched-stats.rst: exact, where stat counts in ticks)."""
    return sum(int(task.read_text().split()[0]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def live(name: str, minutes: float, options: argparse.Namespace) -> Iterator[str]:
    """`watch` beside a target, and its twin, which nobody watches: what the machine does to both is not our doing."""
    title, make = TARGETS[name]
    before, watched, beside = Latency(), Latency(), Latency()
    with make(options) as target, twin_of(name, options) as twin, tempfile.TemporaryDirectory() as folder:
        maps = Path(f"/proc/{target.pid}/maps").read_bytes().count(b"\n")
        resident = rss_of(target.pid)
        for one in (target, twin):
            one.ask("restart", "restarted")
        for _ in range(2):
            time.sleep(WINDOW_S)
            before.measured(target)
        case, lines = Path(folder) / "live.case", Path(folder) / "lines"
        words = ["watch", str(target.pid), "--json", "--interval", "1s", "--record", str(case)]
        with lines.open("wb") as out:
            watcher = subprocess.Popen([sys.executable, "-m", "memforensics", *words], stdout=out)
        try:
            began, parts = time.monotonic(), [(0.0, 0.0, 0)]
            twin.ask("restart", "restarted")
            for until in (START_S, *_windows(minutes * 60.0)):
                time.sleep(max(0.0, began + until - time.monotonic()))
                parts.append((time.monotonic() - began, cpu_of(watcher.pid), rss_of(watcher.pid)))
                watched.measured(target)
                beside.measured(twin)
            size = sum(file.stat().st_size for file in Path(folder).glob("live.case*"))
        finally:
            watcher.terminate()
            watcher.wait(timeout=30)
        told = [json.loads(line) for line in lines.read_bytes().splitlines()]
    yield f"### {title} ({maps:,} mappings, {resident / MIB:,.0f} MiB resident), {minutes:g} minutes at 1 s"
    yield ""
    yield "| part | own CPU, of a core | own RSS at its end |"
    yield "|---|---|---|"
    settled = min(SETTLED_S, parts[-1][0] / 2)
    for label, first, last in (
        ("start (imports, first readings)", 0.0, START_S),
        ("first minute", START_S, settled),
        ("steady: all that follows", settled, float("inf")),
    ):
        inside = [part for part in parts if first <= part[0] + 0.5 and part[0] <= last + 0.5]
        if len(inside) > 1:
            (t0, cpu0, _), (t1, cpu1, rss) = inside[0], inside[-1]
            yield f"| {label}, {t0:.0f} to {t1:.0f} s | {(cpu1 - cpu0) / (t1 - t0):.2%} | {rss / MIB:.1f} MiB |"
    yield ""
    yield "| the target's own mmap | p50 | p99 | longest, of a window | longest of all |"
    yield "|---|---|---|---|---|"
    yield before.row("before it was watched")
    yield watched.row("watched")
    yield beside.row("its twin at the same time, not watched")
    ages = sorted(line["age_s"]["layers"] for line in told if line["age_s"]["layers"] is not None)
    yield ""
    yield (
        f"{len(told)} lines; age of the layers: median {median(ages) if ages else 0:.0f} s, at most"
        f" {ages[-1] if ages else 0:.0f} s; the last verdict: {told[-1]['verdict']}; the case: {size / MIB:.2f} MiB."
    )


def _windows(seconds: float) -> list[float]:
    """Ends of the windows after the start: each a WINDOW_S long, one of them at SETTLED_S."""
    return [START_S + (SETTLED_S - START_S) * i / 2 for i in (1, 2)] + [
        SETTLED_S + WINDOW_S * i for i in range(1, max(int((seconds - SETTLED_S) / WINDOW_S), 1) + 1)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="of the live run on each target; 0: none")
    parser.add_argument("--targets", default=",".join(TARGETS), help="with commas between")
    parser.add_argument("--torch-python", type=Path, help="a Python that has torch (default: one in the cache folder)")
    parser.add_argument("--hours", type=float, default=10.0, help="of readings played back; 0: none")
    parser.add_argument("--case", type=Path, help="the case to play back")
    options = parser.parse_args()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(
        f"{time.strftime('%Y-%m-%d %H:%M')}, Linux {os.uname().release}, {os.cpu_count()} CPUs, load average {load},"
        f" Python {sys.version.split()[0]}\n"
    )
    if options.hours:
        print("\n".join(play(recorded(options.case), options.hours)), end="\n\n", flush=True)
    for name in options.targets.split(",") if options.minutes else ():
        print("\n".join(live(name, options.minutes, options)), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
