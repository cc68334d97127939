"""Refused resources: a full disk, no standard output, few descriptors, little memory. One clear line, exit 3."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.constructed import case
from processes import Child, python, running

from memforensics.case.store import CaseFile

pytestmark = pytest.mark.live
COMMANDS = {
    "watch": "watch {pid} --duration 3s --interval 200ms --no-children",
    "diagnose": "diagnose {pid} --duration 10s --record {folder}/x.case",
    "snapshot": "snapshot {pid}",
    "report": "report {folder}/leak.case",
    "trace-mmap": "trace-mmap {pid} --duration 1s",
}


@pytest.fixture(scope="module")
def target() -> Iterator[Child]:
    with running(python("watch_grower.py", "leak", "60"), ready=None) as child:
        yield child


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    whole = case()
    with CaseFile.create(tmp_path / "leak.case", whole.meta) as file:
        file.put([*whole.targets, *whole.samples])
    return tmp_path


def sh(command: str, before: str = "", after: str = "") -> subprocess.CompletedProcess[str]:
    """In a shell, so that limits and redirections are those of an operator."""
    return subprocess.run(
        ["bash", "-c", f"{before} exec {sys.executable} -m memforensics {command} {after}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def words(name: str, target: Child, folder: Path) -> str:
    return COMMANDS[name].format(pid=target.pid, folder=folder)


@pytest.mark.needs_bpf
@pytest.mark.parametrize("name", COMMANDS)
def test_full_standard_output(name: str, target: Child, folder: Path) -> None:
    done = sh(words(name, target, folder), after="> /dev/full")
    assert (done.returncode, "cannot write to standard output" in done.stderr) == (3, True), done.stderr
    assert "bug" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.needs_bpf
@pytest.mark.parametrize("name", COMMANDS)
def test_closed_standard_output(name: str, target: Child, folder: Path) -> None:
    done = sh(words(name, target, folder), after=">&-")
    assert (done.returncode, done.stderr) == (3, "memforensics: standard output is closed\n")


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
def test_closed_standard_input_or_error(closed: str, target: Child, folder: Path) -> None:
    done = sh(f"snapshot {target.pid} --json --record {folder}/s.case", after=closed)
    assert done.returncode == 0
    assert json.loads(done.stdout)["pid"] == target.pid
    with CaseFile.open(folder / "s.case") as file:
        assert len(file.load().snapshots) == 1


@pytest.mark.needs_bpf
@pytest.mark.parametrize(
    ("name", "limit"),
    [
        *((name, "ulimit -n 64;") for name in COMMANDS),
        *((name, "ulimit -n 14;") for name in ("watch", "snapshot", "trace-mmap")),
        *((name, "ulimit -v 1048576;") for name in ("watch", "snapshot", "trace-mmap")),
        *((name, "ulimit -v 120000;") for name in ("report", "snapshot")),
    ],
)
def test_low_limits_of_descriptors_and_memory(name: str, limit: str, target: Child, folder: Path) -> None:
    """It works, or says what is missing."""
    done = sh(words(name, target, folder), before=limit)
    assert done.returncode in (0, 3, 4), (done.returncode, done.stderr[-600:])
    assert "bug" not in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode != 3 or "memforensics: " in done.stderr


@pytest.mark.parametrize("name", ["watch", "snapshot", "report"])
def test_closed_pipe_gives_no_error(name: str, target: Child, folder: Path) -> None:
    done = sh(words(name, target, folder), before="set -o pipefail; (", after=") | head -c 1")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.needs_root
def test_watch_goes_on_if_the_disk_of_its_case_is_full(target: Child, tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", place], check=True)
    try:
        words = ["watch", str(target.pid), "--json", "--interval", "200ms", "--record", str(place / "w.case")]
        with running([sys.executable, "-m", "memforensics", *words], ready=None) as watch:
            for _ in range(15):  # a commit comes each 2 s
                assert json.loads(watch.read_line(60))["record_ended"] is None
            with contextlib.suppress(OSError), open(place / "filler", "wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(4096))
            while json.loads(watch.read_line(60))["record_ended"] is None:
                pass
            assert json.loads(watch.read_line(60))["record_ended"]
            os.kill(watch.pid, signal.SIGINT)
            assert watch.popen.wait(30) == 130
        with CaseFile.open(place / "w.case") as file:
            assert file.load().samples
    finally:
        subprocess.run(["umount", "-l", place], check=True)
