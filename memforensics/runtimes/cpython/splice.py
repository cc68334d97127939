"""Merges the native and Python frames of one stack. Pure; works for any frame types. Stacks are leaf first."""

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from memforensics.runtimes.cpython.stacks import ENTRY, SHIM

NativeT = TypeVar("NativeT")
PythonT = TypeVar("PythonT")


class Spliced(NamedTuple, Generic[NativeT, PythonT]):
    """`doubtful`: the two stacks do not match. `cut`: outer frames were dropped, because they belong to other Python
    code."""

    frames: list[NativeT | PythonT]
    doubtful: bool
    cut: bool


def splice(
    native: Sequence[NativeT],
    python: Sequence[PythonT],
    *,
    is_eval: Callable[[NativeT], bool],
    flags: Callable[[PythonT], int],
    native_complete: bool = True,
    python_complete: bool = True,
) -> Spliced[NativeT, PythonT]:
    """Replaces each native eval frame by its run of Python frames.

    A run ends with a frame that has ENTRY, or before a frame that has SHIM. `native_complete`: the native walk reached
    the thread's first frame. If it did not, the remaining Python frames are appended; if it did, remaining Python
    frames make the result doubtful. An eval frame without Python frames always does. `python_complete`: the Python walk
    reached the end of its chain. An eval frame beyond that end then belongs to other code, and the stack is cut before
    it: a greenlet's chain ends with the greenlet, but its native stack continues into the remains of another one.
    """
    frames: list[NativeT | PythonT] = []
    position = 0
    doubtful = False
    for native_frame in native:
        if not is_eval(native_frame):
            frames.append(native_frame)
            continue
        run, position, ended = _run(python, position, flags)
        if not ended and not run:
            if python_complete and python:
                return Spliced(frames, True, True)
            frames.append(native_frame)  # it has no Python frame: keep the native one
            doubtful = True
            continue
        frames.extend(run)
        doubtful = doubtful or not ended
    rest = [frame for frame in python[position:] if not flags(frame) & SHIM]
    frames.extend(rest)
    return Spliced(frames, doubtful or (native_complete and bool(rest)), False)


def _run(python: Sequence[PythonT], position: int, flags: Callable[[PythonT], int]) -> tuple[list[PythonT], int, bool]:
    """The Python frames of one native eval frame, the position after them, and whether ENTRY or SHIM ended them."""
    run: list[PythonT] = []
    while position < len(python):
        frame = python[position]
        position += 1
        if flags(frame) & SHIM:
            return run, position, True
        run.append(frame)
        if flags(frame) & ENTRY:
            return run, position, True
    return run, position, False
