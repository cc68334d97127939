"""Whether gdb may attach, on captured /proc text."""

from pathlib import Path

import pytest

from memforensics.errors import PermissionNeeded, ProbeFailed, ToolMissing
from memforensics.probes.gdb.capture import availability, check
from memforensics.target import Process, ProcFS

PID = 123


def process_in(
    root: Path, *, tracer: int = 0, state: str = "S (sleeping)", uid: int = 0, capabilities: str = "0", scope: str = ""
) -> Process:
    files = {
        "self/status": f"CapEff:\t{capabilities}\n",
        f"{PID}/status": f"State:\t{state}\nTracerPid:\t{tracer}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n",
        "77/stat": "77 (strange) gdb) S 1 77 77 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 5 0 0\n",
    }
    if scope:
        files["sys/kernel/yama/ptrace_scope"] = f"{scope}\n"
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Process(pid=PID, start_ticks=5, proc=ProcFS(root), exe_id=None)


@pytest.fixture(autouse=True)
def gdb_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "gdb"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(program.parent))


ALL = "000001ffffffffff"


def test_capable_user_may_attach(tmp_path: Path) -> None:
    assert check(process_in(tmp_path, uid=4711, capabilities=ALL, scope="2")).endswith("/bin/gdb")
    assert availability(process_in(tmp_path, capabilities=ALL)).status == "ok"


def test_tracer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProbeFailed, match=r"strange\) gdb \(PID 77\) already traces"):
        check(process_in(tmp_path, tracer=77, capabilities=ALL))


def test_stopped_process_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProbeFailed, match="is stopped") as raised:
        check(process_in(tmp_path, state="T (stopped)", capabilities=ALL))
    assert raised.value.enable == f"kill -CONT {PID}"


def test_ptrace_scope_and_other_users_need_a_capability(tmp_path: Path) -> None:
    with pytest.raises(PermissionNeeded, match="another user"):
        check(process_in(tmp_path, uid=4711))
    with pytest.raises(PermissionNeeded) as raised:
        check(process_in(tmp_path, uid=4711, scope="1"))
    assert raised.value.privilege == "CAP_SYS_PTRACE"
    with pytest.raises(PermissionNeeded, match="does not allow any process to be traced"):
        check(process_in(tmp_path, capabilities=ALL, scope="3"))


def test_missing_gdb_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ToolMissing) as raised:
        check(process_in(tmp_path, capabilities=ALL))
    assert "apt-get install" in raised.value.enable
    assert availability(process_in(tmp_path, capabilities=ALL)).status == "unavailable"
