"""A command that we run, and end with everything that it started. Its parent is `command_guard`, which ends it also if
memforensics is killed."""

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
    """A running command. Its output is read: the last lines are kept, and the total work that it reports in lines
    `units N`. `popen` is its guard, which ends with the same status as the command."""

    popen: "subprocess.Popen[bytes]"
    pid: int
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=12))
    units_done: float | None = None
    drained: threading.Event = field(default_factory=threading.Event)
    on_line: Callable[[str], None] = lambda _: None  # called in the thread that reads the output

    def last_lines(self, count: int = 3) -> list[str]:
        """The last lines of its output; after its end, of all output."""
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
        """Ends the command and its descendants with SIGTERM, and with SIGKILL after TERM_SECONDS. `others` are further
        processes to end, which may have left the tree; a pidfd identifies each."""
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
    """Runs the command in a session of its own, with `env` added; ends it after the block with everything that it
    started. Each line of its output goes to `on_line`. UsageError if it cannot be started."""
    if not command:
        raise UsageError("no command given", enable="... -- COMMAND ARGUMENTS")
    read_end, write_end = os.pipe()
    guard = [sys.executable, "-I", "-S", str(Path(command_guard.__file__)), str(os.getpid()), str(write_end)]
    popen = subprocess.Popen(
        guard,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=[write_end],
    )
    os.close(write_end)
    try:
        run = Started(popen, _begin(popen, read_end, command, dict(env or {})), on_line=on_line)
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


def _begin(popen: "subprocess.Popen[bytes]", read_end: int, command: Sequence[str], env: dict[str, str]) -> int:
    """Sends the command to the guard; the PID of the command."""
    assert popen.stdin is not None
    with open(read_end, "rb") as stream:
        with (
            contextlib.suppress(BrokenPipeError),
            popen.stdin as request,
        ):  # arguments would match --cmdline
            request.write(json.dumps({"command": list(command), "env": env}).encode())
        answer = int(stream.read(32) or 0)
    if answer == 0:
        raise ProbeFailed(f"cannot start {command[0]}", why="its guard process ended")
    if answer < 0:
        raise UsageError(f"cannot start {command[0]}", why=os.strerror(-answer))
    return answer
