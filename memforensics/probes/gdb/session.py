"""One gdb, spoken to through GDB/MI, and whether it may attach at all.

`gdb_guard` is its parent. No script is read, nothing can be written, called or inserted: see `gdb.py` for why.
"""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path

from memforensics.errors import MemforensicsError, PermissionNeeded, ProbeFailed, ToolMissing
from memforensics.probes.base import Availability
from memforensics.probes.gdb import guard as gdb_guard
from memforensics.probes.gdb.mi import MiReader, Record, Tuple
from memforensics.target import Process
from memforensics.target.parse import parse_stat, parse_status, status_numbers

COMMAND_LIMIT_S = 20.0
MAX_STOPS = 1 << 17  # that wait to be taken: at most one a thread
CAP_SYS_PTRACE = 19  # include/uapi/linux/capability.h

_SETTINGS = (
    "may-insert-breakpoints off",
    "may-write-memory off",
    "may-write-registers off",
    "may-call-functions off",
    "auto-load off",
    "libthread-db-search-path /nonexistent",
    "auto-solib-add off",
    "displaced-stepping off",  # it would write a scratch instruction into the target
    "confirm off",
    "pagination off",
    "width 0",
    "print thread-events off",
    "exec-file-mismatch off",
)
# gdb attaches to a process of the guard first, see there.
_WARM_UP = ("attach {warm_up}", "detach", "file", "set non-stop on", "set mi-async on")


class GdbRefused(MemforensicsError):
    """gdb answered a command with an error."""


class GdbDied(ProbeFailed):
    """gdb ended before it was told to."""


# --- may we? -----------------------------------------------------------------------------------------------------


def availability(process: Process) -> Availability:
    """Whether gdb could attach to it now."""
    try:
        check(process)
    except MemforensicsError as error:
        return Availability("unavailable", str(error), error.enable)
    return Availability("ok")


def check(process: Process) -> str:
    """The path of gdb. ToolMissing without gdb, ProbeFailed for a target that is traced or stopped already,
    PermissionNeeded where ptrace is not for us."""
    gdb = shutil.which("gdb")
    if gdb is None:
        raise ToolMissing("gdb is not installed", enable="apt-get install -y gdb")
    status = process.status()
    tracer = next(iter(status_numbers(status, "TracerPid")), 0)
    if tracer:
        raise ProbeFailed(
            f"process {process.pid} is traced already, by {_name_of(process, tracer)} (PID {tracer})",
            why="the kernel allows one debugger a process",
            enable=f"end that debugger first, or look without gdb: memforensics trace-mmap {process.pid}",
        )
    check_runs(process)
    _check_ptrace(process, status)
    return gdb


def check_runs(process: Process) -> None:
    """ProbeFailed for one that a signal has stopped: whoever sent it is not done with it."""
    if process.status().get("State", "").startswith("T"):
        raise ProbeFailed(
            f"process {process.pid} is stopped (by a signal)",
            why="it makes no calls until it is continued",
            enable=f"kill -CONT {process.pid}",
        )


def _name_of(process: Process, pid: int) -> str:
    try:
        return parse_stat(process.proc.read_text(pid, "stat")).comm
    except (MemforensicsError, OSError):
        return "another process"


def _check_ptrace(process: Process, status: Mapping[str, str]) -> None:
    """kernel/ptrace.c __ptrace_may_access() and security/yama/yama_lsm.c, as far as they can be told beforehand."""
    own = parse_status((process.proc.root / "self" / "status").read_text())
    capable = bool(int(own.get("CapEff", "0"), 16) >> CAP_SYS_PTRACE & 1)
    try:
        scope = int((process.proc.root / "sys/kernel/yama/ptrace_scope").read_text())
    except (OSError, ValueError):
        scope = 0
    if scope == 3:
        raise PermissionNeeded(
            "no process may be traced on this host",
            privilege="another setting at boot",
            why="kernel.yama.ptrace_scope is 3, which only a reboot changes",
            enable=f"look without gdb: memforensics trace-mmap {process.pid}",
        )
    same_user = set(status.get("Uid", "").split()) == {str(os.geteuid())}
    if not capable and (scope >= 1 or not same_user):
        why = f"kernel.yama.ptrace_scope is {scope}" if same_user else "it belongs to another user"
        raise PermissionNeeded(
            f"not allowed to trace process {process.pid}",
            privilege="CAP_SYS_PTRACE",
            why=why,
            grant="in a container, add the capability SYS_PTRACE",
        )


# --- gdb/MI ------------------------------------------------------------------------------------------------------


