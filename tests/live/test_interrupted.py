"""memforensics is ended from outside: by signals, by SIGKILL, by a terminal that closes. `make attack` repeats it."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest
from attack.command_killed import WAYS, command_left
from attack.gdb_killed import until
from attack.interrupted import interrupted_often
from processes import compiled, running

pytestmark = pytest.mark.live


@pytest.mark.parametrize("way", ["SIGHUP", "SIGQUIT", "SIGKILL", "terminal", "guard"])
def test_killed_memforensics_leaves_no_command(way: str) -> None:
    assert command_left(WAYS.index(way)) is None


@pytest.mark.needs_gdb
@pytest.mark.needs_bpf
@pytest.mark.parametrize("number", range(3))
def test_repeated_interrupts_give_no_traceback(number: int) -> None:
    assert interrupted_often(number) is None


def uses_bpf(pid: int) -> bool:
    for entry in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            if "bpf-prog" in os.readlink(f"/proc/{pid}/fd/{entry}"):
                return True
    return False


@pytest.mark.needs_bpf
def test_sigterm_ends_a_trace_like_ctrl_c() -> None:
    with running([compiled("gdb_chain.c")]) as target:
        command = [sys.executable, "-m", "memforensics", "trace-mmap", str(target.pid), "--duration", "60s"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as popen:
            assert until(lambda: uses_bpf(popen.pid))
            popen.send_signal(signal.SIGTERM)
            _, errors = popen.communicate(timeout=60)
    assert popen.returncode == 130, errors
    assert "interrupted" in errors
