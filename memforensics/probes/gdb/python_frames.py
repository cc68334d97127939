"""The Python frames of a thread that gdb has stopped, read from outside in place of the interpreter's frames."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from memforensics.case.model import Frame, Stack
from memforensics.errors import MemforensicsError
from memforensics.runtimes.cpython.code import CodeReader
from memforensics.runtimes.cpython.find import CPythonRuntime, find_runtime
from memforensics.runtimes.cpython.splice import splice
from memforensics.runtimes.cpython.stacks import RawFrame, ThreadStack, bounded_stacks
from memforensics.symbols.address_space import AddressSpace
from memforensics.symbols.unwind.unwinder import Unwound, UnwoundFrame
from memforensics.target import Process
from memforensics.target.parse import parse_status, status_numbers

_Native = tuple[UnwoundFrame, Frame]


class PythonStacks:
    """A `gdb.PythonReader`."""

    def __init__(self, process: Process, runtime: CPythonRuntime) -> None:
        self.process, self.runtime = process, runtime
        self.cut = 0
        self._codes = CodeReader(process.memory, runtime.offsets)

    def read(self, tid: int) -> ThreadStack | None:
        """Only the frame chains; code objects are read when the thread runs again. With sub-interpreters the newest
        one's chain comes first."""
        try:
            inner = status_numbers(parse_status(self.process.read_text(f"task/{tid}/status")), "NSpid")
            if not inner:
                return None
            found, is_whole = bounded_stacks(self.runtime, self.process.memory, only=inner[-1])
        except (MemforensicsError, OSError):
            return None
        self.cut += not is_whole
        if not any(stack.frames for stack in found):
            return None
        frames = tuple(frame for stack in found for frame in stack.frames)
        steady, cut = all(stack.steady for stack in found), any(stack.cut for stack in found)
        return replace(found[0], frames=frames, steady=steady, cut=cut)

    def splice(self, unwound: Unwound, native: Sequence[Frame], read: object) -> Stack:
        assert isinstance(read, ThreadStack)
        walked: list[_Native] = list(zip(unwound.frames, native, strict=True))
        is_eval: Callable[[Any], bool] = self._is_eval  # mypy 1.x solves both type variables as their union
        flags: Callable[[Any], int] = _flags
        spliced = splice(walked, read.frames, is_eval=is_eval, flags=flags, native_complete=unwound.complete)
        frames = (self._frame(one) for one in spliced.frames)
        return Stack(
            frames=tuple(frame for frame in frames if frame is not None),
            complete=unwound.complete and not spliced.cut and not read.cut,
            doubtful=spliced.doubtful or not read.steady,
        )

    def _is_eval(self, one: _Native) -> bool:
        return self.runtime.is_eval(one[0].lookup_pc)

    def _frame(self, one: "_Native | RawFrame") -> Frame | None:
        if not isinstance(one, RawFrame):
            return one[1]
        return self._codes.frame(one.code, one.instruction)


def _flags(raw: RawFrame) -> int:
    return raw.flags


def python_stacks(process: Process, space: AddressSpace) -> tuple[PythonStacks | None, str]:
    """A reader, or None and the reason ("" if the process runs no Python)."""
    try:
        runtime = find_runtime(process, space)
    except MemforensicsError as error:
        return None, str(error)
    return (PythonStacks(process, runtime), "") if runtime is not None else (None, "")
