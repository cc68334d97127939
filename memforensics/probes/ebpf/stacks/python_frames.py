"""The Python half of a stack: tells the kernel how to walk a CPython process, and splices what it found."""

import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from memforensics.case.model import Frame, Stack
from memforensics.errors import MemforensicsError
from memforensics.probes.ebpf.loader.layout import NativePc, PythonFrame
from memforensics.runtimes.cpython.code import CodeReader
from memforensics.runtimes.cpython.find import CPythonRuntime, find_runtime
from memforensics.runtimes.cpython.kernel import KERNEL_FINDS, pack_process, pack_threads, pid_namespace
from memforensics.runtimes.cpython.offsets import UnsupportedPython
from memforensics.runtimes.cpython.splice import splice
from memforensics.runtimes.cpython.stacks import states_by_thread
from memforensics.symbols.address_space import AddressSpace
from memforensics.target import Process
from memforensics.target.memory import Unreadable, read_u64

LOOK_AGAIN_S = 1.0  # for a CPython that was not yet loaded or initialized, or has been unloaded

# struct py_stack.flags of pyframes.bpf.h
_TRUNCATED, _UNREADABLE, _TOO_MANY, _SEVERAL = 2, 4, 8, 16
_CUT_SHORT = {
    _TRUNCATED: "stacks whose outermost Python frames are missing: more than 128",
    _UNREADABLE: "stacks whose outer Python frames are missing: one could not be read",
    _TOO_MANY: "stacks without their Python frames: more than 256 threads, or in more than 4 interpreters",
}
DISAGREE = "stacks whose native and Python frames do not agree, cut where that begins"
SEVERAL = "stacks without their Python frames: in which of several interpreters they are is not certain"
NAMELESS = "Python frames without a name: their code was gone when it was read"

Symbolized = tuple[NativePc, Frame]
Decoded = dict[PythonFrame, Frame | None]  # None: the interpreter's own, not for people


class PythonPrograms(Protocol):
    """Loaded programs that walk Python frames where `python` is true."""

    python: bool

    def add_python(self, pid: int, packed: bytes) -> None: ...
    def add_python_thread(self, pid: int, tid: int, packed: bytes) -> None: ...
    def remove_python(self, pid: int) -> None: ...


class PythonSide:
    """Of one address space. Without a CPython in it (that we can read: `why_not`), stacks stay native.

    `lost`: what and how often, by the stacks that were spliced."""

    def __init__(self, process: Process, space: AddressSpace, programs: PythonPrograms) -> None:
        self._process, self._space, self._programs = process, space, programs
        self._runtime: CPythonRuntime | None = None
        self._codes: CodeReader | None = None
        self._look_again = self._tell_again = 0.0
        self.why_not: str | None = None
        self.lost: Counter[str] = Counter()
        self.look()

    @property
    def found(self) -> bool:
        """Whether there is a CPython, and the kernel knows it."""
        return self._runtime is not None

    def look(self) -> None:
        """Looks for a CPython, once a second at most, until there is one, and whether it still is."""
        if not self._programs.python or time.monotonic() < self._look_again:
            return
        self._look_again = time.monotonic() + LOOK_AGAIN_S
        if self._runtime is not None:
            if self._runtime.module.identity in {module.identity for module in self._space.modules}:
                return
            self.end()
            self._runtime, self._codes = None, None
        try:
            runtime = find_runtime(self._process, self._space)
        except UnsupportedPython as error:
            self.why_not = str(error)
            return
        except MemforensicsError:
            return  # it is leaving, or not yet there
        if runtime is None:
            return
        self._runtime, self._codes = runtime, CodeReader(self._process.memory, runtime.offsets)
        self._programs.add_python(self._process.pid, pack_process(runtime, pid_namespace(self._process)))
        self._tell_old_threads(runtime)

    def _tell_old_threads(self, runtime: CPythonRuntime) -> None:
        """CPython lists its threads newest first, and the kernel looks at the first KERNEL_FINDS of them: it is told of
        the older ones, of which the main thread is the last."""
        if time.monotonic() < self._tell_again or pid_namespace(self._process) != (0, 0):
            return
        self._tell_again = time.monotonic() + LOOK_AGAIN_S
        with contextlib.suppress(MemforensicsError, Unreadable):
            memory = self._process.memory
            head = read_u64(memory, runtime.address + runtime.offsets.interpreters_head)
            for tid, states in states_by_thread(runtime, memory)[KERNEL_FINDS // 2 :]:
                packed = pack_threads(states, head, time.monotonic_ns())
                self._programs.add_python_thread(self._process.pid, tid, packed)

    def decoded(self, python: Sequence[PythonFrame]) -> Decoded:
        """The frames for people. Now: later the code objects may be gone."""
        if self._codes is None:
            return {}
        return {one: self._codes.frame(one.code, one.instruction, one.flags) for one in python}

    def spliced(
        self,
        native: Sequence[Symbolized],
        python: Sequence[PythonFrame],
        flags: int,
        complete: bool,
        decoded: Decoded | None = None,
    ) -> Stack:
        """One stack of both; the Python frames `decoded`, or now."""
        runtime = self._runtime
        known = self.decoded(python) if decoded is None else decoded
        if runtime is None or not known:
            python = ()
        if runtime is None:
            if self.why_not is not None:
                self.lost[f"stacks without their Python frames: {self.why_not}"] += 1
            return Stack(frames=tuple(frame for _, frame in native), complete=complete)

        def is_eval(one: Symbolized | PythonFrame) -> bool:
            return not isinstance(one, PythonFrame) and runtime.is_eval(one[0].pc - int(one[0].is_return))

        def flags_of(one: Symbolized | PythonFrame) -> int:
            return one.flags if isinstance(one, PythonFrame) else 0

        short = [what for flag, what in _CUT_SHORT.items() if flags & flag]
        if flags & _TOO_MANY:
            self._tell_old_threads(runtime)  # for the next stack
        whole = not short
        made = splice(native, python, is_eval=is_eval, flags=flags_of, complete=complete, whole=whole)
        # With several interpreters the frames may be of another one. Only a whole native stack shows that they are not.
        uncertain = bool(flags & _SEVERAL and python) and (made.doubtful or not complete)
        if (made.doubtful or uncertain) and whole:
            if uncertain:
                short = [SEVERAL]
                made = splice(native, (), is_eval=is_eval, flags=flags_of, complete=complete)
            else:
                short = [DISAGREE]
        self.lost.update(short)
        frames = [known[one] if isinstance(one, PythonFrame) else one[1] for one in made.frames]
        self.lost[NAMELESS] += sum(frame is not None and _is_nameless(frame) for frame in frames)
        return Stack(
            frames=tuple(frame for frame in frames if frame is not None),
            complete=complete and not made.cut,
            doubtful=made.doubtful or bool(short),
        )

    def end(self) -> None:
        """The process left: the kernel need not know it any more."""
        if self._runtime is not None:
            self._programs.remove_python(self._process.pid)


def _is_nameless(frame: Frame) -> bool:
    return frame.kind == "python" and frame.function is None
