"""What `watch` costs when it is left running: itself, its case file, and the target's longest mmap.

    python benchmarks/watch.py [--minutes 10] [--hours 72] [--case FILE]

Two runs, as Markdown:
- played back: a recorded case (or, without --case, a recorded series of tests/fixtures) again and again for --hours on
  a clock that is 100 times as fast: memory and CPU of days in minutes, the same code on the same path but for /proc;
- live: `memforensics watch --json --record` for --minutes beside a server (threads, a few hundred mappings, work that
  comes and goes) that also times an mmap and munmap of its own each millisecond or so.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from memforensics.case.model import Anchor, Case, Loss, Sample, Snapshot, Target
from memforensics.case.store import CaseFile
from memforensics.jobs.observe import Event, Record, new_meta
from memforensics.jobs.watch import recorder_for, watch_with
from memforensics.target import Process
from memforensics.units import KIB, MIB, NS_PER_S

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
    return Case(meta=meta, samples=samples, targets=(Target(pid=1, start_ticks=1, start_wall_ns=0),))


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

SERVER = r"""
import mmap, random, sys, threading, time
kept = [bytes(random.randint(1000, 400_000)) for _ in range(2000)]
maps = [mmap.mmap(-1, 64 * 1024, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(300)]
threads = [threading.Thread(target=time.sleep, args=(1e9,), daemon=True) for _ in range(30)]
for thread in threads: thread.start()
print("ready", flush=True)
longest = [0.0]
def told():
    for _ in sys.stdin: print(longest[0] * 1e3, flush=True); longest[0] = 0.0
threading.Thread(target=told, daemon=True).start()
while True:
    batch = [bytes(random.randint(1000, 400_000)) for _ in range(40)]
    until = time.monotonic() + 0.2
    while time.monotonic() < until:
        began = time.monotonic()
        mmap.mmap(-1, 16384).close()
        longest[0] = max(longest[0], time.monotonic() - began)
        time.sleep(0.001)
"""


def rss_of(pid: int | str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * KIB
    return 0


def cpu_of(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / float(os.sysconf("SC_CLK_TCK"))


def live(minutes: float) -> Iterator[str]:
    """The target's longest mmap is asked for half of the time without us, and then with us."""
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None
    assert server.stdout is not None

    def longest_ms() -> float:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write("\n")
        server.stdin.flush()
        return float(server.stdout.readline())

    with tempfile.TemporaryDirectory() as folder:
        try:
            server.stdout.readline()
            time.sleep(2)
            longest_ms()
            alone_s = min(60.0, minutes * 20)
            time.sleep(alone_s)
            alone = longest_ms()
            case = Path(folder) / "live.case"
            words = ["watch", str(server.pid), "--json", "--interval", "1s", "--record", str(case)]
            watcher = subprocess.Popen(
                [sys.executable, "-m", "memforensics", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            assert watcher.stdout is not None
            seen: list[bytes] = []
            reader = threading.Thread(target=lambda out: seen.extend(out), args=(watcher.stdout,), daemon=True)
            reader.start()
            began, rows, half_cpu = time.monotonic(), [], 0.0
            for name, at in (("start", 15.0), ("middle", minutes * 30), ("end", minutes * 60)):
                time.sleep(max(0.0, began + at - time.monotonic()))
                passed, used = time.monotonic() - began, cpu_of(watcher.pid)
                if name == "middle":
                    half_cpu, half_at = used, passed
                size = sum(p.stat().st_size for p in Path(folder).iterdir())
                rows.append(
                    f"| {name} | {rss_of(watcher.pid) / MIB:.1f} MiB | {used / passed:.2%} | {size / MIB:.2f} MiB |"
                )
            later = (cpu_of(watcher.pid) - half_cpu) / max(time.monotonic() - began - half_at, 0.1)
            beside = longest_ms()
            watcher.terminate()
            watcher.wait(timeout=30)
            reader.join(timeout=10)
            last = json.loads(seen[-1])
        finally:
            server.kill()
            server.wait()
    yield f"Live: {minutes:g} minutes at 1 s beside a server with 30 threads and some 300 mappings of its own."
    yield ""
    yield "| at | own RSS | own CPU since the start | case file |"
    yield "|---|---|---|---|"
    yield from rows
    yield ""
    yield f"CPU in the second half: {later:.2%} of a core. Lines: {len(seen)}; the last verdict: {last['verdict']}."
    yield f"The target's longest mmap: {beside:.2f} ms while watched, {alone:.2f} ms in {alone_s:.0f} s before it."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="of the live run; 0: none")
    parser.add_argument("--hours", type=float, default=10.0, help="of readings played back; 0: none")
    parser.add_argument("--case", type=Path, help="the case to play back")
    options = parser.parse_args()
    if options.hours:
        print("\n".join(play(recorded(options.case), options.hours)), end="\n\n", flush=True)
    if options.minutes:
        print("\n".join(live(options.minutes)))


if __name__ == "__main__":
    main()
