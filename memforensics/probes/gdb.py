"""A few full stacks, by gdb, at a system call or at a function's entry; each pause measured.

Nothing is ever written into the target's code, which is why it survives gdb's death at any moment:

- `set may-insert-breakpoints off` comes before the attach, or gdb puts an int3 of its own into ld.so
  (`_dl_debug_state`), deadly at the next dlopen once gdb is gone (measured with gdb 13.1);
- `--on` uses `catch syscall`, which is ptrace's own stop; `--function` a hardware breakpoint;
- memory, registers and inferior calls are switched off; no script is read: neither the user's, nor the target's;
- non-stop mode: only the thread that makes the call waits; the others run on. Its interrupts are SIGSTOPs, which
  `gdb_guard` takes back, never a SIGINT;
- `gdb_guard` stands between us and gdb.

At a stop gdb gives the registers, the top of the stack is copied from /proc/PID/mem, and the thread goes on: it is
unwound and symbolized afterwards, by `symbols`. So gdb reads no symbols, and the pauses stay short.
"""

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pygdbmi.gdbcontroller import GdbController

from memforensics.case.model import CapturedStack, Frame, Loss, Pause, Stack
from memforensics.errors import MemforensicsError, PermissionNeeded, ProbeFailed, TargetGone, ToolMissing, UsageError
from memforensics.probes import gdb_guard
from memforensics.probes.base import Availability
from memforensics.probes.gdb_condition import Argument, arguments_of, gdb_condition
from memforensics.symbols.space import AddressSpace
from memforensics.symbols.symbolize import Symbolizer
from memforensics.symbols.unwind import Registers, Unwound, unwind
from memforensics.target import Process
from memforensics.target.memory import BytesMemory, Unreadable
from memforensics.target.parse import parse_stat, parse_status

MAX_FRAMES = 256
STACK_BYTES = (1 << 20, 256 << 10, 64 << 10, 16 << 10, 4 << 10, 1 << 10)  # the largest that is there is copied
RED_ZONE = 128
ATTACH_LIMIT_S = 60.0
COMMAND_LIMIT_S = 20.0
CAP_SYS_PTRACE = 19  # include/uapi/linux/capability.h
SYSCALL_ALIASES = {"mmap64": "mmap", "sbrk": "brk"}

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


class PythonReader(Protocol):
    """Reads the Python frames of a stopped thread from outside, and puts them in their places afterwards."""

    def read(self, tid: int) -> object:
        """While the thread is stopped: as little as possible. None when it runs no Python."""
        ...

    def splice(self, unwound: Unwound, native: Sequence[Frame], read: object) -> Stack:
        """Afterwards: the native frames, leaf first, and what `read` gave."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Where to stop: a system call by name, or (`address`) the entry of a function."""

    function: str
    address: int | None = None
    condition: str | None = None
    count: int = 1
    timeout_s: float = 30.0
    max_stopped_s: float = 5.0  # cap on all pauses together
    max_stops: int = 20_000  # cap on stops, those whose condition did not hold included

    @property
    def is_syscall(self) -> bool:
        return self.address is None


@dataclass(slots=True)
class Captured:
    captures: list[CapturedStack] = field(default_factory=list)
    pauses: list[Pause] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)


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
            enable=f"sudo memforensics stacks {process.pid} ...   (containers: add the capability SYS_PTRACE)",
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


# --- capturing ---------------------------------------------------------------------------------------------------


_UNWIND_REGISTERS = ("rip", "rsp", "rbp", "rbx", "r12", "r13", "r14", "r15")


@dataclass(slots=True)
class _Entry:
    """A call seen at its entry, kept until it returns."""

    t_ns: int
    tid: int
    arguments: tuple[tuple[str, int], ...]
    registers: Registers
    stack: BytesMemory
    python: object
    pause_ms: float = 0.0
    returned: int | None = None


