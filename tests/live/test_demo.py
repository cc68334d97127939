"""demo on the fixed version (test_wheel has the leaking one), and that it leaves no process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from attack.command_killed import SETTLE_S, lives
from attack.gdb_killed import until

from memforensics.errors import ProbeFailed, UsageError
from memforensics.jobs.demo import demo, example, leaks

pytestmark = pytest.mark.live


@pytest.mark.needs_ucx
@pytest.mark.needs_bpf
def test_fixed_version_does_not_leak(tmp_path: Path) -> None:
    started: list[int] = []
    outcome = demo("1.21.0", 15, record=tmp_path / "demo.case", on_start=started.append)
    assert outcome.diagnosis.verdict in ("steady", "bounded")
    assert not any(finding.remedies for finding in outcome.diagnosis.findings)
    assert outcome.exit_code == 0
    assert not Path(f"/proc/{started[0]}").exists(), "the example was stopped"
    assert (tmp_path / "demo.case").exists()


@pytest.mark.needs_ucx
@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGHUP, signal.SIGQUIT])
def test_ended_demo_leaves_no_process(way: signal.Signals) -> None:
    command = [sys.executable, "-m", "memforensics", "demo", "--duration", "60s"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as popen:
        assert popen.stderr is not None
        pid = next(int(line.split()[-1]) for line in popen.stderr if line.startswith("started"))
        assert lives(pid)
        popen.send_signal(way)
        assert until(lambda: not lives(pid), SETTLE_S)
        popen.communicate(timeout=30)
        assert popen.returncode == (-way if way == signal.SIGKILL else 130)


def test_example_that_does_not_start_gives_one_error(tmp_path: Path) -> None:
    broken = tmp_path / "run.py"
    broken.write_text("print('nothing ready here'); raise SystemExit(3)\n")
    with (
        pytest.raises(ProbeFailed, match=r"did not start") as caught,
        example("1.19.0", launcher=broken),
    ):
        raise AssertionError("unreachable")
    assert "nothing ready here" in caught.value.why


@pytest.mark.parametrize(
    ("version", "environment", "expected"),
    [
        ("1.19.0", {}, True),
        ("1.20.1", {}, True),
        ("1.21.0", {}, False),
        ("1.19.0", {"UCX_MEM_MMAP_HOOK_MODE": "none"}, False),
        ("1.19.0", {"UCX_MEM_MMAP_HOOK_MODE": "reloc"}, True),
        ("1.19.0", {"UCX_RCACHE_MAX_UNRELEASED": "1024"}, False),
    ],
)
def test_expected_verdict_of_a_version(version: str, environment: dict[str, str], expected: bool) -> None:
    assert leaks(version, environment) is expected


def test_invalid_version_is_refused() -> None:
    with pytest.raises(UsageError, match="not a version"):
        leaks("newest", os.environ)
