"""One gdb, controlled through GDB/MI, and a check whether it may attach.

`guard` is its parent. It reads no script, and can write, call and insert nothing: `capture` says why.
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
from memforensics.probes.gdb import guard
from memforensics.probes.gdb.mi import MiReader, Record, Tuple
from memforensics.target import Process
from memforensics.target.parse import parse_stat, parse_status, status_numbers

COMMAND_LIMIT_S = 20.0
MAX_STOPS = 1 << 17  # waiting; at most one for each thread
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
# gdb first attaches to a process of the guard, which says why.
_WARM_UP = ("attach {warm_up}", "detach", "file", "set non-stop on", "set mi-async on")


class GdbRefused(MemforensicsError):
    """gdb returned an error for a command."""


class GdbDied(ProbeFailed):
    """gdb ended on its own."""


# --- permission ---------------------------------------------------------------------------------------------------


def availability(process: Process) -> Availability:
    """Whether gdb can attach to the process now."""
    try:
        check(process)
    except MemforensicsError as error:
        return Availability("unavailable", str(error), error.enable)
    return Availability("ok")


def check(process: Process) -> str:
    """The path of gdb. ToolMissing without gdb, ProbeFailed if the target is already traced or stopped,
    PermissionNeeded if ptrace is not permitted."""
    gdb = shutil.which("gdb")
    if gdb is None:
        raise ToolMissing("gdb is not installed", enable="apt-get install -y gdb")
    status = process.status()
    tracer = next(iter(status_numbers(status, "TracerPid")), 0)
    if tracer:
        raise ProbeFailed(
            f"{_name_of(process, tracer)} (PID {tracer}) already traces process {process.pid}",
            why="the kernel allows one debugger for each process",
            enable=f"end that debugger first, or work without gdb: memforensics trace-mmap {process.pid}",
        )
    check_runs(process)
    _check_ptrace(process, status)
    return gdb


def check_runs(process: Process) -> None:
    """ProbeFailed if a signal stopped the process."""
    if process.status().get("State", "").startswith("T"):
        raise ProbeFailed(
            f"process {process.pid} is stopped (by a signal)",
            why="it makes no calls until it continues",
            enable=f"kill -CONT {process.pid}",
        )


def _name_of(process: Process, pid: int) -> str:
    try:
        return parse_stat(process.proc.read_text(pid, "stat")).comm
    except (MemforensicsError, OSError):
        return "another process"


def _check_ptrace(process: Process, status: Mapping[str, str]) -> None:
    """Predicts __ptrace_may_access() (kernel/ptrace.c) and security/yama/yama_lsm.c."""
    own = parse_status((process.proc.root / "self" / "status").read_text())
    capable = bool(int(own.get("CapEff", "0"), 16) >> CAP_SYS_PTRACE & 1)
    try:
        scope = int((process.proc.root / "sys/kernel/yama/ptrace_scope").read_text())
    except (OSError, ValueError):
        scope = 0
    if scope == 3:
        raise PermissionNeeded(
            "this host does not allow any process to be traced",
            privilege="another setting at boot",
            why="kernel.yama.ptrace_scope is 3, which only a reboot changes",
            enable=f"work without gdb: memforensics trace-mmap {process.pid}",
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
    """One gdb, not attached yet. A context manager: at its end gdb detaches and ends."""

    def __init__(self, process: Process, gdb: str, *, deadline_s: float, hardware: bool = False) -> None:
        self.process = process
        self.stops: deque[tuple[int, Tuple]] = deque()  # (monotonic ns, payload of *stopped)
        self.detached = False  # gdb reported that the target ended or was detached
        self._is_attaching = False
        self._token = 0  # of the last command
        self._result: Record | None = None  # its answer
        self._reader = MiReader()
        settings = [word for setting in _SETTINGS for word in ("-iex", f"set {setting}")]
        settings += [word for line in _WARM_UP for word in ("-ex", line)]
        command = [
            *(sys.executable, "-I", "-S", str(Path(guard.__file__)), f"--parent={os.getpid()}"),
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
        """Attaches to the process, whose threads then stop one after the other. Errors as `command`."""
        self.command("-gdb-show non-stop")  # events before its result belong to the warm-up
        self.stops.clear()
        self.detached = False
        check_runs(self.process)
        self._is_attaching = True
        self.command(f"-target-attach {self.process.pid}", limit_s)

    def command(self, text: str, limit_s: float = COMMAND_LIMIT_S) -> Tuple:
        """Sends one MI command and returns the payload of its result. GdbRefused on ^error, GdbDied, ProbeFailed if
        there is no answer or it cannot be read."""
        assert self._popen.stdin is not None
        self._token += 1
        self._result = None
        with self._detect_death():
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
        """Runs a command of gdb's console."""
        escaped = text.replace("\\", "\\\\").replace('"', '\\"')
        self.command(f'-interpreter-exec console "{escaped}"')

    def next_stop(self, limit_s: float) -> tuple[int, Tuple] | None:
        """The next stop and the time at which it was reported; None after the limit. TargetGone if the process left,
        GdbDied if gdb detached from a live process."""
        end = time.monotonic() + limit_s
        while not self.stops:
            if self.detached:
                self._await_end()
                raise GdbDied("gdb ended unexpectedly", why="it detached from the process")
            left = end - time.monotonic()
            if left <= 0:
                return None
            self._receive(left)
        return self.stops.popleft()

    def _await_end(self) -> None:
        """Raises TargetGone once pidfd or /proc show the end of the target, which gdb learns earlier."""
        for _ in range(100):
            self.process.check()
            time.sleep(0.01)

    def _receive(self, limit_s: float) -> None:
        assert self._popen.stdout is not None
        output = self._popen.stdout.fileno()
        with self._detect_death():
            if not select.select([output], [], [], min(limit_s, 0.5))[0]:
                return
            data = os.read(output, 1 << 16)
        if not data:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(5.0)  # the guard cleans up
            raise GdbDied("gdb ended unexpectedly", why=f"exit code {self._popen.poll()}")
        now = time.monotonic_ns()
        for record in self._reader.feed(data):
            if record.kind == "result":
                if record.token == self._token:  # otherwise it is late
                    self._result = record
            elif record.message == "stopped" and record.kind == "exec":
                if str(record.payload.get("reason", "")).startswith("exited"):
                    self.detached = True
                else:
                    self.stops.append((now, record.payload))
            elif record.message == "thread-group-exited" and record.kind == "notify":
                self.detached = True
        if len(self.stops) > MAX_STOPS:
            raise ProbeFailed("gdb reports more stops than there can be threads")

    @contextlib.contextmanager
    def _detect_death(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            raise GdbDied("gdb ended unexpectedly", why=str(error)) from error

    def close(self) -> None:
        """Detaches and ends gdb: by a command, then by SIGTERM to the guard, then by SIGKILL. Can be called twice."""
        forces: list[signal.Signals | None] = [signal.SIGTERM, signal.SIGKILL]
        if self._popen.poll() is None:
            with contextlib.suppress(MemforensicsError):
                if self._is_attaching and not self.detached:
                    self.command("-target-detach", 5.0)
                self._popen.send_signal(signal.SIGUSR1)  # detached properly: the guard need not continue it
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
