"""ci: a leak gate. Runs a command, diagnoses it while it runs, and says whether it passed.

A command that ends too early was not observed as asked, whatever its exit code: the gate then fails to observe, unless
the verdict fails the gate anyway.
"""

import contextlib
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from memforensics.analysis.effects import exit_text
from memforensics.case.model import EXIT_CODES, Diagnosis, Verdict
from memforensics.case.views import Scenario
from memforensics.errors import Interrupted, TargetError, UsageError
from memforensics.jobs.case.files import case_path
from memforensics.jobs.diagnose import diagnose
from memforensics.jobs.experiment.command import Started, started
from memforensics.jobs.observe.progress import OnProgress
from memforensics.remedies.catalogue import Catalogue
from memforensics.units import duration_text

FAILING: tuple[Verdict, ...] = ("leak", "growing", "insufficient-data")


def parse_fail_on(text: str) -> tuple[Verdict, ...]:
    """The verdicts in a text such as `leak,growing`. UsageError if one is unknown."""
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    wrong = [word for word in words if word not in EXIT_CODES]
    if wrong or not words:
        raise UsageError(f"--fail-on {text!r} is not a list of verdicts", enable=f"use: {', '.join(EXIT_CODES)}")
    return tuple(verdict for verdict in EXIT_CODES if verdict in words)


def gate(
    command: Sequence[str],
    *,
    name: str,
    seconds: float,
    warmup_s: float = 0.0,
    fail_on: Sequence[Verdict] = FAILING,
    env: Mapping[str, str] | None = None,
    record: Path | None = None,
    on_progress: OnProgress | None = None,
    catalogue: Catalogue | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Scenario:
    """Starts the command, lets it warm up, diagnoses it for `seconds`, and ends it.

    UsageError if it cannot be started."""
    path: Path | None = None
    with started(command, env) as run:
        began = time.monotonic()
        _warm_up(run, warmup_s, sleep)
        case = diagnosis = None
        if run.popen.poll() is None:
            path = record or case_path(run.pid, Path.cwd())
            with contextlib.suppress(TargetError):  # it ended as the observation started
                found = diagnose(
                    run.pid, seconds, record=path, on_progress=on_progress, catalogue=catalogue, command="ci"
                )
                if found.interrupted:
                    raise Interrupted(str(found.path))
                case, diagnosis = found.case, found.diagnosis
        root = case.target(run.pid) if case is not None else None
        ended = None
        if root is None or root.left_how is not None:
            ended = _ended(run, time.monotonic() - began, warmup_s, seconds)
        elapsed = time.monotonic() - began
    if case is None or diagnosis is None:
        return Scenario(name, False, ended or "", elapsed, failed_to_observe=True)
    fails = diagnosis.verdict in fail_on
    failed_to_observe = ended is not None and not (fails and diagnosis.verdict != "insufficient-data")
    diagnosis = replace(diagnosis, next_step=None if ended else _next_step(command, diagnosis, seconds))
    message = ended if failed_to_observe and ended else _message(diagnosis, passed=not fails)
    if ended is not None and not failed_to_observe:
        message += f". {ended[0].upper()}{ended[1:]}"
    return Scenario(
        name=name,
        verdict=diagnosis.verdict,
        passed=not fails and not failed_to_observe,
        message=message,
        seconds=elapsed,
        case=case,
        diagnosis=diagnosis,
        case_file=path,
        failed_to_observe=failed_to_observe,
    )


def _warm_up(run: Started, seconds: float, sleep: Callable[[float], None]) -> None:
    """Waits for that time, or until the command ends."""
    end = time.monotonic() + seconds
    while run.popen.poll() is None and (left := end - time.monotonic()) > 0:
        sleep(min(left, 0.2))


def _ended(run: Started, lasted: float, warmup_s: float, seconds: float) -> str:
    """How a command ended that should have run longer, its last output, and what to do."""
    how = exit_text(run.popen.wait())
    asked = f"{duration_text(seconds)} (--duration)"
    if warmup_s:
        asked = f"{duration_text(warmup_s)} (--warmup) and {asked}"
    last = " / ".join(run.last_lines(3))
    return (
        f"failed to observe: the command {how} after {duration_text(lasted)}, but {asked} are needed"
        f"{f'; its last output: {last}' if last else ''}. Use a command that runs longer, or a shorter time"
    )


def _next_step(command: Sequence[str], diagnosis: Diagnosis, seconds: float) -> str | None:
    """What to do next. The command has ended, so it is never to watch its PID."""
    if diagnosis.verdict not in ("growing", "insufficient-data"):
        return None
    return f"observe longer: memforensics ci --duration {2 * seconds:g}s -- {shlex.join(command)}"


def _message(diagnosis: Diagnosis, *, passed: bool) -> str:
    """One sentence for a build log."""
    if passed:
        return f"passed, {diagnosis.verdict}: {diagnosis.headline}"
    if diagnosis.verdict == "growing":
        return (
            f"growing: {diagnosis.headline}. A cache that is filling looks the same: observe longer (--duration), let"
            " it warm up first (--warmup), or accept growth with --fail-on leak"
        )
    if diagnosis.verdict == "insufficient-data":
        return f"too little data for a verdict: {diagnosis.headline}. Observe longer (--duration)"
    return f"{diagnosis.verdict}: {diagnosis.headline}"
