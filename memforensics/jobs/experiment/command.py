"""A command that we run, and end with all that it started. `command_guard` is its parent: it ends the command also
when memforensics is killed."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from memforensics.errors import ProbeFailed, UsageError
from memforensics.jobs.experiment import command_guard
from memforensics.jobs.experiment.command_guard import KILL_SECONDS, TERM_SECONDS
from memforensics.target import Process

MAX_LINE = 64 * 1024  # bytes; a longer line of output counts as several
_UNITS = re.compile(rb"units (\d+(?:\.\d+)?)\s*")


@dataclass(slots=True)
class Started:
    """A command that runs. Its output is drained: the last lines are kept, and the work it reports (`units N`, a line
    on stdout, a running total). `popen` is its guard, which ends as the command does."""

    popen: "subprocess.Popen[bytes]"
    pid: int
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=12))
    units_done: float | None = None
    drained: threading.Event = field(default_factory=threading.Event)
    on_line: Callable[[str], None] = lambda _: None  # in the thread that reads the output

    def last_lines(self, count: int = 3) -> list[str]:
        """The last lines of its output. After its end: once all of it is read."""
        if self.popen.poll() is not None:
            self.drained.wait(timeout=1.0)
        return list(self.tail)[-count:]

    def drain(self) -> None:
        stdout = self.popen.stdout
        assert stdout is not None
        for line in iter(lambda: stdout.readline(MAX_LINE), b""):
            found = _UNITS.fullmatch(line)
            if found:
                self.units_done = float(found[1])
            else:
                self.tail.append(line.decode("utf-8", "backslashreplace").rstrip())
                self.on_line(self.tail[-1])
        self.drained.set()

    def end(self, others: Sequence[Process] = ()) -> None:
        """Ends the command and all that descends from it: SIGTERM, and SIGKILL TERM_SECONDS later. `others` are
        processes, held by identity, that have to end though they may no longer descend from it."""
        self.popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(TERM_SECONDS + KILL_SECONDS + 1.0)
        self.popen.kill()
        for process in others:
            if process.pidfd is not None:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)
        self.popen.wait()


@contextlib.contextmanager
def started(
    command: Sequence[str], env: Mapping[str, str] | None = None, *, on_line: Callable[[str], None] = lambda _: None
) -> Iterator[Started]:
    """The command in a session of its own, with `env` added, ended after the block with all that it started. Each line
    of its output goes to `on_line`. UsageError when it cannot be started."""
    if not command:
        raise UsageError("no command given", enable="... -- COMMAND ARGUMENTS")
    told, tell = os.pipe()
    guard = [sys.executable, "-I", "-S", str(Path(command_guard.__file__)), str(os.getpid()), str(tell)]
    popen = subprocess.Popen(
        guard,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=[tell],
    )
    os.close(tell)
    try:
        run = Started(popen, _begin(popen, told, command, dict(env or {})), on_line=on_line)
    except BaseException:
        popen.kill()
        popen.wait()
        if popen.stdout is not None:
            popen.stdout.close()
        raise
    reader = threading.Thread(target=run.drain, daemon=True, name="drain")
    reader.start()
    try:
        yield run
    finally:
        run.end()
        reader.join(timeout=1.0)
        if not reader.is_alive() and popen.stdout is not None:
            popen.stdout.close()


def _begin(popen: "subprocess.Popen[bytes]", told: int, command: Sequence[str], env: dict[str, str]) -> int:
    """Tells the guard what to run; the PID of the command."""
    assert popen.stdin is not None
    with open(told, "rb") as stream:
        with contextlib.suppress(BrokenPipeError), popen.stdin as words:  # not arguments: --cmdline would find them
            words.write(json.dumps({"command": list(command), "env": env}).encode())
        answer = int(stream.read(32) or 0)
    if answer == 0:
        raise ProbeFailed(f"cannot start {command[0]}", why="its guard process ended")
    if answer < 0:
        raise UsageError(f"cannot start {command[0]}", why=os.strerror(-answer))
    return answer
