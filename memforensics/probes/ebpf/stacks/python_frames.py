"""The Python frames of a stack: gives the kernel the offsets of a CPython process, and splices the frames it walked."""

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
from memforensics.runtimes.cpython.kernel import KERNEL_MAX_STATES, pack_process, pack_threads, pid_namespace
from memforensics.runtimes.cpython.offsets import UnsupportedPython
from memforensics.runtimes.cpython.splice import splice
from memforensics.runtimes.cpython.stacks import states_by_thread
from memforensics.symbols.address_space import AddressSpace
from memforensics.target import Process
from memforensics.target.memory import Unreadable, read_u64

DETECT_INTERVAL_S = 1.0  # a CPython may be loaded, initialized or unloaded later

# struct py_stack.flags of pyframes.bpf.h
_TRUNCATED, _UNREADABLE, _TOO_MANY, _SEVERAL = 2, 4, 8, 16
_CUT_SHORT = {
    _TRUNCATED: "stacks whose outermost Python frames are missing: more than 128",
    _UNREADABLE: "stacks whose outer Python frames are missing: one could not be read",
    _TOO_MANY: "stacks without their Python frames: more than 256 threads, or in more than 4 interpreters",
}
DISAGREE = "stacks cut short: native and Python frames disagree"
SEVERAL = "stacks without their Python frames: it is uncertain which of several interpreters they are in"
NAMELESS = "Python frames without a name: their code was freed before it was read"

Symbolized = tuple[NativePc, Frame]
Decoded = dict[PythonFrame, Frame | None]  # None: a frame of the interpreter itself, which is not shown


class PythonPrograms(Protocol):
    """Loaded programs that walk Python frames if `python` is true."""

    python: bool

    def add_python(self, pid: int, packed: bytes) -> None: ...
    def add_python_thread(self, pid: int, tid: int, packed: bytes) -> None: ...
    def remove_python(self, pid: int) -> None: ...


class PythonUnwinder:
    """The CPython of one address space. Without one, or with one that cannot be read (`why_not`), stacks stay native.

    `lost`: counts of what the spliced stacks lack."""

    def __init__(self, process: Process, space: AddressSpace, programs: PythonPrograms) -> None:
        self._process, self._space, self._programs = process, space, programs
        self._runtime: CPythonRuntime | None = None
        self._codes: CodeReader | None = None
        self._next_detect = self._next_threads = 0.0
        self.why_not: str | None = None
        self.lost: Counter[str] = Counter()
        self.detect()

    @property
    def found(self) -> bool:
        """Whether there is a CPython and the kernel walks it."""
        return self._runtime is not None

    def detect(self) -> None:
        """Searches for a CPython, once a second at most; when there is one, checks whether it is still loaded."""
        if not self._programs.python or time.monotonic() < self._next_detect:
            return
        self._next_detect = time.monotonic() + DETECT_INTERVAL_S
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
            return  # it is exiting, or not ready yet
        if runtime is None:
            return
        self._runtime, self._codes = runtime, CodeReader(self._process.memory, runtime.offsets)
        self._programs.add_python(self._process.pid, pack_process(runtime, pid_namespace(self._process)))
        self._add_old_threads(runtime)

    def _add_old_threads(self, runtime: CPythonRuntime) -> None:
        """CPython lists its threads newest first, and the kernel searches the first KERNEL_MAX_STATES of them. So it is
        given the older ones; the main thread is the last."""
        if time.monotonic() < self._next_threads or pid_namespace(self._process) != (0, 0):
            return
        self._next_threads = time.monotonic() + DETECT_INTERVAL_S
        with contextlib.suppress(MemforensicsError, Unreadable):
            memory = self._process.memory
            head = read_u64(memory, runtime.address + runtime.offsets.interpreters_head)
            for tid, states in states_by_thread(runtime, memory)[KERNEL_MAX_STATES // 2 :]:
                packed = pack_threads(states, head, time.monotonic_ns())
                self._programs.add_python_thread(self._process.pid, tid, packed)

    def decoded(self, python: Sequence[PythonFrame]) -> Decoded:
        """The frames by name. Call it at once: later the code objects may be freed."""
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
        """Joins native and Python frames. `decoded`: the Python frames by name; None: they are read now."""
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
            self._add_old_threads(runtime)  # for the next stack
        whole = not short
        made = splice(native, python, is_eval=is_eval, flags=flags_of, native_complete=complete, python_complete=whole)
        # With several interpreters the frames may be of another one. Only a whole native stack shows that they are not.
        uncertain = bool(flags & _SEVERAL and python) and (made.doubtful or not complete)
        if (made.doubtful or uncertain) and whole:
            if uncertain:
                short = [SEVERAL]
                made = splice(native, (), is_eval=is_eval, flags=flags_of, native_complete=complete)
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
        """The process exited: removes it from the kernel's table."""
        if self._runtime is not None:
            self._programs.remove_python(self._process.pid)


def _is_nameless(frame: Frame) -> bool:
    return frame.kind == "python" and frame.function is None
