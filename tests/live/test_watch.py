"""watch on programs whose growth is known: verdict, rate, growing member, and how it ends."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from processes import python, running
from terminal import Terminal

from memforensics.analysis.series import tree_trend
from memforensics.case.model import Sample
from memforensics.case.store import CaseFile
from memforensics.units import MIB

pytestmark = pytest.mark.live

WATCH = [sys.executable, "-m", "memforensics", "watch"]


def watch(pid: int, *words: str, timeout: float = 60) -> tuple[int, list[dict[str, Any]]]:
    done = subprocess.run(
        [*WATCH, str(pid), "--json", "--interval", "250ms", *words],
        stdout=subprocess.PIPE,
        timeout=timeout,
        check=False,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@contextlib.contextmanager
def lines_of(*words: str) -> Iterator[Iterator[dict[str, Any]]]:
    """The lines of a watch, as they come; it is ended with the block."""
    with subprocess.Popen([*WATCH, *words, "--json"], stdout=subprocess.PIPE) as watcher:
        assert watcher.stdout is not None
        try:
            yield map(json.loads, watcher.stdout)
        finally:
            watcher.kill()


def test_leak_is_growing_at_its_true_rate() -> None:
    with running(python("watch_grower.py", "leak", "60")) as child:
        code, lines = watch(child.pid, "--duration", "10s")
    last = lines[-1]
    assert code == 4
    assert last["verdict"] == "growing"
    rate = last["growth"]["bytes_per_minute"]
    assert rate["estimate"] == pytest.approx(60 * MIB, rel=0.1)
    assert rate["low"] <= rate["estimate"] <= rate["high"]
    assert last["ended"] == "the time is over"
    assert [row["layer"] for row in last["layers"] if row["verdict"] == "growing"] == ["anon-mmap"]


def test_bounded_growth_is_healthy() -> None:
    kinds = ("flat", "saw", "fill")
    with contextlib.ExitStack() as stack:
        pids = [stack.enter_context(running(python("watch_grower.py", kind, "120"))).pid for kind in kinds]
        all_series = [stack.enter_context(lines_of("--interval", "500ms", str(pid))) for pid in pids]
        for series in all_series:
            healthy = (line for line in series if line["seconds"] > 9 and line["verdict"] in ("steady", "bounded"))
            assert next(healthy)["exit_code"] == 0


def test_until_ends_at_the_verdict() -> None:
    with running(python("watch_grower.py", "leak", "120")) as child:
        code, lines = watch(child.pid, "--duration", "50s", "--until", "growing")
    assert code == 4
    assert lines[-1]["ended"] == "the verdict is growing"
    assert [line["verdict"] for line in lines[:-1]].count("growing") == 0


def test_leak_in_a_child_counts_for_the_tree_and_names_the_child() -> None:
    with running(python("watch_grower.py", "parent", "60"), ready=None) as parent:
        child = int(parent.wait_for("ready").split()[1])
        with ThreadPoolExecutor() as pool:
            tree = pool.submit(watch, parent.pid, "--duration", "9s")
            root = pool.submit(watch, parent.pid, "--duration", "9s", "--no-children")
            (code, lines), (alone, without) = tree.result(), root.result()
    assert code == 4
    quickest = max(lines[-1]["members"], key=lambda m: m["bytes_per_minute"]["estimate"])
    assert quickest["pid"] == child
    assert alone == 0
    assert [m["pid"] for m in without[-1]["members"]] == [parent.pid]


def test_exit_of_the_target_is_reported_and_the_case_is_kept(tmp_path: Path) -> None:
    case = tmp_path / "left.case"
    words = ("--interval", "250ms", "--record", str(case))
    with running(python("watch_grower.py", "told", "0")) as child, lines_of(*words, str(child.pid)) as ticks:
        next(ticks)
        child.tell("leave")
        *_, last = ticks
    assert last["ended"] == f"process {child.pid}: it exited"
    with CaseFile.open(case) as file:
        kept = file.load()
    assert kept.samples
    assert kept.targets[0].left_how == "it exited"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_case_is_readable_however_the_watch_ends(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """Killed while it writes: what another could read of the case before is there still."""
    case = tmp_path / "cut.case"
    command = [*WATCH, "PID", "--json", "--interval", "100ms", "--record", str(case)]
    with running(python("watch_grower.py", "leak", "600")) as child:
        words = [str(child.pid) if word == "PID" else word for word in command]
        watcher = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert watcher.stdout is not None
        before: tuple[Sample, ...] = ()
        while len(before) < 10:
            assert watcher.stdout.readline()
            with CaseFile.open(case) as file:
                before = file.load().samples
        os.kill(watcher.pid, number)
        _, errors = watcher.communicate(timeout=60)
        assert child.alive
    assert watcher.returncode == code
    if number == signal.SIGINT:
        assert str(case) in errors.decode()
    with CaseFile.open(case) as file:
        kept = file.load()
    assert kept.samples[: len(before)] == before
    assert kept.samples[-1].rss_anon > kept.samples[0].rss_anon
    assert tree_trend(kept).samples > 1


def test_terminal_shows_a_live_screen_and_keeps_the_last_one() -> None:
    with running(python("watch_grower.py", "leak", "120")) as child:
        done = subprocess.run(
            ["script", "-qec", f"stty cols 100 rows 40; {' '.join(WATCH)} {child.pid} --duration 3s", "/dev/null"],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            timeout=40,
            check=False,
        )
    shown = done.stdout.decode()
    assert done.returncode == 4
    assert "anon-mmap" in shown
    assert "ended: the time is over" in shown


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
def test_keys_open_the_help_and_end_the_watch(tmp_path: Path) -> None:
    case = tmp_path / "kept.case"
    with running(python("watch_grower.py", "leak", "120")) as child:
        terminal = Terminal(
            tmp_path, "watch", child.pid, "--interval", "5s", "--record", str(case), columns=80, lines=24
        )
        terminal.wait_for(r"INSUFFICIENT.*q ends, \? shows help")
        terminal.press("?")
        terminal.wait_for("end the watch and show the result")
        terminal.press("?")
        terminal.wait_for("q ends, . shows help")
        terminal.press("q")
        terminal.wait_for(r"\A INSUFFICIENT.*ended: you ended it\s+exit code 4")
        assert child.alive
    with CaseFile.open(case) as file:
        assert file.load().samples


def test_pipe_gets_lines_with_time_and_no_trailing_blanks() -> None:
    with running(python("watch_grower.py", "flat", "0")) as child:
        words = [*WATCH, str(child.pid), "--duration", "2s", "--interval", "500ms"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    lines = done.stdout.splitlines()
    assert len(lines) > 2
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ  ", line) for line in lines), lines
    assert [line.rstrip() for line in lines] == lines


def test_late_leak_is_growing_soon_after_it_starts() -> None:
    with running(python("watch_grower.py", "late", "120", "30")) as child:
        code, lines = watch(child.pid, "--duration", "85s", "--until", "growing", timeout=120)
    assert (code, lines[-1]["verdict"]) == (4, "growing")
    assert 30 < lines[-1]["seconds"] < 75
    assert {line["verdict"] for line in lines if 15 < line["seconds"] < 29} <= {"steady", "bounded"}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "no PID given"),
        (["4194304"], 3, "no process has PID 4194304"),
        (["2"], 3, "kernel thread"),
        (["1", "--interval", "0s"], 2, "--interval"),
        (["1", "--duration", "soon"], 2, "duration"),
    ],
)
def test_process_that_cannot_be_watched_gives_one_line(words: list[str], code: int, message: str) -> None:
    done = subprocess.run([*WATCH, *words], capture_output=True, timeout=30, check=False)
    assert done.returncode == code
    assert message in done.stderr.decode()
    assert b"Traceback" not in done.stderr
