"""doctor on this host: its statements must be true."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import python, running

from memforensics.case.views import Check
from memforensics.errors import NoSuchProcess
from memforensics.jobs.doctor import examine

pytestmark = pytest.mark.live
NOBODY = 65534


def named(checks: tuple[Check, ...]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_every_check_has_a_result_and_a_remedy() -> None:
    checks = examine().checks
    assert len(named(checks)) == len(checks), "names are unique"
    assert all(check.why for check in checks)
    assert all(check.enable for check in checks if not check.ok)


@pytest.mark.needs_bpf
@pytest.mark.needs_bpftrace
@pytest.mark.needs_gdb
def test_working_features_are_reported_as_working() -> None:
    checks = named(examine().checks)
    for name in ("BPF program: tracepoint", "BPF ring buffer", "tracefs", "tracepoints", "attach to a tracepoint"):
        assert checks[name].ok, name
    for name in ("bcc", "bpftrace", "gdb", "CAP_BPF", "CAP_SYS_PTRACE", "ptrace_scope"):
        assert checks[name].ok, name
    assert "bpftrace v" in checks["bpftrace"].why
    assert examine().exit_code == 0


def test_missing_tools_name_their_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    checks = named(examine().checks)
    for tool in ("gdb", "bpftrace"):
        assert not checks[tool].ok
        assert checks[tool].enable == f"sudo apt-get install {tool}"


def test_wrong_bcc_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc" / "__init__.py").write_text("")
    command = [sys.executable, "-m", "memforensics", "doctor", "--json"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    (check,) = [c for c in json.loads(done.stdout)["checks"] if c["name"] == "bcc"]
    assert not check["ok"]
    assert "unrelated" in check["why"]
    assert "pip uninstall bcc" in check["enable"]
    assert done.returncode == 3


def test_checks_of_one_process() -> None:
    with running(python("ex_python_heap.py")) as child:
        checks = named(examine(child.pid).checks)
    assert checks[f"process {child.pid}"].ok
    assert checks["its memory"].ok
    assert checks["program"].why.startswith("64-bit")
    assert checks["debugger"].why == "none attached"


def test_no_such_process() -> None:
    with pytest.raises(NoSuchProcess):
        examine(2**22 - 1)


@pytest.mark.needs_root
def test_missing_privileges_are_reported_and_exit_3() -> None:
    """Everything is imported before the rights go: another user may not be able to read this checkout."""
    with running(python("ex_python_heap.py")) as child:
        code = (
            "import os\n"
            "from memforensics.jobs.doctor import examine\n"
            f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
            f"e = examine({child.pid})\n"
            "print([c.name for c in e.checks if c.essential and not c.ok], e.exit_code)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "BPF program: tracepoint" in done.stdout
    assert "its memory" in done.stdout
    assert done.stdout.strip().endswith("3")