class Session:
    """One gdb, attached to nothing yet. A context manager: on leaving, gdb detaches and ends, whatever happened."""

    def __init__(self, process: Process, gdb: str, *, deadline_s: float, hardware: bool = False) -> None:
        self.process = process
        self.stops: deque[tuple[int, Tuple]] = deque()  # (monotonic ns, payload of *stopped)
        self.detached = False  # gdb says that it let go of the target, which left or was taken from it
        self._is_attaching = False
        self._token = 0  # of the last command
        self._result: Record | None = None  # its answer
        self._reader = MiReader()
        settings = [word for setting in _SETTINGS for word in ("-iex", f"set {setting}")]
        settings += [word for line in _WARM_UP for word in ("-ex", line)]
        command = [
            *(sys.executable, "-I", "-S", str(Path(gdb_guard.__file__)), f"--parent={os.getpid()}"),
            *(f"--target={process.pid}", f"--deadline={deadline_s}", *(["--hardware"] if hardware else []), "--"),
            *(gdb, "--nx", "--nh", "--quiet", "--readnever", "--interpreter=mi3", *settings),
        ]
        self._popen = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def guard_pid(self) -> int:
        return self._popen.pid

    def attach(self, limit_s: float) -> None:
        """Attaches to the process; its threads stop one after the other. As `command`."""
        self.command("-gdb-show non-stop")  # what came before was of the warm-up
        self.stops.clear()
        self.detached = False
        check_runs(self.process)
        self._is_attaching = True
        self.command(f"-target-attach {self.process.pid}", limit_s)

    def command(self, text: str, limit_s: float = COMMAND_LIMIT_S) -> Tuple:
        """Sends one MI command; the payload of its result. GdbRefused on ^error, GdbDied, ProbeFailed on silence or
        on output that cannot be read."""
        assert self._popen.stdin is not None
        self._token += 1
        self._result = None
        with self._deadly():
            self._popen.stdin.write(f"{self._token}{text}\n".encode())
        end = time.monotonic() + limit_s
        while self._result is None:
            left = end - time.monotonic()
            if left <= 0:
                raise ProbeFailed(f"gdb did not answer {text.split()[0]} within {limit_s:.0f} s")
            self._receive(left)
        if self._result.message == "error":
            raise GdbRefused(str(self._result.payload.get("msg", "")))
        return self._result.payload

    def console(self, text: str) -> None:
        """A command of gdb's own console."""
        escaped = text.replace("\\", "\\\\").replace('"', '\\"')
        self.command(f'-interpreter-exec console "{escaped}"')

    def next_stop(self, limit_s: float) -> tuple[int, Tuple] | None:
        """The next stop, with the time it was heard of; None when none came in time. TargetGone when it left, GdbDied
        when gdb lost it though it lives."""
        end = time.monotonic() + limit_s
        while not self.stops:
            if self.detached:
                self._await_end()
                raise GdbDied("gdb ended unexpectedly", why="it let go of the process")
            left = end - time.monotonic()
            if left <= 0:
                return None
            self._receive(left)
        return self.stops.popleft()

    def _await_end(self) -> None:
        """gdb hears of the target's end before its pidfd and /proc tell it. TargetGone."""
        for _ in range(100):
            self.process.check()
            time.sleep(0.01)

    def _receive(self, limit_s: float) -> None:
        assert self._popen.stdout is not None
        output = self._popen.stdout.fileno()
        with self._deadly():
            if not select.select([output], [], [], min(limit_s, 0.5))[0]:
                return
            data = os.read(output, 1 << 16)
        if not data:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(5.0)  # the guard is still cleaning up
            raise GdbDied("gdb ended unexpectedly", why=f"exit code {self._popen.poll()}")
        now = time.monotonic_ns()
        for record in self._reader.feed(data):
            if record.kind == "result":
                if record.token == self._token:  # else it comes too late
                    self._result = record
            elif record.message == "stopped" and record.kind == "exec":
                if str(record.payload.get("reason", "")).startswith("exited"):
                    self.detached = True
                else:
                    self.stops.append((now, record.payload))
            elif record.message == "thread-group-exited" and record.kind == "notify":
                self.detached = True
        if len(self.stops) > MAX_STOPS:
            raise ProbeFailed("gdb tells of more stops than there can be threads")

    @contextlib.contextmanager
    def _deadly(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            raise GdbDied("gdb ended unexpectedly", why=str(error)) from error

    def close(self) -> None:
        """Detaches and ends gdb: politely, then through the guard, then by force. Twice is fine."""
        forces: list[signal.Signals | None] = [signal.SIGTERM, signal.SIGKILL]
        if self._popen.poll() is None:
            with contextlib.suppress(MemforensicsError):
                if self._is_attaching and not self.detached:
                    self.command("-target-detach", 5.0)
                self._popen.send_signal(signal.SIGUSR1)  # the target is as it was: the guard need not continue it
                self.command("-gdb-exit", 2.0)
                forces.insert(0, None)
        for force in forces:
            if force is not None:
                self._popen.send_signal(force)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(5.0)
                break
        for stream in (self._popen.stdin, self._popen.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
