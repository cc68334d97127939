"""ci: a leak gate. Runs a command, diagnoses it while it works, and says whether it passed, for a build to read."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from memforensics.case.model import EXIT_CODES, Case, Diagnosis, VerdictWord
from memforensics.errors import ProbeFailed, UsageError
from memforensics.jobs.diagnose import OnProgress, case_path, diagnose
from memforensics.jobs.experiment import Started, started
from memforensics.units import duration_text

FAILING: tuple[VerdictWord, ...] = ("leak", "growing", "insufficient-data")


@dataclass(frozen=True, slots=True)
class Scenario:
    """One command that went through the gate."""

    name: str
    verdict: VerdictWord
    passed: bool
    message: str
    seconds: float
    case: Case
    diagnosis: Diagnosis
    case_file: Path

    @property
    def exit_code(self) -> int:
        return 0 if self.passed else EXIT_CODES[self.verdict] or 1


def parse_fail_on(text: str) -> tuple[VerdictWord, ...]:
    """`leak,growing` as verdicts. UsageError when one is none."""
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    wrong = [word for word in words if word not in EXIT_CODES]
    if wrong or not words:
        raise UsageError(f"--fail-on {text!r} names no verdict", enable=f"of: {', '.join(EXIT_CODES)}")
    return tuple(verdict for verdict in EXIT_CODES if verdict in words)


def gate(
    command: Sequence[str],
    *,
    name: str,
    seconds: float,
    warmup_s: float = 0.0,
    fail_on: Sequence[VerdictWord] = FAILING,
    env: Mapping[str, str] | None = None,
    record: Path | None = None,
    on_progress: OnProgress | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Scenario:
    """Starts the command, lets it warm up, diagnoses it for `seconds`, ends it.

    UsageError when it cannot be started; ProbeFailed when it ends before it was looked at.
    """
    with started(command, env) as run:
        _warm_up(run, warmup_s, sleep)
        path = record or case_path(run.pid, Path.cwd())
        began = time.monotonic()
        case, diagnosis = diagnose(run.pid, seconds, record=path, on_progress=on_progress)
        passed = diagnosis.verdict not in fail_on
        return Scenario(
            name=name,
            verdict=diagnosis.verdict,
            passed=passed,
            message=_message(diagnosis, passed=passed),
            seconds=time.monotonic() - began,
            case=case,
            diagnosis=diagnosis,
            case_file=path,
        )


def _warm_up(run: Started, seconds: float, sleep: Callable[[float], None]) -> None:
    end = time.monotonic() + seconds
    while True:
        code = run.popen.poll()
        if code is not None:
            raise ProbeFailed(
                f"the command ended with exit code {code} before it could be looked at",
                why=" / ".join(list(run.tail)[-3:]) or "it printed nothing",
                enable=f"a command that runs for longer, or a shorter --warmup (now {duration_text(seconds)})",
            )
        left = end - time.monotonic()
        if left <= 0:
            return
        sleep(min(left, 0.2))


def _message(diagnosis: Diagnosis, *, passed: bool) -> str:
    """What a build log should say, in one sentence."""
    if passed:
        return f"passed, {diagnosis.verdict}: {diagnosis.headline}"
    if diagnosis.verdict == "growing":
        return (
            f"growing: {diagnosis.headline}. It may be a cache that still fills: look for longer (--duration), let it"
            " warm up first (--warmup), or accept growth with --fail-on leak"
        )
    if diagnosis.verdict == "insufficient-data":
        return f"too little was seen to judge: {diagnosis.headline}. Look for longer (--duration)"
    return f"{diagnosis.verdict}: {diagnosis.headline}"
