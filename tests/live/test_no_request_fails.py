"""Every command in turn on the serving UCX example: no request fails, and the example survives."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from cli import memforensics
from processes import running

pytestmark = [pytest.mark.live, pytest.mark.needs_bpf, pytest.mark.needs_gdb, pytest.mark.needs_ucx]

COMMANDS = [
    ["snapshot", "PID", "--json"],
    ["hooks", "PID", "--json"],
    ["diff", "PID", "--over", "2s", "--json"],
    ["watch", "PID", "--duration", "4s", "--json"],
    ["trace-mmap", "PID", "--duration", "4s", "--json"],
    ["trace-mmap", "PID", "--duration", "4s", "--engine", "bpftrace", "--json"],
    ["trace-faults", "PID", "--duration", "4s", "--json"],
    ["stacks", "PID", "--on", "mmap", "--count", "3", "--json"],
    ["stacks", "PID", "--function", "ucs_mpool_grow", "--count", "2", "--json"],
    ["doctor", "PID", "--json"],
    ["diagnose", "PID", "--duration", "10s", "--json"],
]


def test_no_request_fails_during_any_command(ucx_example: Callable[..., list[str | Path]], tmp_path: Path) -> None:
    with running(ucx_example("1.19.0", "--rate", "100"), timeout=60) as child:
        served_before = 0
        for words in COMMANDS:
            case = ["--record", str(tmp_path / "a.case")] if words[0] == "diagnose" else []
            done = memforensics(*(str(child.pid) if word == "PID" else word for word in words), *case)
            assert done.stdout, (words, done.stderr)
            assert "Traceback" not in done.stderr, words
            assert child.alive, words
            os.kill(child.pid, signal.SIGUSR1)
            found = re.match(r"served (\d+) failed (\d+)", child.wait_for("served"))
            assert found is not None
            served, failed = int(found[1]), int(found[2])
            assert failed == 0, words
            assert served > served_before, words
            served_before = served
