"""prove and ci on a program whose growth its environment sets."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import defusedxml.ElementTree as Xml
import pytest
from processes import LEAKERS

from memforensics.analysis.effects import compare_variants
from memforensics.case.store import CaseFile
from memforensics.errors import ProbeFailed, UsageError
from memforensics.jobs.experiment.command import started
from memforensics.jobs.experiment.runs import Variant, experiment, parse_variants
from memforensics.units import MIB

pytestmark = pytest.mark.live

COMMAND = [sys.executable, "-u", str(LEAKERS / "experiment_grower.py")]


Done = subprocess.CompletedProcess[str]


def memforensics(*words: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> Done:
    return subprocess.run(
        [sys.executable, "-m", "memforensics", *words],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
        cwd=cwd,
        env={**os.environ, **(env or {})},
    )


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_each_variant_has_its_own_effect(tmp_path: Path) -> None:
    record = tmp_path / "prove.case"
    words = ["--env", "GROW=0", "--env", "GROW=30", "--env", "GROW=400", "--env", "OTHER=1", "--env", "FAIL=3"]
    done = memforensics(
        "prove", *words, "--duration", "14s", "--rounds", "1", "--json", "--record", str(record), "--", *COMMAND
    )
    found: dict[str, Any] = {v["name"]: v for v in json.loads(done.stdout)["variants"]}
    assert {name: v["effect"] for name, v in found.items()} == {
        "plain": "baseline",
        "GROW=0": "works",
        "GROW=30": "partly",
        "GROW=400": "worse",
        "OTHER=1": "none",
        "FAIL=3": "not-shown",
    }
    assert done.returncode == 0
    assert found["plain"]["growth"]["bytes_per_minute"]["estimate"] == pytest.approx(120 * MIB, rel=0.1)
    assert found["plain"]["throughput"] == pytest.approx(100, rel=0.5)
    assert "exit code 3" in found["FAIL=3"]["why"]
    with CaseFile.open(record) as file:
        again = compare_variants(file.load())
    assert {r.name: r.effect for r in again} == {name: v["effect"] for name, v in found.items()}


def test_no_effect_is_shown_if_the_plain_command_does_not_grow() -> None:
    done = memforensics(
        "prove", "--env", "OTHER=1", "--duration", "10s", "--rounds", "1", "--json", "--", *COMMAND, env={"GROW": "0"}
    )
    assert [v["effect"] for v in json.loads(done.stdout)["variants"]] == ["baseline", "not-shown"]
    assert done.returncode == 4


def test_command_is_ended_with_children_in_other_sessions(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    variants = (Variant("plain", (("IN_CHILD", "1"), ("PID_FILE", str(file)))),)
    case, _ = experiment(COMMAND, variants, seconds=3.0, rounds=1)
    assert gone(case.runs[0].root_pid)
    assert gone(int(file.read_text()))
    assert case.runs[0].exit_code is None


def test_failing_command_is_reported_with_its_last_output() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with pytest.raises(ProbeFailed) as caught:
        experiment(command, (Variant("plain"),), seconds=5, rounds=1)
    assert "exit code 1" in caught.value.what
    assert "no such model" in caught.value.why


def test_missing_command_is_refused() -> None:
    with pytest.raises(UsageError), started(["/nowhere/at/all"]):
        pass


@pytest.mark.parametrize("env", [["A"], ["=1"], ["A B=1"], []])
def test_invalid_variants_are_refused(env: list[str]) -> None:
    with pytest.raises(UsageError):
        parse_variants(env, [])


def test_variant_with_several_assignments() -> None:
    found = parse_variants(["A=1,2"], ["A=1 B='x y'"])
    assert [v.env for v in found] == [(), (("A", "1,2"),), (("A", "1"), ("B", "x y"))]


def test_command_with_much_output_is_not_blocked() -> None:
    program = "import time\nfor i in range(200000): print('x' * 60)\nprint('units 7', flush=True)\ntime.sleep(60)"
    with started([sys.executable, "-c", program]) as run:
        end = time.monotonic() + 30
        while run.units_done is None and time.monotonic() < end:
            time.sleep(0.05)
    assert run.units_done == 7.0
    assert gone(run.pid)


@pytest.mark.parametrize(("rate", "code", "verdict"), [("240", 4, "growing"), ("0", 0, "steady")])
def test_gate_fails_on_growth_and_passes_without(tmp_path: Path, rate: str, code: int, verdict: str) -> None:
    # of 20 s, readying the probes takes a few
    words = ["--duration", "20s", "--warmup", "1s", "--junit", "out.xml", "--json", "--name", "soak"]
    done = memforensics("ci", *words, "--record", "gate.case", "--", *COMMAND, cwd=tmp_path, env={"GROW": rate})
    (scenario,) = json.loads(done.stdout)["scenarios"]
    assert (done.returncode, scenario["verdict"], scenario["passed"]) == (code, verdict, code == 0)
    assert scenario["name"] == "soak"
    assert (tmp_path / "gate.md").read_text()
    suite = Xml.parse(tmp_path / "out.xml").getroot().find("testsuite")
    assert suite.get("tests") == "1"
    assert suite.get("failures") == ("1" if code else "0")
    failure = suite.find("testcase/failure")
    assert (failure is None) == (code == 0)
    if failure is not None:
        assert failure.get("message").startswith("growing: ")


def test_late_leak_does_not_pass_the_gate(tmp_path: Path) -> None:
    def gate(share: float) -> tuple[int, dict[str, Any]]:
        late = [sys.executable, str(LEAKERS / "watch_grower.py"), "late", "240", str(40 * share)]
        done = memforensics("ci", "--duration", "40s", "--json", "--record", f"{share}.case", "--", *late, cwd=tmp_path)
        (scenario,) = json.loads(done.stdout)["scenarios"]
        return done.returncode, scenario

    with ThreadPoolExecutor() as pool:
        for code, scenario in pool.map(gate, (0.4, 0.6)):
            assert (code, scenario["verdict"], scenario["passed"]) == (4, "growing", False)


ENDS = "import signal, sys, time; print('no such model', flush=True); time.sleep({}); {}"


@pytest.mark.parametrize(
    ("seconds", "last", "words", "how"),
    [
        (0, "sys.exit(7)", ["--warmup", "5s"], "ended with exit code 7"),
        (0, "sys.exit(0)", ["--duration", "10s"], "ended with exit code 0"),
        (5, "sys.exit(0)", ["--duration", "20s"], "ended with exit code 0"),
        (5, "signal.raise_signal(signal.SIGKILL)", ["--duration", "20s"], "was killed by SIGKILL"),
    ],
)
def test_command_that_ends_early_exits_3(tmp_path: Path, seconds: int, last: str, words: list[str], how: str) -> None:
    command = [sys.executable, "-c", ENDS.format(seconds, last)]
    done = memforensics("ci", *words, "--junit", "out.xml", "--record", "gate.case", "--", *command, cwd=tmp_path)
    assert done.returncode == 3, done.stdout
    output = done.stdout + "".join(page.read_text() for page in tmp_path.glob("*.md"))
    assert f"FAILED  failed to observe: the command {how} after" in output
    assert "no such model" in output
    assert "bserve longer" not in output
    assert "memforensics watch" not in output
    suite = Xml.parse(tmp_path / "out.xml").getroot().find("testsuite")
    assert (suite.get("errors"), suite.get("failures")) == ("1", "0")
    assert how in suite.find("testcase/error").get("message")


def test_plain_command_that_ends_at_once_exits_3() -> None:
    with pytest.raises(ProbeFailed, match="failed to observe: the command ended with exit code 0"):
        experiment([sys.executable, "-c", ""], (Variant("plain"),), seconds=5, rounds=1)
