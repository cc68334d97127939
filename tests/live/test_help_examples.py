"""The examples of --help, run as printed on a real process and a real case. Other tests run the commands that observe
for long (diagnose, watch, ci, prove, demo); tests/unit/test_cli.py checks that their examples parse."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from processes import Child, compiled, python, running

from memforensics.cli.app import app

pytestmark = [pytest.mark.live, pytest.mark.needs_bpf]

BIN = Path(sys.executable).parent
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def examples(*names: str) -> list[str]:
    """The examples of these commands, of those below them too."""
    found = []
    for command in (COMMANDS[name] for name in names):
        for one in (command, *getattr(command, "commands", {}).values()):
            found += [line.strip() for line in (one.epilog or "").splitlines() if line.startswith("  memforensics")]
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the cases and folders that examples name, and a process that maps memory."""
    folder = tmp_path_factory.mktemp("examples")
    with running(python("diag_keep_mappings.py", "--rate", "5", "--size", "1048576")) as child:
        words: list[str | Path] = [
            BIN / "memforensics",
            "trace-mmap",
            str(child.pid),
            "--duration",
            "3s",
            "--record",
            folder / "leak.case",
        ]
        subprocess.run(words, check=True, capture_output=True, timeout=60)
        for name in ("before", "after"):
            words = [
                BIN / "memforensics",
                "snapshot",
                str(child.pid),
                "--record",
                folder / f"{name}.case",
            ]
            subprocess.run(words, check=True, capture_output=True, timeout=60)
        for name in ("our-remedies", "debug-files", "image-unpacked"):
            (folder / name).mkdir()
        (folder / "pid").write_text(str(child.pid))
        yield folder


def run(line: str, folder: Path, pid: int) -> "subprocess.CompletedProcess[str]":
    """In a shell, as a person pastes it, with PIDs that are there."""
    line = re.sub(r"\b(4242|4711|4712)\b", str(pid), line)
    line = re.sub(r"--duration \w+", "--duration 2s", line) if line.startswith("memforensics trace") else line
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(folder)}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=90, cwd=folder, env=env)


RUN = ("hooks", "stacks", "snapshot", "trace-mmap", "case", "report", "remedies", "doctor")


@pytest.mark.parametrize("line", [e for e in examples(*RUN) if "--function" not in e and "--name" not in e])
def test_example_runs(line: str, place: Path) -> None:
    here = shutil.copytree(place, place.with_name("run"), dirs_exist_ok=True)
    for recorded in re.findall(r"--record (\S+)", line):
        (here / recorded).unlink(missing_ok=True)
    try:
        done = run(line, here, int((place / "pid").read_text()))
        made = sorted(path.name for path in here.iterdir())
    finally:
        shutil.rmtree(here)
    assert done.returncode == 0 or (done.returncode == 3 and "doctor" in line), done.stderr
    output = re.search(r"--output (\S+)", line)
    assert output[1] in made if output else done.stdout
    if "--json" in line:
        json.loads(done.stdout)


def test_diff_examples_run(place: Path) -> None:
    pid = int((place / "pid").read_text())
    for line in examples("diff"):
        if "watch.case" not in line:
            done = run(line.replace("4711 4712", f"{pid} {pid}").replace("10s", "1s"), place, pid)
            assert done.returncode == 0, done.stderr


@pytest.fixture
def chain() -> Iterator[Child]:
    with running([compiled("gdb_chain.c")]) as child:
        yield child


@pytest.mark.needs_gdb
def test_no_capture_exits_4_with_the_reason(chain: Child, place: Path) -> None:
    done = run("memforensics stacks 4242 --on mmap --if 'length == 1' --timeout 2s --json", place, chain.pid)
    assert done.returncode == 4
    assert json.loads(done.stdout)["captures"] == []
    assert "nothing was captured: no call of mmap where length == 1 in 2 s" in done.stderr


@pytest.mark.needs_gdb
@pytest.mark.needs_ucx
def test_function_of_the_example_exists_in_ucx(ucx_example: Any, place: Path) -> None:
    (line,) = [line for line in examples("stacks") if "--function" in line]
    with running(ucx_example("1.19.0", "--rate", "max"), timeout=120) as child:
        done = run(f"{line} --timeout 40s", place, child.pid)
    assert done.returncode == 0, done.stderr
    assert "ucs_mpool_grow" in done.stdout
