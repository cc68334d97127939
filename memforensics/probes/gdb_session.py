"""One gdb, spoken to through gdb/MI (pygdbmi), and whether it may attach at all.

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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pygdbmi.gdbcontroller import GdbController

from memforensics.errors import MemforensicsError, PermissionNeeded, ProbeFailed, TargetGone, ToolMissing
from memforensics.probes import gdb_guard
from memforensics.probes.base import Availability
from memforensics.target import Process
from memforensics.target.parse import parse_stat, parse_status

COMMAND_LIMIT_S = 20.0
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
    "non-stop on",
    "mi-async on",
    "confirm off",
    "pagination off",
    "width 0",
    "print thread-events off",
)


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
    tracer = int(status.get("TracerPid", "0"))
    if tracer:
        raise ProbeFailed(
            f"process {process.pid} is traced already, by {_name_of(process, tracer)} (PID {tracer})",
            why="the kernel allows one debugger a process",
            enable=f"end that debugger first, or look without gdb: memforensics trace-mmap {process.pid}",
        )
    if status.get("State", "").startswith("T"):
        raise ProbeFailed(
            f"process {process.pid} is stopped (by a signal)",
            why="it makes no calls until it is continued",
            enable=f"kill -CONT {process.pid}",
        )
    _check_ptrace(process, status)
    return gdb


def _name_of(process: Process, pid: int) -> str:
    try:
        return parse_stat(process.proc.read_text(pid, "stat")).comm
    except (MemforensicsError, OSError, ValueError):
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
        self.stops: deque[tuple[int, dict[str, Any]]] = deque()  # (monotonic ns, payload of *stopped)
        self.gone = False  # the target left while attached
        settings = [word for setting in _SETTINGS for word in ("-iex", f"set {setting}")]
        command = [
            *(sys.executable, "-I", str(Path(gdb_guard.__file__)), f"--parent={os.getpid()}"),
            *(f"--target={process.pid}", f"--deadline={deadline_s}", *(["--hardware"] if hardware else []), "--"),
            *(gdb, "--nx", "--nh", "--quiet", "--readnever", "--interpreter=mi3", *settings),
        ]
        self._controller: Any = GdbController(command=command, time_to_check_for_additional_output_sec=0)
        popen: Any = self._controller.gdb_process
        self._popen = popen
        assert self._popen.stdout is not None
        self._output = self._popen.stdout.fileno()
        self._results: deque[dict[str, Any]] = deque()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def guard_pid(self) -> int:
        return int(self._popen.pid)

    def command(self, text: str, limit_s: float = COMMAND_LIMIT_S) -> dict[str, Any]:
        """Sends one MI command; the payload of its result. GdbRefused on ^error, GdbDied, ProbeFailed on silence."""
        with self._deadly():
            self._controller.write(text, read_response=False)
        end = time.monotonic() + limit_s
        while not self._results:
            left = end - time.monotonic()
            if left <= 0:
                raise ProbeFailed(f"gdb did not answer {text.split()[0]} within {limit_s:.0f} s")
            self._receive(left)
        result = self._results.popleft()
        payload = result["payload"] or {}
        if result["message"] == "error":
            raise GdbRefused(str(payload.get("msg", "")))
        return dict(payload)

    def console(self, text: str) -> None:
        """A command of gdb's own console."""
        escaped = text.replace("\\", "\\\\").replace('"', '\\"')
        self.command(f'-interpreter-exec console "{escaped}"')

    def next_stop(self, limit_s: float) -> tuple[int, dict[str, Any]] | None:
        """The next stop, with the time it was heard of; None when none came in time. TargetGone when it left."""
        end = time.monotonic() + limit_s
        while not self.stops:
            if self.gone:
                raise TargetGone(self.process.pid, self.process.left_how() or "it exited")
            left = end - time.monotonic()
            if left <= 0:
                return None
            self._receive(left)
        return self.stops.popleft()

    def _receive(self, limit_s: float) -> None:
        with self._deadly():
            if not select.select([self._output], [], [], min(limit_s, 0.5))[0]:
                return
            records = self._controller.get_gdb_response(timeout_sec=0, raise_error_on_timeout=False)
        now = time.monotonic_ns()
        for record in records:
            kind, message = record["type"], record["message"]
            if kind == "result":
                self._results.append(record)
            elif kind == "notify" and message == "stopped":
                if str(record["payload"].get("reason", "")).startswith("exited"):
                    self.gone = True
                else:
                    self.stops.append((now, record["payload"]))
            elif kind == "notify" and message == "thread-group-exited":
                self.gone = True
        if not records and self._popen.poll() is not None:
            raise GdbDied("gdb ended unexpectedly", why=f"exit code {self._popen.returncode}")
        if not records:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(0.01)  # end-of-file while the guard is still cleaning up

    @contextlib.contextmanager
    def _deadly(self) -> Any:
        try:
            yield
        except (BrokenPipeError, OSError, ValueError) as error:
            raise GdbDied("gdb ended unexpectedly", why=str(error)) from error

    def close(self) -> None:
        """Detaches and ends gdb: politely, then through the guard, then by force. Twice is fine."""
        if self._popen.poll() is None:
            with contextlib.suppress(MemforensicsError):
                if not self.gone:
                    self.command("-target-detach", 5.0)
                self.command("-gdb-exit", 2.0)
        for force in (None, signal.SIGTERM, signal.SIGKILL):
            if force is not None:
                self._popen.send_signal(force)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(5.0)
                break
        for stream in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
