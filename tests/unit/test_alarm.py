"""--on-leak runs its command once, only on a leak, with the facts in its environment, and without a shell."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from memforensics.case.model import Anchor, Case, CaseMeta, Diagnosis, Growth, Rate, Trend
from memforensics.errors import UsageError
from memforensics.jobs.watch.alarm import Alarm

META = CaseMeta(memforensics_version="0", command="watch", anchor=Anchor(monotonic_ns=0, wall_ns=0), root_pid=7, seed=1)
CASE = Case(meta=META)
RATE = Rate(estimate=6e6, low=5e6, high=7e6)
TREND = Trend(shape="linear", rate=RATE, p=0.0, samples=9, seconds=9.0)
LEAK = Diagnosis(
    verdict="leak",
    headline="native-heap grows; $(touch pwned) `id` \x1b[2J",
    growth=Growth(metric="", trend=TREND, rate=RATE, seconds_to_limit=90.4),
    layers=(),
    groups=(),
    members=(),
    findings=(),
    hooks=(),
)
TELL = "import json, os, sys; open(sys.argv[1], 'a').write(json.dumps([sys.argv[2:], dict(os.environ)]) + chr(10))"


def recorded_calls(path: Path) -> list[tuple[list[str], dict[str, str]]]:
    return [(words, env) for words, env in map(json.loads, path.read_text().splitlines())]


def test_command_runs_once_per_target_with_the_facts_in_its_environment(tmp_path: Path) -> None:
    out = tmp_path / "out"
    alarm = Alarm(f"python3 -c \"{TELL}\" {out} 'two words' $HOME", tmp_path / "a.case")
    alarm.notice(CASE, replace(LEAK, verdict="growing"))
    for _ in range(3):
        alarm.notice(CASE, LEAK)
    alarm.notice(replace(CASE, meta=replace(META, root_pid=8)), LEAK)
    alarm.close()
    calls = recorded_calls(out)
    assert sorted(env["MEMFORENSICS_PID"] for _, env in calls) == ["7", "8"]
    words, env = calls[0]
    assert words == ["two words", "$HOME"]
    assert env["MEMFORENSICS_VERDICT"] == "leak"
    assert env["MEMFORENSICS_CASE"] == str(tmp_path / "a.case")
    assert env["MEMFORENSICS_BYTES_PER_MINUTE"] == "6000000"
    assert env["MEMFORENSICS_SECONDS_TO_LIMIT"] == "90"
    assert "$(touch pwned)" in env["MEMFORENSICS_HEADLINE"]
    assert "\x1b" not in env["MEMFORENSICS_HEADLINE"]
    assert "MEMFORENSICS_LAYER" not in env


def test_missing_command_is_reported_and_the_watch_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    alarm = Alarm("no-such-command-anywhere")
    alarm.notice(CASE, LEAK)
    alarm.close()
    assert "no-such-command-anywhere" in capfd.readouterr().err


@pytest.mark.parametrize("command", ["", "   ", "echo 'unfinished"])
def test_invalid_command_is_refused(command: str) -> None:
    with pytest.raises(UsageError):
        Alarm(command)
