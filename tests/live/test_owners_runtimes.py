"""Memory of virtual machines and runtimes, compared with their own figures."""

import contextlib
import re
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from owned import adds_up, go_program, group, kinds, owners_of, quiet_snapshot, read_report
from processes import LEAKERS, running

from memforensics.case.model import Snapshot
from memforensics.probes.proc.snapshots import take_snapshot
from memforensics.target import Process, open_process
from memforensics.units import KIB, MIB

pytestmark = pytest.mark.live

NMT_REGION = re.compile(r"\[0x([0-9a-f]+) - 0x([0-9a-f]+)\] reserved(?: and committed)? \d+KB for (.+) from")
KIND_OF = {
    "Java Heap": "jvm-heap",
    "Code": "jvm-code",
    "Metaspace": "jvm-metaspace",
    "Class": "jvm-metaspace",
    "GC": "jvm-gc",
}


@pytest.mark.skipif(not any(Path("/usr/lib").glob("go-*/bin/go")), reason="needs Go: make setup-test")
def test_heap_of_a_stripped_go_program() -> None:
    with running([go_program("own_go.go"), "2000", "40960"], ready=None) as child:
        report = read_report(child)
        with contextlib.closing(open_process(child.pid)) as process:
            seen = quiet_snapshot(process)
            adds_up(process, seen)
    assert owners_of(seen, report.blocks).keys() == {"go-heap"}
    assert owners_of(seen, report.maps).keys() == {None}
    assert kinds(seen).keys() == {"go-heap", "go-runtime"}
    assert report.figures["in_use"] - MIB <= group(seen, "Go heap") <= report.figures["held"] + MIB
    assert 0 < group(seen, "Go runtime structures") <= report.figures["records"]
    assert 5 * MIB <= group(seen, "anonymous") <= 5 * MIB + report.figures["records"]


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_heap_of_a_javascript_program() -> None:
    with running(["node", LEAKERS / "own_node.js"], ready=None) as child:
        report = read_report(child)
        with contextlib.closing(open_process(child.pid)) as process:
            seen = quiet_snapshot(process)
            adds_up(process, seen)
    heap = group(seen, "V8 heap (JavaScript)")
    if not heap:
        pytest.skip("this node's V8 has another form of header")
    assert report.figures["resident"] * 0.85 <= heap <= report.figures["resident"] + 2 * MIB, "code lies elsewhere"
    blocks = group(seen, "mmapped malloc blocks")
    assert 32 * MIB <= blocks <= 34 * MIB, "its buffer lies outside its heap"
    assert group(seen, "anonymous") < 3 * MIB


def java_homes() -> list[Path]:
    """Every installed JVM once, that of PATH first."""
    named = shutil.which("rmiregistry")
    found = [*([Path(named)] if named else []), *sorted(Path("/usr/lib/jvm").glob("*/bin/rmiregistry"))]
    return list(dict.fromkeys(path.resolve().parent for path in found))


def native_memory(tools: Path, pid: int) -> list[tuple[int, int, str]]:
    """The JVM's own list of its reservations (jcmd, native memory tracking): (start, end, purpose)."""
    if not (tools / "jcmd").exists():
        return []
    command: list[str | Path] = [tools / "jcmd", str(pid), "VM.native_memory", "detail"]
    text = subprocess.run(command, capture_output=True, text=True, check=True)
    found = NMT_REGION.finditer(text.stdout)
    return [(int(each[1], 16), int(each[2], 16), each[3]) for each in found if each[3] != "Thread Stack"]


def until_touched(process: Process, size: int) -> None:
    """Waits until the heap is touched, because a JVM does not print when it is ready."""
    end = time.monotonic() + 30
    while group(take_snapshot(process)[0], "Java heap") < size and time.monotonic() < end:
        time.sleep(0.1)


JVMS = [*((tools, "G1") for tools in java_homes()), *((tools, "Parallel") for tools in java_homes()[:1])]


@pytest.mark.parametrize(("tools", "collector"), JVMS, ids=[f"{tools.parent.name}-{name}" for tools, name in JVMS])
def test_parts_of_a_jvm(tools: Path, collector: str) -> None:
    options = ["-Xms48m", "-Xmx48m", "-XX:+AlwaysPreTouch", "-XX:NativeMemoryTracking=detail", f"-XX:+Use{collector}GC"]
    command: list[str | Path] = [tools / "rmiregistry", *(f"-J{option}" for option in options), "0"]
    with running(command, ready=None) as child, contextlib.closing(open_process(child.pid)) as process:
        until_touched(process, 46 * MIB)
        regions = native_memory(tools, process.pid)
        seen = quiet_snapshot(process)
        adds_up(process, seen)
    assert 46 * MIB <= group(seen, "Java heap") <= 48 * MIB, "all of it is touched; some is mapped from the archive"
    for name in ("JVM code cache", "JVM metaspace", "JVM GC structures"):
        assert group(seen, name) > 0, name
    assert kinds(seen)["thread-stack"] > 5
    if regions:
        of_marks = {(m.kind, why_at(regions, m.start)) for m in seen.marks if m.kind.startswith("jvm-")}
        assert all(kind == why for kind, why in of_marks), of_marks
        assert not missed(seen, regions, ("Java Heap", "Code"))


def why_at(regions: list[tuple[int, int, str]], address: int) -> str | None:
    return next((KIND_OF.get(why) for start, end, why in regions if start <= address < end), None)


def missed(seen: Snapshot, regions: list[tuple[int, int, str]], whys: tuple[str, ...]) -> Counter[str]:
    """Resident anonymous mappings that the JVM has for these purposes, without a mark."""
    marks = {mark.start for mark in seen.marks}
    return Counter(
        f"{why} at {mapping.start:#x}"
        for start, end, why in regions
        for mapping in seen.mappings
        if why in whys and mapping.path == "" and mapping.rss and start <= mapping.start < end
        if mapping.start not in marks and mapping.size > 64 * KIB
    )
