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
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from memforensics.case.model import CapturedStack, Frame, Loss, Pause, Stack
from memforensics.errors import MemforensicsError, PermissionNeeded, ProbeFailed, UsageError
from memforensics.probes.gdb.condition import SYSCALL_REGISTERS, Argument, arguments_of, gdb_condition
from memforensics.probes.gdb.mi import MiError, Tuple, number_of, text_of, texts_of, tuples_of
from memforensics.probes.gdb.session import COMMAND_LIMIT_S, GdbDied, GdbRefused, Session, availability, check
from memforensics.symbols.address_space import AddressSpace
from memforensics.symbols.names.symbolizer import Symbolizer
from memforensics.symbols.unwind.unwinder import Registers, Unwound, unwind
from memforensics.target import Process
from memforensics.target.memory import BytesMemory, Unreadable

__all__ = ["Capture", "Captured", "PythonReader", "Stop", "availability", "check"]

MAX_FRAMES = 256
MAX_STACK_BYTES = 1 << 20
RED_ZONE = 128
ATTACH_LIMIT_S = 60.0
SYSCALL_ALIASES = {"mmap64": "mmap", "sbrk": "brk"}


class PythonReader(Protocol):
    """Reads the Python frames of a stopped thread from outside, and puts them in their places afterwards. `cut`: how
    many readings ended before the lists of threads and frames did."""

    cut: int

    def read(self, tid: int) -> object:
        """While the thread is stopped: as little as possible. None when it runs no Python."""
        ...

    def splice(self, unwound: Unwound, native: Sequence[Frame], read: object) -> Stack:
        """Afterwards: the native frames, leaf first, and what `read` gave."""
        ...


TIMED_OUT = "requested captures timed out"


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
            session.attach(ATTACH_LIMIT_S)
        except GdbRefused as error:
            self.process.check()
            if "not permitted" in error.what:
                raise PermissionNeeded(
                    f"not allowed to trace process {self.process.pid}", privilege="CAP_SYS_PTRACE", why=error.what
                ) from error
            raise ProbeFailed(f"gdb cannot attach to {self.process.pid}", why=error.what) from error
        self._wait_all_stopped(session)
        self._plant(session, condition)
        names = texts_of(session.command("-data-list-register-names"), "register-names")
        self._registers = {name: number for number, name in enumerate(names) if name}
        if not {"rip", *SYSCALL_REGISTERS} <= self._registers.keys():
            raise ProbeFailed(f"process {self.process.pid} does not run x86-64 code", why="no other is read here")
        session.stops.clear()
        session.command("-exec-continue --all")
        self._paused(began)

    def _wait_all_stopped(self, session: Session) -> None:
        end = time.monotonic() + COMMAND_LIMIT_S
        while any(text_of(thread, "state") != "stopped" for thread in self._threads(session)):
            if time.monotonic() > end:
                raise ProbeFailed(f"the threads of {self.process.pid} did not stop for gdb")
            session.next_stop(0.01)

    def _threads(self, session: Session) -> list[Tuple]:
        threads = tuples_of(session.command("-thread-info"), "threads")
        for thread in threads:
            found = re.search(r"LWP (\d{1,10})|process (\d{1,10})", text_of(thread, "target-id"))
            if found:
                self._tids[text_of(thread, "id")] = int(found[1] or found[2])
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
                self._lose(TIMED_OUT, self.stop.count - len(self._done))
                return
            heard_ns, payload = got
            if self._too_many(session):
                return
            thread = str(number_of(payload, "thread-id"))
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

    def _handle(self, session: Session, heard_ns: int, thread: str, payload: Tuple) -> _Entry | None:
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
            return number_of(session.command('-data-evaluate-expression "(long)$mf_stops"'), "value")
        except GdbRefused:
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
        found = {number_of(one, "number"): number_of(one, "value") for one in tuples_of(answer, "register-values")}
        try:
            return {name: found[self._registers[name]] for name in names}
        except KeyError as error:
            raise MiError(f"no value of register {error}") from error

    def _copy_stack(self, start: int) -> BytesMemory:
        """From there to the stack's end: a read across it fails whole, so the steps become smaller."""
        copy, step = b"", MAX_STACK_BYTES
        while step >= 8 and len(copy) + step <= MAX_STACK_BYTES:
            with contextlib.suppress(Unreadable):
                copy += self.process.memory.read(start + len(copy), step)
            step //= 2
        return BytesMemory(start, copy)

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
            stack=symbolizer.expanded(stack),
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
