"""Shared by live tests of ownership: what a program prints about its memory, and the check that layers add up."""

import os
import platform
import signal
import struct
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from processes import LEAKERS, Child

from memforensics.analysis.ownership import kernel_rss, layers, pieces
from memforensics.case.model import OwnerMark, Snapshot
from memforensics.errors import TargetError
from memforensics.probes.proc.snapshots import Reader, take_snapshot
from memforensics.target import Process
from memforensics.target.pagemap import PAGE


@dataclass
class MemoryReport:
    """Printed lines: "block ADDRESS SIZE" (the allocator's), "map ADDRESS SIZE" (others), "figure NAME BYTES"."""

    blocks: list[tuple[int, int]] = field(default_factory=list)
    maps: list[tuple[int, int]] = field(default_factory=list)
    figures: dict[str, int] = field(default_factory=dict)


def read_report(child: Child) -> MemoryReport:
    report = MemoryReport()
    while (words := child.read_line().split()) != ["ready"]:
        if words[0] == "figure":
            report.figures[words[1]] = int(words[2])
        else:
            (report.blocks if words[0] == "block" else report.maps).append((int(words[1], 16), int(words[2])))
    return report


def settle(process: Process) -> None:
    """Waits until each thread sleeps, because threads touch more pages after they print "ready"."""
    while any(state(process, tid) not in "SZ" for tid in process.threads()):
        os.sched_yield()


def quiet_snapshot(process: Process, reader: Reader = "auto") -> Snapshot:
    """A snapshot of the stopped process, so that all figures are of one moment."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        while any(state(process, tid) not in "TZ" for tid in process.threads()):
            os.sched_yield()
        return take_snapshot(process, reader)[0]
    finally:
        os.kill(process.pid, signal.SIGCONT)


def state(process: Process, tid: int) -> str:
    """The state letter of the kernel. "Z" if the thread has ended."""
    try:
        return process.read_text(f"task/{tid}/stat").rpartition(")")[2].split()[0]
    except TargetError:
        return "Z"


def slack(process: Process) -> int:
    """The possible error of the kernel's sums. Before Linux 6.17 (mm: fix the inaccurate memory statistics issue) they
    leave out what the counters hold on each CPU. 0 since."""
    major, minor = (int(word) for word in platform.release().split("-")[0].split(".")[:2])
    cpus = os.cpu_count() or 1
    return 0 if (major, minor) >= (6, 17) else 3 * max(32, 2 * cpus) * cpus * PAGE


def adds_up(process: Process, seen: Snapshot) -> None:
    """For a process at rest (`settle`, `quiet_snapshot`): the rows in RSS sum to RssAnon + RssFile + RssShmem, and so
    do the mappings, so that little is unattributed."""
    assert seen.rollup is not None
    figure, off = kernel_rss(seen.rollup), slack(process)
    rows = layers(None, seen)
    assert sum(row.bytes or 0 for row in rows if row.in_rss) == figure
    mapped = sum(piece.bytes or 0 for piece in pieces(seen) if piece.in_rss)
    assert abs(mapped - figure) <= off
    (rest,) = (row.bytes for row in rows if row.layer == "unattributed" and row.in_rss)
    assert rest is not None
    assert rest <= off
    anonymous = sum(mapping.anonymous or 0 for mapping in seen.mappings)
    assert abs(anonymous - seen.rollup.rss_anon) <= off


def group(seen: Snapshot, name: str, *, in_rss: bool = True) -> int:
    return sum(piece.bytes or 0 for piece in pieces(seen) if piece.group == name and piece.in_rss == in_rss)


def kinds(seen: Snapshot) -> Counter[str]:
    return Counter(mark.kind for mark in seen.marks)


def owner_at(seen: Snapshot, address: int) -> str | None:
    """The kind of the mark at this address."""
    return next((mark.kind for mark in seen.marks if mark.start <= address < mark.end), None)


def owners_of(seen: Snapshot, ranges: list[tuple[int, int]]) -> Counter[str | None]:
    """The owners of the first and the last byte of each range."""
    return Counter(owner_at(seen, at) for start, size in ranges for at in (start, start + size - 1))


def marked(seen: Snapshot, kind: str, wanted: Callable[[OwnerMark], bool] = lambda _: True) -> int:
    """Bytes of address space with marks of this kind."""
    return sum(mark.end - mark.start for mark in seen.marks if mark.kind == kind and wanted(mark))


def gguf(size: int) -> bytes:
    """The beginning of a GGUF file."""
    return (b"GGUF" + struct.pack("<IQQ", 3, 0, 0)).ljust(size, b"\1")


def go_program(source: str, ldflags: str = "-s -w") -> Path:
    """The program of tests/leakers/`source` (Go), stripped by default. It is built when the source is newer."""
    binary, origin = LEAKERS / "bin" / Path(source).stem, LEAKERS / source
    if not binary.exists() or binary.stat().st_mtime < origin.stat().st_mtime:
        binary.parent.mkdir(exist_ok=True)
        fresh = binary.with_suffix(f".{os.getpid()}")
        (go,) = sorted(Path("/usr/lib").glob("go-*/bin/go"))[-1:]
        env = {**os.environ, "GO111MODULE": "off", "GOCACHE": str(binary.parent / "go-cache")}
        subprocess.run([go, "build", "-ldflags", ldflags, "-o", fresh, origin], check=True, env=env)
        fresh.rename(binary)
    return binary
