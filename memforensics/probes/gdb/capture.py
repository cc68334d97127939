"""Full stacks of a few calls by gdb, at a system call or at a function's entry. Each pause is measured.

Nothing is ever written into the target's code, so the target survives if gdb dies at any time:

- `set may-insert-breakpoints off` comes before the attach. Otherwise gdb puts an int3 of its own into ld.so
  (`_dl_debug_state`), which kills the target at its next dlopen once gdb is gone (measured with gdb 13.1);
- `--on` uses `catch syscall`, a stop of ptrace itself; `--function` uses a hardware breakpoint;
- writes to memory and registers and inferior calls are off; no script of the user or of the target is read;
- in non-stop mode only the thread that makes the call is stopped. gdb's interrupts are SIGSTOPs, which the guard
  revokes, never a SIGINT;
- `guard` runs between memforensics and gdb.

At a stop gdb returns the registers, the top of the stack is copied from /proc/PID/mem, and the thread continues. Later
`symbols` unwinds and symbolizes it. So gdb reads no symbols, and pauses stay short.
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
    """Reads the Python frames of a stopped thread from outside, and splices them in later. `cut`: how many reads ended
    before the lists of threads and frames did."""

    cut: int

    def read(self, tid: int) -> object:
        """Called while the thread is stopped, so it does little. None if the thread runs no Python."""
        ...

    def splice(self, unwound: Unwound, native: Sequence[Frame], read: object) -> Stack:
        """Called later. `native`: frames, leaf first; `read`: the result of `read`."""
        ...


TIMED_OUT = "requested captures timed out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Where to stop: at a system call by name or, with `address`, at the entry of a function."""

    function: str
    address: int | None = None
    condition: str | None = None
    count: int = 1
    timeout_s: float = 30.0
    max_stopped_s: float = 5.0  # limit of the sum of pauses
    max_stops: int = 20_000  # limit of stops, including those whose condition is false

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
    """A call at its entry, kept until it returns."""

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
        """The captures, fewer than requested if the time is up. TargetGone, PermissionNeeded, ProbeFailed, UsageError;
        the captures up to then are in `result`."""
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
                "gdb was killed while it was attached",
                why=f"{error.why}; process {self.process.pid} continues, its code was never changed",
                enable="run the command again",
            ) from error
        except GdbRefused as error:
            self.process.check()
            raise ProbeFailed(f"gdb failed with process {self.process.pid}", why=error.what) from error
        finally:
            self._symbolize()
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
        self._insert(session, condition)
        names = texts_of(session.command("-data-list-register-names"), "register-names")
        self._registers = {name: number for number, name in enumerate(names) if name}
        if not {"rip", *SYSCALL_REGISTERS} <= self._registers.keys():
            raise ProbeFailed(f"process {self.process.pid} does not run x86-64 code", why="no other code is supported")
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

    def _insert(self, session: Session, condition: str | None) -> None:
        function = SYSCALL_ALIASES.get(self.stop.function, self.stop.function)
        try:
            if self.stop.address is None:
                session.console(f"catch syscall {function}")
            else:
                session.console(f"hbreak *{self.stop.address:#x}")
        except GdbRefused as error:
            if self.stop.address is None:
                raise UsageError(
                    f"gdb does not know the system call {function!r}",
                    why=error.what,
                    enable=f"for a function: memforensics stacks {self.process.pid} --function {function}",
                ) from error
            raise ProbeFailed("a hardware breakpoint cannot be set here", why=error.what) from error
        session.console("set $mf_stops = 0")
        try:
            session.console(f"condition 1 $mf_stops++ >= {self.stop.max_stops} || ({condition or '1'})")
        except GdbRefused as error:
            raise UsageError(f"--if {self.stop.condition!r} is not valid", why=error.what) from error

    def _collect(self, session: Session) -> None:
        end = time.monotonic() + self.stop.timeout_s
        while len(self._done) < self.stop.count:
            got = session.next_stop(end - time.monotonic())
            if got is None:
                self._add_loss(TIMED_OUT, self.stop.count - len(self._done))
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
                self._add_loss(
                    f"captures skipped: the target was stopped for {self.stop.max_stopped_s:g} s in total",
                    self.stop.count - len(self._done),
                )
                return

    def _handle(self, session: Session, heard_ns: int, thread: str, payload: Tuple) -> _Entry | None:
        """The entry that the stop begins or completes."""
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
        """Whether the limit of stops is reached; the condition then holds because of the limit."""
        if self.stop.condition is None or self._stops(session) <= self.stop.max_stops:
            return False
        self._add_loss(
            f"captures skipped: the limit of {self.stop.max_stops} stops was reached", self.stop.count - len(self._done)
        )
        return True

    def _stops(self, session: Session) -> int:
        try:
            return number_of(session.command('-data-evaluate-expression "(long)$mf_stops"'), "value")
        except GdbRefused:
            return 0

    def _count_unmatched(self, session: Session) -> None:
        unmatched = self._stops(session) - max(0, len(self.result.pauses) - 1)
        if self.stop.condition is not None and unmatched > 0:
            self._add_loss(
                "stops whose condition was false: short, and not in the measured pauses",
                unmatched,
                "trace-mmap, which costs far less for a frequent call",
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
        """From `start` to the end of the stack. A read across the end fails as a whole, so the steps become smaller."""
        copy, step = b"", MAX_STACK_BYTES
        while step >= 8 and len(copy) + step <= MAX_STACK_BYTES:
            with contextlib.suppress(Unreadable):
                copy += self.process.memory.read(start + len(copy), step)
            step //= 2
        return BytesMemory(start, copy)

    def _symbolize(self) -> None:
        """Unwinds and symbolizes the entries, now that the target runs."""
        entries = [*self._done, *self._pending.values()]
        self._done, self._pending = [], {}
        if entries:
            with contextlib.suppress(MemforensicsError):  # it left: use what is known
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

    def _add_loss(self, what: str, count: int, reduce: str = "--timeout, --count") -> None:
        self.result.losses.append(Loss(probe="gdb", what=what, count=count, reduce=reduce))


def _signed(word: int) -> int:
    """The return value of a system call: -errno is a small negative number, an address is not."""
    return word - (1 << 64) if word >= (1 << 64) - 4096 else word
