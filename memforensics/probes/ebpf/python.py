"""The Python half of a stack: tells the kernel how to walk a CPython process, and splices what it found."""

import time
from collections.abc import Sequence

from memforensics.case.model import Frame, Stack
from memforensics.errors import MemforensicsError
from memforensics.probes.ebpf.layout import NativePc, PythonFrame
from memforensics.probes.ebpf.programs import MmapPrograms
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


class PythonSide:
    """Of one address space. Without a CPython in it (that we can read: `why_not`), stacks stay native."""

    def __init__(self, process: Process, space: AddressSpace, programs: MmapPrograms) -> None:
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

    def spliced(self, native: Sequence[Symbolized], python: Sequence[PythonFrame], flags: int, complete: bool) -> Stack:
        """One stack of both. Code objects are decoded now: later they may be gone."""
        runtime, codes = self._runtime, self._codes
        if runtime is None or codes is None:
            return Stack(frames=tuple(frame for _, frame in native), complete=complete)

        def is_eval(one: Symbolized | PythonFrame) -> bool:
            return not isinstance(one, PythonFrame) and runtime.is_eval(one[0].pc - int(one[0].is_return))

        def flags_of(one: Symbolized | PythonFrame) -> int:
            return one.flags if isinstance(one, PythonFrame) else 0

        spliced, doubtful = splice(native, python, is_eval=is_eval, flags=flags_of, complete=complete)
        frames = tuple(
            codes.frame(one.code, one.instruction) if isinstance(one, PythonFrame) else one[1] for one in spliced
        )
        return Stack(frames=frames, complete=complete, doubtful=doubtful or bool(flags & _CUT_SHORT))

    def end(self) -> None:
        """The process left: the kernel need not know it any more."""
        if self._runtime is not None:
            self._programs.remove_python(self._process.pid)
