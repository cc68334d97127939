"""Where diagnose writes its case and report: on a full disk, at Ctrl-C, and without a home."""

import contextlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from processes import Child, python, running

from memforensics.case.store import CaseFile
from memforensics.errors import CaseError

pytestmark = [pytest.mark.live, pytest.mark.needs_bpf]

PYTHON = [sys.executable, "-m", "memforensics"]
LEAKER = python("diag_keep_mappings.py", "--rate", "20")


@pytest.fixture(scope="module")
def leaker() -> Iterator[Child]:
    with running(LEAKER) as child:
        yield child


def run(*words: object, home: Path | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "XDG_STATE_HOME"}
    if home is not None:
        env["HOME"] = str(home)
    return subprocess.run(
        [*PYTHON, *map(str, words)], capture_output=True, text=True, timeout=90, env=env, cwd=cwd
    )  # fmt: skip


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_runs_of_the_same_second_keep_separate_cases_in_the_state_folder(leaker: Child, tmp_path: Path) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    words = ("diagnose", leaker.pid, "--duration", "10s")
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(lambda _: run(*words, home=home, cwd=here), range(2))
    state = home / ".local/state/memforensics"
    assert list(here.iterdir()) == []
    kept = {re.search(r"^case: (.+)\Z", done.stdout.rstrip(), re.MULTILINE)[1] for done in (first, second)}  # type: ignore[index]
    assert {str(path) for path in state.iterdir()} == kept  # no -wal, no -shm
    assert len(kept) == 2
    assert mode_of(state) == 0o700
    assert {mode_of(path) for path in state.iterdir()} == {0o600}
    again = run("report", kept.pop(), home=home)
    assert again.returncode == 0
    assert len(list(state.iterdir())) == 2


@pytest.mark.needs_root
@pytest.mark.parametrize("size", ["4k", "256k"], ids=["full-at-once", "full-in-the-middle"])
def test_full_disk_is_reported_and_diagnose_goes_on(leaker: Child, tmp_path: Path, size: str) -> None:
    with small_disk(tmp_path / "home", size) as home:
        done = run("diagnose", leaker.pid, "--duration", "12s", "--json", home=home)
    report = json.loads(done.stdout)
    assert done.returncode == report["exit_code"]
    assert report["observed"]["samples"] > 8
    assert report["verdict"] not in ("steady", "insufficient-data")
    assert re.search(r"^memforensics: (no case is kept|the case is not complete)", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr


OWN_ENTRY = """
id = "our-buffers"
title = "Our buffers are kept for ever"
layer = "anon-mmap"
certainty = "V"
explanation = "A list without a bound keeps each buffer."
sources = ["https://example.org/our-buffers"]
[[signs]]
need = "required"
[signs.when]
kind = "cmdline"
pattern = "diag_keep_mappings"
says = "it is our service"
"""


@pytest.mark.needs_root
def test_report_goes_to_stdout_if_its_file_fails(leaker: Child, tmp_path: Path) -> None:
    """On the way: a catalogue entry of one's own is matched."""
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "our-buffers.toml").write_text(OWN_ENTRY)
    with small_disk(tmp_path / "small", "4k") as small:
        (small / "full").write_bytes(bytes(4096))
        words = ("--output", small / "report.md", "--remedies", tmp_path / "ours")
        done = run("diagnose", leaker.pid, "--duration", "12s", *words, home=tmp_path)
        assert "our-buffers" in done.stdout
        assert "cannot write" in done.stderr
        assert "observed" in done.stdout
        case = re.search(r"^case: (.+)", done.stdout, re.MULTILINE)[1]  # type: ignore[index]
        again = run("report", case, "--output", small / "report.md")
        assert again.returncode == 0
        assert again.stdout.startswith("# ")
        assert "the report is on stdout" in again.stderr


@pytest.mark.parametrize("name", ["none/report.md", ".", "report.html"])
def test_unwritable_output_is_refused_before_observing(leaker: Child, tmp_path: Path, name: str) -> None:
    began = time.monotonic()
    done = run("diagnose", leaker.pid, "--duration", "60s", "--output", tmp_path / name, home=tmp_path)
    assert time.monotonic() - began < 30  # it did not observe for 60 s
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == (2 if name.endswith("html") else 1)
    if name.endswith("html"):
        assert ".md, .json or .txt" in done.stderr


@pytest.mark.parametrize("seconds", [2, 14])
def test_interrupt_prints_the_verdict_if_there_is_one(leaker: Child, tmp_path: Path, seconds: int) -> None:
    case = tmp_path / "interrupted.case"
    with subprocess.Popen(
        [*PYTHON, "diagnose", str(leaker.pid), "--duration", "90s", "--record", case],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as observer:  # fmt: skip
        wait_for_seconds(case, seconds)
        observer.send_signal(signal.SIGINT)
        out, err = observer.communicate(timeout=40)
    assert observer.returncode == 130
    assert str(case) in err
    assert {path.name for path in tmp_path.iterdir()} == {"interrupted.case"}
    if seconds > 10:
        assert out.split()[0] in ("GROWING", "LEAK")
        assert "diag_keep_mappings.py" in out
    else:
        assert out == ""
    assert leaker.alive


def wait_for_seconds(case: Path, seconds: float) -> None:
    """Until the growing case holds samples over so many seconds."""
    end = time.monotonic() + seconds + 40
    while time.monotonic() < end:
        with contextlib.suppress(CaseError), CaseFile.open(case) as file:
            if file.counts()["sample"]:
                span = file.span("sample", "t_ns")
                if span is not None and span[1] - span[0] > seconds * 1e9:
                    return
        time.sleep(0.1)
    raise AssertionError(f"no {seconds} s in {case}")
