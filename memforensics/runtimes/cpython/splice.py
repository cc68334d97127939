"""Native and Python frames of one stack, made one. Pure, and of any frame types. Stacks are leaf first."""

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from memforensics.runtimes.cpython.stacks import ENTRY, SHIM

NativeT = TypeVar("NativeT")
PythonT = TypeVar("PythonT")


class Spliced(NamedTuple, Generic[NativeT, PythonT]):
    """`doubtful`: the two did not agree. `cut`: what is further out was left away, for it is of other Python code."""

    frames: list[NativeT | PythonT]
    doubtful: bool
    cut: bool


def splice(
    native: Sequence[NativeT],
    python: Sequence[PythonT],
    *,
    is_eval: Callable[[NativeT], bool],
    flags: Callable[[PythonT], int],
    complete: bool = True,
    whole: bool = True,
) -> Spliced[NativeT, PythonT]:
    """Each native eval frame replaced by its run of Python frames.

    A run ends with the frame that has ENTRY, included, or with the one that has SHIM, left out; so the versions of
    CPython need no names here. `complete`: the native walk reached the thread's first frame. Where it did not, the
    Python frames that are left are appended, without doubt; where it did, frames left over, or an eval frame without
    any, make the result doubtful. `whole`: the Python walk reached the chain's end. Then an eval frame beyond that end
    is not of the code that runs (a greenlet's chain ends with the greenlet; its native stack goes on into what another
    one left there): the stack is cut in front of it.
    """
    frames: list[NativeT | PythonT] = []
    position = 0
    doubtful = False
    for one in native:
        if not is_eval(one):
            frames.append(one)
            continue
        run, position, ended = _run(python, position, flags)
        if not ended and not run:
            if whole and python:
                return Spliced(frames, True, True)
            frames.append(one)  # no Python frame for it: the native one stands
            doubtful = True
            continue
        frames.extend(run)
        doubtful = doubtful or not ended
    left = [frame for frame in python[position:] if not flags(frame) & SHIM]
    frames.extend(left)
    return Spliced(frames, doubtful or (complete and bool(left)), False)


def _run(python: Sequence[PythonT], position: int, flags: Callable[[PythonT], int]) -> tuple[list[PythonT], int, bool]:
    """The Python frames of one native eval frame, the position after them, and whether their end mark was there."""
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
