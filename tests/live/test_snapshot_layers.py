"""Snapshots of processes whose memory is known to the byte."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from owned import settle
from processes import compiled, running

from memforensics.analysis.ownership import layers, pieces
from memforensics.case.model import LAYERS, Snapshot
from memforensics.case.store import CaseFile
from memforensics.errors import NoSuchProcess, TargetGone
from memforensics.probes.base import Budget
from memforensics.probes.proc.snapshots import Snapshots, take_snapshot
from memforensics.target import Process, open_process
from memforensics.units import MIB

pytestmark = pytest.mark.live

MEMFORENSICS = Path(sys.executable).with_name("memforensics")
ODD = 37 * 4096  # a size that nothing else has


def memforensics(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(MEMFORENSICS), *map(str, words)], capture_output=True, text=True, timeout=60)


@contextlib.contextmanager
def layered(*words: object) -> Iterator[Process]:
    command: list[str | Path] = [compiled("own_layers.c"), *map(str, words)]
    with running(command) as child, contextlib.closing(open_process(child.pid)) as process:
        settle(process)
        yield process


def in_rss(snapshot: Snapshot) -> dict[str, int]:
    return {row.layer: row.bytes or 0 for row in layers(None, snapshot) if row.in_rss}


def group(snapshot: Snapshot, name: str) -> int:
    return sum(piece.bytes or 0 for piece in pieces(snapshot) if piece.group == name and piece.in_rss)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    weights = tmp_path_factory.mktemp("mapped") / "model.safetensors"
    weights.write_bytes((2).to_bytes(8, "little") + b"{}" + os.urandom(5 * MIB - 10))  # as safetensors begin
    kinds = [
        "anon",
        "7",
        "151552",
        "malloc",
        "11",
        "1048576",
        "memfd",
        "2",
        "1048576",
        "shm",
        "3",
        "1048576",
        "zero",
        "2",
        "2097152",
    ]
    with layered(*kinds, "file", 1, 5 * MIB, weights) as process:
        yield process


@pytest.mark.parametrize("reader", ["smaps", "pagemap"])
def test_each_kind_is_counted_to_the_byte(everything: Process, reader: str) -> None:
    taken, losses = take_snapshot(everything, reader)  # type: ignore[arg-type]
    assert losses == ()
    assert [m.rss for m in taken.mappings if m.path == "" and m.size == ODD] == [ODD] * 7
    assert group(taken, "mmapped malloc blocks") == 11 * (MIB + 4096)  # a page for the header
    assert group(taken, "memfd pool") == 2 * MIB
    assert group(taken, "POSIX shared memory (/dev/shm)") == 3 * MIB
    assert group(taken, "anonymous, shared") == 4 * MIB
    assert group(taken, "weights model.safetensors") == 5 * MIB
    assert in_rss(taken)["shmem"] == 5 * MIB


@pytest.mark.parametrize("reader", ["smaps", "pagemap", "maps"])
def test_layers_sum_to_the_kernels_figure(everything: Process, reader: str) -> None:
    taken, _ = take_snapshot(everything, reader)  # type: ignore[arg-type]
    assert taken.rollup is not None
    rows = layers(None, taken)
    figure = taken.rollup.rss_anon + taken.rollup.rss_file + taken.rollup.rss_shmem
    assert sum(row.bytes or 0 for row in rows if row.in_rss) == figure
    if reader == "maps":
        assert in_rss(taken)["unattributed"] == figure, "unread is not zero: nothing is known of it"
    else:
        assert in_rss(taken)["file"] == taken.rollup.rss_file


def test_readers_agree_on_every_mapping(everything: Process) -> None:
    by_smaps, _ = take_snapshot(everything, "smaps")
    by_pagemap, _ = take_snapshot(everything, "pagemap")
    assert [(m.start, m.end, m.rss, m.anonymous) for m in by_smaps.mappings] == [
        (m.start, m.end, m.rss, m.anonymous) for m in by_pagemap.mappings
    ]
    assert by_smaps.marks == by_pagemap.marks


def test_command_gives_every_mapping_its_owner(everything: Process, tmp_path: Path) -> None:
    case = tmp_path / "one.case"
    done = memforensics("snapshot", everything.pid, "--json", "--record", case)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    odd = [m for m in seen["mappings"] if m["size"] == ODD]
    assert [(m["rss"], m["layer"], m["group"]) for m in odd] == [(ODD, "anon-mmap", "anonymous")] * 7
    assert {row["layer"] for row in seen["layers"]} <= set(LAYERS)
    assert sum(row["bytes"] or 0 for row in seen["layers"] if row["in_rss"]) == seen["rss"]
    assert sum(g["bytes"] for g in seen["groups"] if g["in_rss"]) == sum(m["rss"] for m in seen["mappings"])
    with CaseFile.open(case) as file:
        kept = file.load()
    assert kept.target(everything.pid) is not None
    assert len(kept.snapshots[0].mappings) == len(seen["mappings"])


def test_screen_names_the_largest_and_sums_the_rest(everything: Process) -> None:
    done = memforensics("snapshot", everything.pid, "--top", "3")
    assert done.returncode == 0, done.stderr
    assert "smaller groups" in done.stdout
    assert "mmapped malloc blocks" in done.stdout


def test_probe_gives_one_at_the_start_and_one_at_the_end() -> None:
    with layered("anon", 3, ODD) as process:
        probe = Snapshots(interval_s=3600)
        assert probe.availability(process).status == "ok"
        probe.open(process, Budget(seconds=1))
        assert [type(e) for e in probe.poll()] == [Snapshot]
        assert list(probe.poll()) == [], "the interval is not over"
        assert [type(e) for e in probe.close()] == [Snapshot]
        assert list(probe.close()) == []


def test_process_that_left_is_gone_not_empty() -> None:
    with running([compiled("own_layers.c"), "anon", "1", "4096"]) as child:
        process = open_process(child.pid)
        child.popen.kill()
        child.popen.wait()
        with contextlib.closing(process), pytest.raises((TargetGone, NoSuchProcess)):
            take_snapshot(process)