class Capture:
    """Attaches, stops `stop.count` times, detaches."""

    def __init__(
        self,
        process: Process,
        stop: Stop,
        *,
        space: AddressSpace,
        python: PythonReader | None = None,
    ) -> None:
        self.process, self.stop, self.space, self.python = process, stop, space, python
        self.result = Captured()
        self._pending: dict[int, _Entry] = {}
        self._done: list[_Entry] = []
        self._arguments: tuple[Argument, ...] = arguments_of(stop.function, syscall=stop.is_syscall)
        self._registers: dict[str, int] = {}
        self._tids: dict[str, int] = {}  # gdb's thread number -> tid

    def run(self) -> Captured:
        """What was captured; also what was before the time was up. TargetGone, PermissionNeeded, ProbeFailed,
        UsageError. The captures so far are in `result` when one is raised."""
        gdb = check(self.process)
        condition = (
            gdb_condition(self.stop.condition, self.stop.function, syscall=self.stop.is_syscall)
            if self.stop.condition is not None
            else None
        )
        deadline_s = ATTACH_LIMIT_S + self.stop.timeout_s + 10.0
        try:
            with Session(self.process, gdb, deadline_s=deadline_s, hardware=not self.stop.is_syscall) as session:
                self._attach(session, condition)
                self._collect(session)
                self._count_unmatched(session)
        except GdbDied as error:
            self.process.check()
            raise GdbDied(
                "gdb was ended from outside while it was attached",
                why=f"{error.why}; process {self.process.pid} goes on, its code was never changed",
                enable="run the command again",
            ) from error
        except GdbRefused as error:
            self.process.check()
            raise ProbeFailed(f"gdb cannot go on with process {self.process.pid}", why=error.what) from error
        finally:
            self._conclude()
        return self.result

    def _attach(self, session: Session, condition: str | None) -> None:
        session.console("handle all nostop noprint pass")
        session.console("handle SIGINT nostop noprint pass")
        with contextlib.suppress(GdbRefused):  # a gdb built without debuginfod
            session.console("set debuginfod enabled off")
        began = time.monotonic_ns()
        try:
            session.command(f"-target-attach {self.process.pid}", ATTACH_LIMIT_S)
        except GdbRefused as error:
            self.process.check()
            if "not permitted" in error.what:
                raise PermissionNeeded(
                    f"not allowed to trace process {self.process.pid}", privilege="CAP_SYS_PTRACE", why=error.what
                ) from error
            raise ProbeFailed(f"gdb cannot attach to {self.process.pid}", why=error.what) from error
        self._wait_all_stopped(session)
        self._plant(session, condition)
        names = session.command("-data-list-register-names")["register-names"]
        self._registers = {name: number for number, name in enumerate(names) if name}
        session.stops.clear()
        session.command("-exec-continue --all")
        self._paused(began)

    def _wait_all_stopped(self, session: Session) -> None:
        end = time.monotonic() + COMMAND_LIMIT_S
        while any(thread.get("state") != "stopped" for thread in self._threads(session)):
            if time.monotonic() > end:
                raise ProbeFailed(f"the threads of {self.process.pid} did not stop for gdb")
            session.next_stop(0.01)

    def _threads(self, session: Session) -> list[dict[str, Any]]:
        threads = list(session.command("-thread-info").get("threads", ()))
        for thread in threads:
            found = re.search(r"LWP (\d+)|process (\d+)", thread.get("target-id", ""))
            if found:
                self._tids[thread["id"]] = int(found[1] or found[2])
        return threads

    def _plant(self, session: Session, condition: str | None) -> None:
        function = SYSCALL_ALIASES.get(self.stop.function, self.stop.function)
        try:
            if self.stop.address is None:
                session.console(f"catch syscall {function}")
            else:
                session.console(f"hbreak *{self.stop.address:#x}")
        except GdbRefused as error:
            if self.stop.address is None:
                raise UsageError(
                    f"gdb knows no system call {function!r}",
                    why=error.what,
                    enable=f"a function is named so: memforensics stacks {self.process.pid} --function {function}",
                ) from error
            raise ProbeFailed("no hardware breakpoint can be set here", why=error.what) from error
        session.console("set $mf_stops = 0")
        try:
            session.console(f"condition 1 $mf_stops++ >= {self.stop.max_stops} || ({condition or '1'})")
        except GdbRefused as error:
            raise UsageError(f"--if {self.stop.condition!r} is not understood", why=error.what) from error

    def _collect(self, session: Session) -> None:
        end = time.monotonic() + self.stop.timeout_s
        while len(self._done) < self.stop.count:
            got = session.next_stop(end - time.monotonic())
            if got is None:
                self._lose("captures that were asked for did not come in time", self.stop.count - len(self._done))
                return
            heard_ns, payload = got
            if self._too_many(session):
                return
            thread = str(payload.get("thread-id", ""))
            entry = self._handle(session, heard_ns, thread, payload)
            session.command(f"-exec-continue --thread {thread}")
            pause_ms = self._paused(heard_ns)
            if entry is not None:
                entry.pause_ms += pause_ms
            if sum(pause.ms for pause in self.result.pauses) > self.stop.max_stopped_s * 1000:
                self._lose(
                    f"captures left out: the target had been stopped for {self.stop.max_stopped_s:g} s in all",
                    self.stop.count - len(self._done),
                )
                return

    def _handle(self, session: Session, heard_ns: int, thread: str, payload: dict[str, Any]) -> _Entry | None:
        """What to keep of one stop."""
        reason = payload.get("reason")
        tid = self._tid(session, thread)
        if reason == "syscall-return":
            entry = self._pending.pop(tid, None)
            if entry is not None:
                entry.returned = _signed(self._values(session, thread, ("rax",))["rax"])
                self._done.append(entry)
            return entry
        if reason not in ("syscall-entry", "breakpoint-hit") or self._enough():
            return None
        registers = tuple(argument.register for argument in self._arguments)
        words = self._values(session, thread, (*registers, *_UNWIND_REGISTERS))
        entry = _Entry(
            t_ns=heard_ns,
            tid=tid,
            arguments=tuple((a.name, a.value(words[a.register])) for a in self._arguments),
            registers=Registers(**{name: words[name] for name in _UNWIND_REGISTERS}),
            stack=self._copy_stack(words["rsp"] - RED_ZONE),
            python=self.python.read(tid) if self.python is not None else None,
        )
        if reason == "syscall-entry":
            self._pending[tid] = entry
        else:
            self._done.append(entry)
        return entry

    def _enough(self) -> bool:
        return len(self._done) + len(self._pending) >= self.stop.count

    def _too_many(self, session: Session) -> bool:
        """Whether the cap on stops is reached: this stop is then of the cap's making."""
        if self.stop.condition is None or self._stops(session) <= self.stop.max_stops:
            return False
        self._lose(f"given up after {self.stop.max_stops} stops", self.stop.count - len(self._done))
        return True

    def _stops(self, session: Session) -> int:
        try:
            return int(session.command('-data-evaluate-expression "(long)$mf_stops"')["value"])
        except (GdbRefused, KeyError, ValueError):
            return 0

    def _count_unmatched(self, session: Session) -> None:
        unmatched = self._stops(session) - max(0, len(self.result.pauses) - 1)
        if self.stop.condition is not None and unmatched > 0:
            self._lose(
                "stops whose condition did not hold: short, and not in the measured pauses",
                unmatched,
                "trace-mmap costs far less where the call is frequent",
            )

    def _tid(self, session: Session, thread: str) -> int:
        if thread not in self._tids:
            self._threads(session)
        return self._tids.get(thread, 0)

    def _values(self, session: Session, thread: str, names: Sequence[str]) -> dict[str, int]:
        numbers = " ".join(str(self._registers[name]) for name in names)
        answer = session.command(f"-data-list-register-values --thread {thread} --frame 0 x {numbers}")
        by_number = {int(item["number"]): int(item["value"], 16) for item in answer["register-values"]}
        return {name: by_number[self._registers[name]] for name in names}

    def _copy_stack(self, start: int) -> BytesMemory:
        for size in STACK_BYTES:
            with contextlib.suppress(Unreadable):
                return BytesMemory(start, self.process.memory.read(start, size))
        return BytesMemory(start, b"")

    def _conclude(self) -> None:
        """Unwinds and symbolizes what was kept, now that the target runs."""
        entries = [*self._done, *self._pending.values()]
        self._done, self._pending = [], {}
        if entries:
            with contextlib.suppress(MemforensicsError):  # it left: what was known before must do
                self.space.refresh()
            symbolizer = Symbolizer(self.space)
            self.result.captures.extend(self._captured(entry, symbolizer) for entry in entries)

    def _captured(self, entry: _Entry, symbolizer: Symbolizer) -> CapturedStack:
        unwound = unwind(entry.registers, entry.stack, self.space, MAX_FRAMES)
        native = [symbolizer.unwound(frame) for frame in unwound.frames]
        if self.python is not None and entry.python is not None:
            stack = self.python.splice(unwound, native, entry.python)
        else:
            stack = Stack(frames=tuple(native), complete=unwound.complete)
        return CapturedStack(
            pid=self.process.pid,
            tid=entry.tid,
            t_ns=entry.t_ns,
            function=self.stop.function,
            arguments=entry.arguments,
            returned=entry.returned,
            stack=stack,
            pause_ms=entry.pause_ms,
        )

    def _paused(self, began_ns: int) -> float:
        ms = (time.monotonic_ns() - began_ns) / 1e6
        self.result.pauses.append(Pause(pid=self.process.pid, t_ns=began_ns, probe="gdb", ms=ms))
        return ms

    def _lose(self, what: str, count: int, reduce: str = "--timeout, --count") -> None:
        self.result.losses.append(Loss(probe="gdb", what=what, count=count, reduce=reduce))


def _signed(word: int) -> int:
    """A system call's return value: -errno is small and negative, an address is not."""
    return word - (1 << 64) if word >= (1 << 64) - 4096 else word
