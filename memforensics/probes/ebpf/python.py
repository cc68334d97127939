"""The Python half of a stack: tells the kernel how to walk a CPython process, and splices what it found."""

import time
from collections.abc import Sequence
from typing import Protocol

from memforensics.case.model import Frame, Stack
from memforensics.errors import MemforensicsError
from memforensics.probes.ebpf.layout import NativePc, PythonFrame
from memforensics.runtimes.cpython.code import CodeReader
from memforensics.runtimes.cpython.find import CPythonRuntime, find_runtime
from memforensics.runtimes.cpython.kernel import pack_process, pid_namespace
from memforensics.runtimes.cpython.offsets import UnsupportedPython
from memforensics.runtimes.cpython.splice import splice
from memforensics.symbols.space import AddressSpace
from memforensics.target import Process

LOOK_AGAIN_S = 1.0  # for a CPython that was not yet loaded or initialized
_CUT_SHORT = 2 | 4 | 8  # PY_TRUNCATED, PY_UNREADABLE, PY_TOO_MANY of pyframes.bpf.h

Symbolized = tuple[NativePc, Frame]
Decoded = dict[PythonFrame, Frame]


class PythonPrograms(Protocol):
    """Loaded programs that walk Python frames where `python` is true."""

    python: bool

    def add_python(self, pid: int, packed: bytes) -> None: ...
    def remove_python(self, pid: int) -> None: ...


class PythonSide:
    """Of one address space. Without a CPython in it (that we can read: `why_not`), stacks stay native."""

    def __init__(self, process: Process, space: AddressSpace, programs: PythonPrograms) -> None:
        self._process, self._space, self._programs = process, space, programs
        self._runtime: CPythonRuntime | None = None
        self._codes: CodeReader | None = None
        self._look_again = 0.0
        self.why_not: str | None = None
        self.look()

    def look(self) -> None:
        """Looks for a CPython, once a second at most, until there is one."""
        if not self._programs.python or self._runtime is not None or time.monotonic() < self._look_again:
            return
        self._look_again = time.monotonic() + LOOK_AGAIN_S
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

    def decoded(self, python: Sequence[PythonFrame]) -> Decoded:
        """The frames for people. Now: later the code objects may be gone."""
        if self._codes is None:
            return {}
        return {one: self._codes.frame(one.code, one.instruction) for one in python}

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
            return Stack(frames=tuple(frame for _, frame in native), complete=complete)

        def is_eval(one: Symbolized | PythonFrame) -> bool:
            return not isinstance(one, PythonFrame) and runtime.is_eval(one[0].pc - int(one[0].is_return))

        def flags_of(one: Symbolized | PythonFrame) -> int:
            return one.flags if isinstance(one, PythonFrame) else 0

        spliced, doubtful = splice(native, python, is_eval=is_eval, flags=flags_of, complete=complete)
        frames = tuple(known[one] if isinstance(one, PythonFrame) else one[1] for one in spliced)
        return Stack(frames=frames, complete=complete, doubtful=doubtful or bool(flags & _CUT_SHORT))

    def end(self) -> None:
        """The process left: the kernel need not know it any more."""
        if self._runtime is not None:
            self._programs.remove_python(self._process.pid)
