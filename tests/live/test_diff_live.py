"""diff on programs that grow by exactly known amounts."""

import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import compiled, running

from memforensics.analysis.diff import diff, total_change
from memforensics.case.model import MappingGroup, Snapshot
from memforensics.jobs.observe.recorder import Recorder, new_meta
from memforensics.jobs.observe.tree import TreeObserver
from memforensics.probes.proc.snapshots import take_snapshot
from memforensics.target import open_process
from memforensics.units import MIB, NS_PER_S

pytestmark = pytest.mark.live

MEMFORENSICS = Path(sys.executable).with_name("memforensics")
ODD = 37 * 4096


@contextlib.contextmanager
def twice(*words: object) -> Iterator[tuple[Snapshot, Snapshot]]:
    command: list[str | Path] = [compiled("own_layers.c"), *map(str, words)]
    with running(command) as child, contextlib.closing(open_process(child.pid)) as process:
        before, _ = take_snapshot(process)
        child.tell("again")
        child.wait_for("ready")
        after, _ = take_snapshot(process)
        yield before, after


def grown(groups: tuple[MappingGroup, ...]) -> MappingGroup:
    return next(group for group in groups if group.change_bytes)


def run(*words: object) -> Any:
    command = [str(MEMFORENSICS), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if "--json" in words else done.stdout


def test_new_mappings_are_grouped_by_size() -> None:
    with twice("anon", 13, ODD) as (before, after):
        first = grown(diff(before, after))
        assert (first.count_before, first.count_after, first.change_bytes) == (13, 26, 13 * ODD)
        assert (first.what, first.layer, first.name) == ("grew", "anon-mmap", "anonymous, 148 KiB each")
        assert total_change(before, after) >= 13 * ODD


def test_region_that_grows_downwards_is_one_mapping() -> None:
    with twice("merged", 5, 2 * MIB) as (before, after):
        first = grown(diff(before, after))
        assert (first.before_bytes, first.after_bytes, first.moved) == (10 * MIB, 20 * MIB, True)
        assert (first.count_before, first.count_after, first.what) == (1, 1, "grew")
        assert "ending at" in first.name


@pytest.mark.parametrize(
    ("kind", "count", "size", "name", "layer"),
    [
        ("malloc", 5, MIB, "mmapped malloc blocks", "native-heap"),
        ("malloc", 4000, 1000, "program heap ([heap])", "native-heap"),
        ("memfd", 3, MIB, "memfd pool", "shmem"),
        ("zero", 4, ODD, "anonymous, shared, 148 KiB each", "anon-mmap"),
    ],
)
def test_growth_belongs_to_its_owner(kind: str, count: int, size: int, name: str, layer: str) -> None:
    with twice(kind, count, size) as (before, after):
        first = grown(diff(before, after))
        assert (first.name, first.layer) == (name, layer)
        assert count * size <= first.change_bytes <= count * (size + 4096)


def test_two_workers_are_compared_by_owner_and_size() -> None:
    program = compiled("own_layers.c")
    with running([program, "anon", "2", str(ODD)]) as well, running([program, "anon", "9", str(ODD)]) as sick:
        seen = run("diff", well.pid, sick.pid, "--json")
    first = seen["groups"][0]
    assert (first["group"], first["change_bytes"], first["what"]) == ("anonymous, 148 KiB each", 7 * ODD, "grew")
    assert sum(group["change_bytes"] for group in seen["groups"]) == seen["change_bytes"]


def test_two_case_files_on_the_screen(tmp_path: Path) -> None:
    one, two = tmp_path / "one.case", tmp_path / "two.case"
    with running([compiled("own_layers.c"), "anon", "13", str(ODD)]) as child:
        run("snapshot", child.pid, "--record", one)
        child.tell("again")
        child.wait_for("ready")
        run("snapshot", child.pid, "--record", two)
    seen = run("diff", one, two, "--json")
    assert (seen["groups"][0]["count_before"], seen["groups"][0]["count_after"]) == (13, 26)
    assert "anonymous, 148 KiB" in run("diff", one, two)


def test_two_times_in_one_case(tmp_path: Path) -> None:
    file = tmp_path / "three.case"
    with running([compiled("own_layers.c"), "anon", "13", str(ODD)]) as child:
        meta = new_meta("watch", child.pid)
        with Recorder(meta, file) as recorder, contextlib.closing(open_process(child.pid)) as process:
            for minute in range(3):
                taken, _ = take_snapshot(process)
                t_ns = meta.anchor.monotonic_ns + minute * 60 * NS_PER_S
                recorder.put([dataclasses.replace(taken, t_ns=t_ns)])
                child.tell("again")
                child.wait_for("ready")
    counts = {
        words: tuple(run("diff", file, *words, "--json")["groups"][0][f"count_{side}"] for side in ("before", "after"))
        for words in ((), ("--to", "1m"), ("--from", "50s", "--to", "1h"))
    }
    assert list(counts.values()) == [(13, 39), (13, 26), (26, 39)]
    assert "three.case, at 1 m →" in run("diff", file, "--from", "50s")


@pytest.mark.parametrize(
    "words", [("1", "--from", "1s"), ("a.case", "b.case", "--to", "1s"), ("1", "2", "--over", "1s")]
)
def test_options_that_do_not_fit_the_arguments_are_refused(words: tuple[str, ...]) -> None:
    done = subprocess.run([str(MEMFORENSICS), "diff", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "exactly one" in done.stderr


def test_arguments_that_cannot_be_compared_are_refused() -> None:
    done = subprocess.run([str(MEMFORENSICS), "diff", "1"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--over" in done.stderr


@contextlib.contextmanager
def shell_with_a_child(*words: object) -> Iterator[Any]:
    """A shell with own_layers as its child, which grows on request."""
    program = " ".join(map(str, (compiled("own_layers.c"), *words)))
    with running(["/bin/sh", "-c", f"{program}; exit 1"]) as shell:
        yield shell


def test_growth_of_a_child_counts_for_the_tree(tmp_path: Path) -> None:
    """A shell around a server: the case, and two looks at the live tree."""
    file = tmp_path / "tree.case"
    with shell_with_a_child("anon", "13", str(ODD)) as shell, TreeObserver(shell.pid) as observer:
        with Recorder(new_meta("watch", shell.pid), file) as recorder:
            recorder.put(observer.open())
            for _ in range(2):
                for process in observer.members.values():
                    recorder.put([take_snapshot(process)[0]])
                shell.tell("again")
                shell.wait_for("ready")
        child = next(pid for pid in observer.members if pid != shell.pid)
    tree = run("diff", file, "--json")
    assert tree["change_bytes"] >= 13 * ODD
    assert tree["groups"][0]["change_bytes"] == 13 * ODD
    assert [process["pid"] for process in tree["processes"]] == [child, shell.pid]
    assert sum(process["change_bytes"] for process in tree["processes"]) == tree["change_bytes"]
    assert sum(group["change_bytes"] for group in tree["groups"]) == tree["change_bytes"]
    assert sum(row["change_bytes"] for row in tree["layers"] if row["in_rss"] and row["change_bytes"]) == pytest.approx(
        tree["change_bytes"], abs=MIB
    )
    alone = run("diff", file, "--process", shell.pid, "--json")
    assert alone["change_bytes"] < ODD
    assert "2 processes" in run("diff", file)
    assert "own_layers" in run("diff", file)


def test_live_tree_is_summed() -> None:
    with shell_with_a_child("anon", "13", str(ODD)) as shell:
        words = [str(MEMFORENSICS), "diff", str(shell.pid), "--over", "3s", "--json"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as looking:
            shell.tell("again")  # before or after the first snapshot: it is there in both, or in the second
            shell.wait_for("ready")
            tree = json.loads(looking.communicate(timeout=60)[0])
        root = run("diff", shell.pid, "--over", "100ms", "--no-children", "--json")
    assert len(tree["processes"]) == 2
    assert len(root["processes"]) == 1


def test_process_missing_from_the_case_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "one.case"
    with running([compiled("own_layers.c"), "anon", "1", str(ODD)]) as child:
        run("snapshot", child.pid, "--record", file)
        done = subprocess.run(
            [str(MEMFORENSICS), "diff", file, file, "--process", "1"], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 2
    assert f"--process with one of: {child.pid}" in done.stderr
