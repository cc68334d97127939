"""A command of the operator that runs once when the verdict is `leak`.

It is split into words as a shell would, but no shell runs it. It gets the facts about the target in its environment, so
that no text of the target can become part of a command.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from memforensics.case.model import Case, Diagnosis
from memforensics.errors import UsageError
from memforensics.text import visible

EXAMPLE = "--on-leak 'systemctl restart vllm'"


class Alarm:
    """Call `notice` with each conclusion; the first leak runs the command. UsageError if it cannot be split."""

    def __init__(self, command: str, record: Path | None = None) -> None:
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise UsageError(
                f"--on-leak {command!r} cannot be split into words", why=str(error), enable=EXAMPLE
            ) from error
        if not self._words:
            raise UsageError("--on-leak needs a command", enable=EXAMPLE)
        self._record = record
        self._raised: set[int | None] = set()  # root PIDs for which the command has run
        self._running: list[subprocess.Popen[bytes]] = []

    def notice(self, case: Case, diagnosis: Diagnosis) -> None:
        """Starts the command and does not wait for it. Its output goes to stderr, as does the reason if it cannot
        start."""
        self._running = [process for process in self._running if process.poll() is None]
        if diagnosis.verdict != "leak" or case.meta.root_pid in self._raised:
            return
        self._raised.add(case.meta.root_pid)
        try:
            self._running.append(
                subprocess.Popen(
                    self._words,
                    env={**os.environ, **environment(case, diagnosis, self._record)},
                    stdin=subprocess.DEVNULL,
                    stdout=sys.stderr.fileno(),
                )
            )
        except OSError as error:
            print(f"memforensics: --on-leak cannot start {self._words[0]}: {error.strerror}", file=sys.stderr)

    def close(self) -> None:
        """Waits for commands that still run: they may be about to read the case."""
        for process in self._running:
            process.wait()


def environment(case: Case, diagnosis: Diagnosis, record: Path | None) -> dict[str, str]:
    """MEMFORENSICS_PID, _VERDICT and _HEADLINE; if known also _CASE, _CAUSE (its ID in the catalogue), _LAYER,
    _BYTES_PER_MINUTE and _SECONDS_TO_LIMIT."""
    growth, first = diagnosis.growth, next(iter(diagnosis.findings), None)
    facts = {
        "PID": case.meta.root_pid,
        "VERDICT": diagnosis.verdict,
        "HEADLINE": visible(diagnosis.headline),
        "CASE": record.absolute() if record is not None else None,
        "CAUSE": first.cause if first is not None else None,
        "LAYER": first.layer if first is not None else None,
        "BYTES_PER_MINUTE": round(growth.rate.estimate) if growth and growth.rate else None,
        "SECONDS_TO_LIMIT": round(growth.seconds_to_limit) if growth and growth.seconds_to_limit is not None else None,
    }
    return {f"MEMFORENSICS_{name}": str(value) for name, value in facts.items() if value is not None}
