"""stacks is killed, damaged and interfered with: the target is never left stopped, and never continued against an
operator's will. `make attack` repeats the kills fifty times."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from attack.gdb_killed import (
    QUIET,
    all_killed,
    attached,
    cgroup_killed,
    damaged_output,
    left_wrong,
    odd_name_gdb_killed,
    status_of,
    tracer_of,
    until,
)
from processes import compiled, running

from memforensics.errors import ProbeFailed
from memforensics.jobs.stacks import stacks

pytestmark = [pytest.mark.live, pytest.mark.needs_gdb]


@pytest.mark.parametrize("attempt", [all_killed, cgroup_killed, odd_name_gdb_killed, damaged_output])
def test_short_form_of_the_attacks(attempt: Callable[[int], str | None]) -> None:
    assert [attempt(number) for number in range(2)] == [None, None]


def test_name_that_is_not_utf8(tmp_path: Path) -> None:
    with running([compiled("gdb_chain.c"), "0", "rename"]) as child:
        view = stacks(child.pid, on="mmap", count=1, timeout_s=20)
        assert len(view.captures) == 1
        assert left_wrong(child) is None


def run_stacks(pid: int, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "memforensics", "stacks", str(pid), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def runs_under_gdb(pid: int) -> bool:
    return tracer_of(pid) != 0 and status_of(pid)["State"][0] in "SR"


def test_target_is_alive_after_its_tracers_were_killed() -> None:
    with running([compiled("gdb_chain.c")]) as child, run_stacks(child.pid, *QUIET) as command:
        gdb, guard = attached(child.pid)
        assert until(lambda: runs_under_gdb(child.pid))
        os.kill(guard, signal.SIGKILL)
        os.kill(gdb, signal.SIGKILL)
        _, errors = command.communicate(timeout=30)
        assert command.returncode == 3
        assert "is gone" not in errors
        assert f"process {child.pid} continues" in errors
        assert left_wrong(child) is None


def test_target_is_alive_after_an_early_detach() -> None:
    with running([compiled("gdb_chain.c")]) as child, run_stacks(child.pid, *QUIET) as command:
        gdb, _ = attached(child.pid)
        assert until(lambda: runs_under_gdb(child.pid))
        os.kill(gdb, signal.SIGTERM)
        _, errors = command.communicate(timeout=30)
        assert command.returncode == 3
        assert "is gone" not in errors
        assert left_wrong(child) is None


def test_stop_by_an_operator_during_the_capture_stays() -> None:
    with (
        running([compiled("gdb_chain.c")]) as child,
        run_stacks(child.pid, "--on", "brk", "--timeout", "6s") as command,
    ):
        attached(child.pid)
        assert until(lambda: runs_under_gdb(child.pid))
        child.popen.send_signal(signal.SIGSTOP)
        assert command.wait(40) == 4  # nothing called brk
        assert until(lambda: status_of(child.pid)["State"][0] == "T", 5)
        time.sleep(0.5)  # nobody continues it later
        assert status_of(child.pid)["State"][0] == "T"
        child.popen.send_signal(signal.SIGCONT)
        assert left_wrong(child) is None


def test_stopped_target_is_refused_and_stays_stopped() -> None:
    with running([compiled("gdb_chain.c")]) as child:
        child.popen.send_signal(signal.SIGSTOP)
        assert until(lambda: status_of(child.pid)["State"][0] == "T")
        with pytest.raises(ProbeFailed, match="is stopped"):
            stacks(child.pid, on="mmap")
        assert status_of(child.pid)["State"][0] == "T"
        child.popen.send_signal(signal.SIGCONT)
        assert left_wrong(child) is None
