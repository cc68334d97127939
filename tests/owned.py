"""What live tests of ownership share: what a program tells of its own memory, and that the waterfall adds up."""

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
class Told:
    """Lines of a program: "block ADDRESS SIZE" (the allocator's), "map ADDRESS SIZE" (not), "told NAME BYTES"."""

    blocks: list[tuple[int, int]] = field(default_factory=list)
    maps: list[tuple[int, int]] = field(default_factory=list)
    of_itself: dict[str, int] = field(default_factory=dict)


def told_by(child: Child) -> Told:
    told = Told()
    while (words := child.read_line().split()) != ["ready"]:
        if words[0] == "told":
            told.of_itself[words[1]] = int(words[2])
        else:
            (told.blocks if words[0] == "block" else told.maps).append((int(words[1], 16), int(words[2])))
    return told


def settle(process: Process) -> None:
    """Until each of its threads waits: "ready" is said on the way there, and more pages are touched behind it."""
    while any(state(process, tid) not in "SZ" for tid in process.threads()):
        os.sched_yield()


def quiet_snapshot(process: Process, reader: Reader = "auto") -> Snapshot:
    """Taken while the process is stopped: the figures and the mappings are of one moment."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        while any(state(process, tid) not in "TZ" for tid in process.threads()):
            os.sched_yield()
        return take_snapshot(process, reader)[0]
    finally:
        os.kill(process.pid, signal.SIGCONT)


def state(process: Process, tid: int) -> str:
    """As the kernel spells it; "Z" of a thread that ended meanwhile."""
    try:
        return process.read_text(f"task/{tid}/stat").rpartition(")")[2].split()[0]
    except TargetError:
        return "Z"


def slack(process: Process) -> int:
    """By how much the kernel's own sums may be off: its per-CPU counters were read without their parts on each CPU
    before Linux 6.17 (mm: fix the inaccurate memory statistics issue); 0 since."""
    major, minor = (int(word) for word in platform.release().split("-")[0].split(".")[:2])
    cpus = os.cpu_count() or 1
    return 0 if (major, minor) >= (6, 17) else 3 * max(32, 2 * cpus) * cpus * PAGE


def adds_up(process: Process, seen: Snapshot) -> None:
    """Of a process that stood still (`settle`, `quiet_snapshot`): the rows in RSS sum to RssAnon + RssFile + RssShmem,
    and not by what is left over alone: the mappings do so too."""
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
    """The kind of the mark upon that address."""
    return next((mark.kind for mark in seen.marks if mark.start <= address < mark.end), None)


def owners_of(seen: Snapshot, ranges: list[tuple[int, int]]) -> Counter[str | None]:
    """Of the first and the last byte of each."""
    return Counter(owner_at(seen, at) for start, size in ranges for at in (start, start + size - 1))


def marked(seen: Snapshot, kind: str, wanted: Callable[[OwnerMark], bool] = lambda _: True) -> int:
    """Bytes of address space with such marks."""
    return sum(mark.end - mark.start for mark in seen.marks if mark.kind == kind and wanted(mark))


def gguf(size: int) -> bytes:
    """How a GGUF file begins."""
    return (b"GGUF" + struct.pack("<IQQ", 3, 0, 0)).ljust(size, b"\1")


def go_program(source: str, ldflags: str = "-s -w") -> Path:
    """tests/leakers/`source` (Go), built (stripped, by default) when it is newer than its program."""
    binary, origin = LEAKERS / "bin" / Path(source).stem, LEAKERS / source
    if not binary.exists() or binary.stat().st_mtime < origin.stat().st_mtime:
        binary.parent.mkdir(exist_ok=True)
        fresh = binary.with_suffix(f".{os.getpid()}")
        (go,) = sorted(Path("/usr/lib").glob("go-*/bin/go"))[-1:]
        env = {**os.environ, "GO111MODULE": "off", "GOCACHE": str(binary.parent / "go-cache")}
        subprocess.run([go, "build", "-ldflags", ldflags, "-o", fresh, origin], check=True, env=env)
        fresh.rename(binary)
    return binary
