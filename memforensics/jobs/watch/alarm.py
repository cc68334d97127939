"""A command of the operator's own, run once when the verdict is `leak`.

Its words are split as a shell would and no shell runs; what is told of the target goes by the environment, so that
nothing of the target's can become part of a command.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from memforensics.case.model import Case, Diagnosis
from memforensics.errors import UsageError
from memforensics.text import visible


class Alarm:
    """`notice` each conclusion; the first that is a leak runs the command. UsageError when it cannot be split."""

    def __init__(self, command: str, record: Path | None = None) -> None:
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise UsageError(f"--on-leak {command!r} is no command", why=str(error)) from error
        if not self._words:
            raise UsageError("--on-leak needs a command", enable="--on-leak 'systemctl restart vllm'")
        self._record = record
        self._rung: set[int | None] = set()  # root PIDs that it was rung for
        self._running: list[subprocess.Popen[bytes]] = []

    def notice(self, case: Case, diagnosis: Diagnosis) -> None:
        """Does not wait for the command; what it prints goes to stderr, and so does why one could not be started."""
        self._running = [process for process in self._running if process.poll() is None]
        if diagnosis.verdict != "leak" or case.meta.root_pid in self._rung:
            return
        self._rung.add(case.meta.root_pid)
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
            print(f"--on-leak: {self._words[0]}: {error.strerror}", file=sys.stderr)

    def close(self) -> None:
        """Waits for what is still running: it may be about to read the case."""
        for process in self._running:
            process.wait()


def environment(case: Case, diagnosis: Diagnosis, record: Path | None) -> dict[str, str]:
    """MEMFORENSICS_PID, _VERDICT, _HEADLINE, and where known _CASE, _CAUSE (its name in the catalogue), _LAYER,
    _BYTES_PER_MINUTE, _SECONDS_TO_LIMIT."""
    growth, first = diagnosis.growth, next(iter(diagnosis.findings), None)
    told = {
        "PID": case.meta.root_pid,
        "VERDICT": diagnosis.verdict,
        "HEADLINE": visible(diagnosis.headline),
        "CASE": record.absolute() if record is not None else None,
        "CAUSE": first.cause if first is not None else None,
        "LAYER": first.layer if first is not None else None,
        "BYTES_PER_MINUTE": round(growth.rate.estimate) if growth and growth.rate else None,
        "SECONDS_TO_LIMIT": round(growth.seconds_to_limit) if growth and growth.seconds_to_limit is not None else None,
    }
    return {f"MEMFORENSICS_{name}": str(value) for name, value in told.items() if value is not None}
