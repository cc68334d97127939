"""The trace of page faults on the real UCX leak, whose leaker touches its own pages."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Child, running

pytestmark = [pytest.mark.live, pytest.mark.needs_bpf, pytest.mark.needs_ucx]


def served(child: Child) -> int:
    """Asks for the counts now. Every request must have been answered."""
    os.kill(child.pid, signal.SIGUSR1)
    words = child.wait_for("served").split()
    assert words[3] == "0", "a request failed"
    return int(words[1])


def test_the_leak_is_seen_and_no_request_fails(ucx_example: Callable[..., list[str | Path]]) -> None:
    command = ucx_example("1.19.0", "--rate", "max", "--report-every", "600")
    with running(command, timeout=300) as child:
        before = served(child)
        trace = [sys.executable, "-m", "memforensics", "trace-faults", str(child.pid), "--duration", "4s", "--json"]
        ended = subprocess.run(trace, capture_output=True, check=True, timeout=60)
        assert served(child) > before
    told = json.loads(ended.stdout)
    assert 0.95 <= told["coverage"] <= 1.05
    resident = [s for s in told["sites"] if not s["file_backed"]]
    guilty = [s for s in resident if "ucs_mpool_grow" in [f["function"] for f in s["stack"]]]
    assert sum(s["outstanding_bytes"] for s in guilty) >= 0.95 * sum(s["outstanding_bytes"] for s in resident)
    top = resident[0]["stack"]
    assert next(f for f in top if f["kind"] == "python")["function"].endswith("stage_tensor")
    assert resident[0]["complete"]
    churned = sum(s["allocated_bytes"] for s in resident) - sum(s["outstanding_bytes"] for s in resident)
    assert churned > sum(s["outstanding_bytes"] for s in resident)
