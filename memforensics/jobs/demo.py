"""demo: starts the shipped example (a real leak), diagnoses it and stops it."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from memforensics.case.model import Case, Diagnosis
from memforensics.errors import Interrupted, ProbeFailed, UsageError
from memforensics.jobs.diagnose import diagnose
from memforensics.jobs.experiment.command import Started, started
from memforensics.jobs.observe.progress import OnProgress

LAUNCHER = Path(str(files("memforensics"))) / "shipped" / "ucx_rcache_leak" / "run.py"
_FIXED_IN = (1, 21)  # openucx/ucx PR 11248
_START_LIMIT_S = 600.0  # the first start downloads UCX


@dataclass(frozen=True, slots=True)
class Outcome:
    case: Case
    diagnosis: Diagnosis
    leak_expected: bool
    path: Path | None = None  # of the case

    @property
    def exit_code(self) -> int:
        """0 if the diagnosis is right for this version, else 4."""
        return 0 if (self.diagnosis.verdict == "leak") == self.leak_expected else 4


def leaks(ucx_version: str, environment: Mapping[str, str]) -> bool:
    """Whether the example leaks with that version and environment, as measured in the README of the example.
    UsageError if it is not a version."""
    try:
        version = tuple(int(number) for number in ucx_version.split(".")[:2])
    except ValueError as error:
        raise UsageError(f"{ucx_version!r} is not a version of UCX", enable="--ucx-version 1.19.0") from error
    off = environment.get("UCX_MEM_MMAP_HOOK_MODE") == "none" or "UCX_RCACHE_MAX_UNRELEASED" in environment
    return version < _FIXED_IN and not off


@contextlib.contextmanager
def example(
    ucx_version: str,
    arguments: Sequence[str] = (),
    *,
    launcher: Path = LAUNCHER,
    on_output: Callable[[str], None] = lambda _: None,
) -> Iterator[int]:
    """Runs the example during the block; its PID. The first run makes a virtual environment; its messages go to
    `on_output`. ProbeFailed if it does not start."""
    is_ready = threading.Event()

    def on_line(line: str) -> None:
        if line.startswith("ready"):
            is_ready.set()
        elif not is_ready.is_set():
            with contextlib.suppress(OSError):  # stderr is closed
                on_output(line)

    command = [sys.executable, str(launcher), "--ucx-version", ucx_version, *arguments]
    with started(command, on_line=on_line) as run:
        _wait_until_ready(run, is_ready, time.monotonic() + _START_LIMIT_S)
        yield run.pid


def demo(
    ucx_version: str,
    seconds: float,
    *,
    record: Path | None = None,
    on_progress: OnProgress | None = None,
    on_start: Callable[[int], None] | None = None,
    on_output: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Starts the example, diagnoses it for `seconds`, stops it."""
    expected = leaks(ucx_version, os.environ)
    with example(ucx_version, ["--seconds", f"{seconds + 120:.0f}"], on_output=on_output) as pid:
        if on_start is not None:
            on_start(pid)
        found = diagnose(pid, seconds, record=record, on_progress=on_progress)
    if found.interrupted:
        raise Interrupted(str(found.path) if found.path else None)
    return Outcome(found.case, found.diagnosis, expected, found.path)


def _wait_until_ready(run: Started, is_ready: threading.Event, deadline: float) -> None:
    while not is_ready.wait(0.1):
        code = run.popen.poll()
        if code is None and time.monotonic() < deadline:
            continue
        output = " / ".join(run.last_lines())
        if is_ready.is_set():
            return
        raise ProbeFailed(
            "the example did not start" + (f" (exit code {code})" if code is not None else ""),
            why=f"it printed: {output[-300:]}" if output else "it printed nothing",
            enable="install venv and pip (apt-get install python3-venv); the first run also needs a package index",
        )
