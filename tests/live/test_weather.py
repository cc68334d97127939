"""Wrong input and failures: one clear line with the remedy, the exit code, an unharmed target, a kept case."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Child, python, running

from memforensics.case.store import CaseFile

pytestmark = pytest.mark.live

PYTHON = [sys.executable, "-m", "memforensics"]
LEAKER = python("diag_keep_mappings.py", "--rate", "20")


SETPRIV = shutil.which("setpriv") or "setpriv"  # of util-linux
BARE = [SETPRIV, "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PYTHON, *map(str, words)], capture_output=True, text=True, timeout=60)


def says_clearly(done: subprocess.CompletedProcess[str], exit_code: int, *words: str) -> None:
    assert done.returncode == exit_code, done.stderr
    first = done.stderr.strip().splitlines()[0]
    assert first.startswith("memforensics: ")
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def leaker() -> Iterator[Child]:
    with running(LEAKER) as child:
        yield child


PER_PID = ["diagnose", "watch", "snapshot", "hooks", "trace-mmap", "stacks", "heap"]


def words_for(command: str, pid: object) -> list[object]:
    return [
        command,
        pid,
        *(["--on", "mmap"] if command == "stacks" else []),
        *(["--memray"] if command == "heap" else []),
    ]


@pytest.mark.parametrize("command", PER_PID)
def test_unknown_pid(command: str) -> None:
    pid = int(Path("/proc/sys/kernel/pid_max").read_text())  # the kernel gives lower numbers only
    says_clearly(run(*words_for(command, pid)), 3, f"no process has PID {pid}")


@pytest.mark.parametrize("command", PER_PID)
def test_kernel_thread(command: str) -> None:
    if not Path("/proc/2/comm").exists() or Path("/proc/2/comm").read_text() != "kthreadd\n":
        pytest.skip("in a PID namespace: no kernel threads to be seen")
    says_clearly(run(*words_for(command, 2)), 3, "kernel thread")


@pytest.mark.parametrize("command", PER_PID)
def test_zombie(command: str) -> None:
    with subprocess.Popen(["/bin/true"]) as child:
        while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
        says_clearly(run(*words_for(command, child.pid)), 3, "zombie", f"watch {os.getpid()}")


@pytest.mark.parametrize("word", ["abc", "-5", "0", "99999999999999999999"])
def test_missing_pid(word: str) -> None:
    done = run("diagnose", word)
    assert done.returncode in (2, 3), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["diagnose", "watch", "trace-mmap", "snapshot", "hooks"])
def test_without_a_pid_likely_targets_are_listed(command: str, leaker: Child) -> None:
    done = run(command)
    assert done.returncode == 2
    assert str(leaker.pid) in done.stderr or "likely targets" in done.stderr.lower()
    assert "PID" in done.stderr


def test_bad_duration() -> None:
    done = run("diagnose", os.getpid(), "--duration", "soon")
    assert done.returncode == 2
    assert "60s" in done.stderr


@pytest.mark.needs_root
@pytest.mark.parametrize("command", PER_PID)
def test_process_of_another_user(command: str) -> None:
    """A user without any capability looks at a process of another user."""
    nobody = [SETPRIV, "--reuid=65534", "--regid=65534", "--clear-groups"]
    with running([*nobody, "/bin/sh", "-c", "echo ready; exec sleep 60"]) as child:
        words = [*BARE, *PYTHON, *map(str, words_for(command, child.pid))]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        says_clearly(done, 3, "not allowed", "CAP_SYS_PTRACE")
        assert child.alive


@pytest.mark.needs_bpf
def test_exit_of_the_target_leaves_a_case_and_a_report(tmp_path: Path) -> None:
    case = tmp_path / "exits.case"
    with running(LEAKER) as child:
        with subprocess.Popen(
            [*PYTHON, "diagnose", str(child.pid), "--duration", "30s", "--record", case, "--json"],
            stdout=subprocess.PIPE, text=True,
        ) as observer:  # fmt: skip
            _wait_for_samples(case, 6)
            os.kill(child.pid, signal.SIGKILL)
            out, _ = observer.communicate(timeout=30)
        report = json.loads(out)
        assert observer.returncode == report["exit_code"]
        assert report["target"]["left"] == "it exited"
        assert any("exited" in item["why"] for item in report["not_seen"])


@pytest.mark.needs_bpf
def test_exec_of_the_target_is_reported(tmp_path: Path) -> None:
    case = tmp_path / "execs.case"
    program = "import sys,os; print('ready',flush=True); sys.stdin.readline(); os.execv('/bin/sleep',['sleep','60'])"
    with running([sys.executable, "-c", program]) as child:
        with subprocess.Popen(
            [*PYTHON, "diagnose", str(child.pid), "--duration", "10s", "--record", case, "--json"],
            stdout=subprocess.PIPE, text=True,
        ) as observer:  # fmt: skip
            _wait_for_samples(case, 4)
            child.tell("go")
            out, _ = observer.communicate(timeout=40)
        assert json.loads(out)["verdict"] != "leak"
        assert child.alive


@pytest.mark.needs_bpf
@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_keeps_the_case(leaker: Child, tmp_path: Path, sig: signal.Signals) -> None:
    case = tmp_path / "interrupted.case"
    with subprocess.Popen(
        [*PYTHON, "diagnose", str(leaker.pid), "--duration", "60s", "--record", case],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as observer:  # fmt: skip
        _wait_for_samples(case, 4)
        observer.send_signal(sig)
        _, err = observer.communicate(timeout=30)
    assert observer.returncode == 130
    assert str(case) in err
    assert "Traceback" not in err
    again = run("report", case)
    assert again.returncode == 0, again.stderr
    assert leaker.alive


@pytest.mark.needs_bpf
@pytest.mark.parametrize("delay", [0.0, 0.15, 0.4, 0.8, 1.5])
def test_interrupt_at_any_moment_gives_one_line(leaker: Child, tmp_path: Path, delay: float) -> None:
    """The delays are the input here: they put the signal at different places of the start."""
    with subprocess.Popen(
        [*PYTHON, "diagnose", str(leaker.pid), "--duration", "60s", "--record", tmp_path / "a.case"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as observer:  # fmt: skip
        time.sleep(delay)
        observer.send_signal(signal.SIGINT)
        _, err = observer.communicate(timeout=30)
    if "memforensics/__main__.py" in err or "Traceback" not in err:  # else Python itself was interrupted at its start
        assert observer.returncode in (130, -signal.SIGINT), err
        assert "Traceback" not in err
    assert leaker.alive


@pytest.mark.needs_bpf
def test_sigkill_keeps_the_case_and_the_target(leaker: Child, tmp_path: Path) -> None:
    case = tmp_path / "killed.case"
    with subprocess.Popen([*PYTHON, "diagnose", str(leaker.pid), "--duration", "60s", "--record", case]) as observer:
        _wait_for_samples(case, 6)
        observer.kill()
        observer.wait(timeout=10)
    with CaseFile.open(case) as file:
        kept = file.load()
    assert len(kept.samples) >= 6
    assert leaker.alive
    assert Path(f"/proc/{leaker.pid}/stat").read_text().rpartition(")")[2].split()[0] in "RSD"
    assert run("report", case).returncode == 0


@pytest.mark.needs_root
def test_without_ebpf_the_figures_of_proc_are_reported(tmp_path: Path) -> None:
    """Both sides without any capability: the kernel lets us read /proc, and refuses eBPF."""
    case = tmp_path / "bare.case"
    with running([*BARE, *LEAKER]) as child:
        done = subprocess.run(
            [*BARE, *PYTHON, "diagnose", str(child.pid), "--duration", "15s", "--record", case, "--json"],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["verdict"] == "growing", done.stderr
    assert report["findings"][0]["layer"] == "anon-mmap"
    assert report["findings"][0]["culprit"] is None
    probe = next(p for p in report["observed"]["probes"] if p["name"] == "mmap-trace")
    assert probe["status"] == "unavailable"
    assert probe["why"]
    assert probe["enable"]
    assert any(item["enable"] for item in report["not_seen"])


def test_existing_case_is_not_overwritten(leaker: Child, tmp_path: Path) -> None:
    case = tmp_path / "there.case"
    case.write_text("something of mine")
    says_clearly(run("diagnose", leaker.pid, "--duration", "10s", "--record", case), 3, "already exists")
    assert case.read_text() == "something of mine"


def _wait_for_samples(case: Path, count: int) -> None:
    """Until the growing case file has that many samples committed."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if case.exists():
            try:
                with CaseFile.open(case) as file:
                    if file.counts()["sample"] >= count:
                        return
            except Exception:  # noqa: BLE001 - being created just now
                pass
        time.sleep(0.1)
    raise AssertionError("the case did not grow")
