"""heap --memray on a program that keeps blocks of a known size on one line, and its refusals."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from attack.gdb_killed import memray_killed, memray_orphaned, status_of, until
from processes import compiled, python, running

from memforensics.case.store import CaseFile
from memforensics.errors import NotATarget, ProbeFailed, ToolMissing
from memforensics.jobs.heap import check_memray, heap_memray

pytestmark = [pytest.mark.live, pytest.mark.needs_gdb]
BLOCK = 1_000_004  # bytearray(1_000_003) asks malloc for one byte more


def memforensics(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "memforensics", *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def test_line_that_holds_memory_is_named(tmp_path: Path) -> None:
    case_path = tmp_path / "heap.case"
    with running(python("ex_python_heap.py")) as child:
        done = memforensics(
            "heap", str(child.pid), "--memray", "--yes", "--duration", "1s", "--json", "--record", str(case_path)
        )
        assert done.returncode == 0, done.stderr
        assert child.alive
    answer = json.loads(done.stdout)
    top = answer["sites"][0]
    assert top["stack"][0]["function"] == "keep_a_block"
    assert top["stack"][0]["file"].endswith("ex_python_heap.py")
    assert top["count"] > 0
    assert top["outstanding_bytes"] == top["count"] * BLOCK
    assert answer["outstanding_bytes"] >= top["outstanding_bytes"]
    assert answer["allocated_bytes"] > answer["outstanding_bytes"], "churn was allocated, not held"
    assert answer["pause_ms"]["total"] > 0
    with CaseFile.open(case_path) as file:
        case = file.load()
    assert case.heap_profiles[0].outstanding_bytes == answer["outstanding_bytes"]
    assert case.sites[0].kind == "malloc"
    assert case.pauses[0].probe == "memray"


def test_consent_is_required() -> None:
    with running(python("ex_python_heap.py")) as child:
        done = memforensics("heap", str(child.pid), "--memray")
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert "runs code inside the process" in done.stderr


def test_heap_without_the_option_names_memray() -> None:
    done = memforensics("heap", str(os.getpid()))
    assert done.returncode == 3
    assert "--memray" in done.stderr


def test_other_process_than_python_is_refused() -> None:
    with running([compiled("bt_maps.c"), "1", "4096", "0"]) as child, pytest.raises(NotATarget, match="not a Python"):
        check_memray(child.pid)


def test_python_without_memray_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "bare.py"
    script.write_text("print('ready', flush=True)\nwhile True: bytes(100_000)\n")
    with running([sys.executable, "-S", "-u", script]) as child:  # -S: no site-packages
        with pytest.raises(ProbeFailed, match="memray could not start") as caught:
            heap_memray(child.pid, 1)
        assert "pip install memray" in caught.value.enable
        assert child.alive


def test_process_with_a_debugger_is_refused(tmp_path: Path) -> None:
    with running(python("ex_python_heap.py")) as child:
        options = ["-nx", "-q", "-iex", "set auto-solib-add off", "-iex", "set may-insert-breakpoints off"]
        gdb = subprocess.Popen(
            ["gdb", *options, "-p", str(child.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert gdb.stdin is not None
            assert gdb.stdout is not None
            gdb.stdin.write(b"echo attached\\n\n")
            gdb.stdin.flush()
            while b"attached" not in (line := gdb.stdout.readline()):
                assert line, "gdb ended"
            with pytest.raises(ProbeFailed, match=f"process {gdb.pid} already traces"):
                check_memray(child.pid)
        finally:
            gdb.send_signal(signal.SIGTERM)
            gdb.communicate()


def test_stopped_process_is_refused_and_stays_stopped() -> None:
    with running(python("ex_python_heap.py")) as child:
        child.popen.send_signal(signal.SIGSTOP)
        assert until(lambda: status_of(child.pid)["State"][0] == "T")
        with pytest.raises(ProbeFailed, match="is stopped"):
            check_memray(child.pid)
        assert status_of(child.pid)["State"][0] == "T"


@pytest.mark.parametrize("attempt", [memray_killed, memray_orphaned])
def test_short_form_of_the_attacks(attempt: Callable[[int], str | None]) -> None:
    assert attempt(0) is None


def test_missing_gdb_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissing, match="gdb is not installed"):
        check_memray(os.getpid())
