"""Reads the Python stacks of all threads of a process from outside. Best effort: the process is never stopped.

A chain that changes while it is read is read again; after some tries the last reading is returned and marked.
"""

import contextlib
import platform
import struct
from dataclasses import dataclass

from memforensics.case.model import Frame
from memforensics.runtimes.cpython.code import CodeReader
from memforensics.runtimes.cpython.find import CPythonRuntime
from memforensics.runtimes.cpython.offsets import Offsets
from memforensics.target.memory import Memory, Unreadable, read_u32, read_u64

ENTRY, SHIM = 1, 2  # RawFrame.flags; PY_ENTRY and PY_SHIM of pyframes.bpf.h
# glibc's struct pthread.tid (nptl/descr.h), 2.17 to 2.41
PTHREAD_TID = 0xD0 if platform.machine() == "aarch64" else 0x2D0
MAX_THREADS = 8192
MAX_FRAMES = 2048
MAX_LINKS = 40_000  # of all lists and chains in one reading, because a caller may have stopped the thread


@dataclass(frozen=True, slots=True)
class RawFrame:
    """A link of the frame chain. `instruction`: bytes from the start of the bytecode, negative if not begun. ENTRY: the
    outermost frame of its native eval frame. SHIM: the frame has no code and ends a run (from 3.12)."""

    code: int
    instruction: int
    flags: int


@dataclass(frozen=True, slots=True)
class ThreadStack:
    """Leaf first. `steady`: two readings agree. `cut`: the chain of frames has a cycle or is too long."""

    tid: int  # as the target's PID namespace numbers it
    interpreter: int  # its id; 0 is the main one
    frames: tuple[RawFrame, ...]
    steady: bool
    cut: bool = False

    def python_frames(self, codes: CodeReader) -> tuple[Frame, ...]:
        named = (codes.frame(raw.code, raw.instruction) for raw in self.frames if not raw.flags & SHIM)
        return tuple(frame for frame in named if frame is not None)


@dataclass(slots=True)
class _Links:
    """How many links may still be followed, and whether anything was omitted."""

    left: int = MAX_LINKS
    cut: bool = False

    def follow(self) -> bool:
        self.left -= 1
        self.cut = self.cut or self.left < 0
        return self.left >= 0


def thread_stacks(
    runtime: CPythonRuntime, memory: Memory, *, tries: int = 5, only: int | None = None
) -> tuple[ThreadStack, ...]:
    """All threads that Python knows, or the one with the tid `only`; newest interpreter and thread first. A thread that
    exits meanwhile is omitted. Raises TargetGone if the process exits."""
    return bounded_stacks(runtime, memory, tries=tries, only=only)[0]


def bounded_stacks(
    runtime: CPythonRuntime, memory: Memory, *, tries: int = 5, only: int | None = None
) -> tuple[tuple[ThreadStack, ...], bool]:
    """As thread_stacks, and whether everything was read. At most MAX_LINKS links are followed, because in damaged
    memory a list may be cyclic or endless."""
    at, links = runtime.offsets, _Links()
    found: list[ThreadStack] = []
    for interpreter in runtime.interpreters(memory):
        interpreter_id = read_u64(memory, interpreter + at.interpreter_id)
        for state in _thread_states(memory, at, interpreter, links):
            try:
                tid = _tid(memory, at, state)
                if only is not None and tid != only:
                    continue
                frames, steady, cut = _steady_chain(memory, at, state, tries, links)
            except Unreadable:
                continue
            found.append(ThreadStack(tid, interpreter_id, frames, steady, cut))
            links.cut = links.cut or cut
    return tuple(found), not links.cut


def states_by_thread(runtime: CPythonRuntime, memory: Memory) -> list[tuple[int, list[int]]]:
    """The thread states of each thread, newest first; threads by their newest state, newest first. Empty if there are
    several interpreters. Raises TargetGone if the process exits; Unreadable."""
    interpreters = runtime.interpreters(memory)
    found: dict[int, list[int]] = {}
    for interpreter in interpreters if len(interpreters) == 1 else ():
        for state in _thread_states(memory, runtime.offsets, interpreter, _Links()):
            with contextlib.suppress(Unreadable):  # the thread is exiting
                found.setdefault(_tid(memory, runtime.offsets, state), []).append(state)
    return list(found.items())


def _thread_states(memory: Memory, at: Offsets, interpreter: int, links: _Links) -> list[int]:
    states: dict[int, None] = {}
    try:
        state = read_u64(memory, interpreter + at.threads_head)
        while state and links.follow():
            if state in states or len(states) >= MAX_THREADS:
                links.cut = True
                break
            states[state] = None
            state = read_u64(memory, state + at.thread_next)
    except Unreadable:
        pass  # the list changed meanwhile: return what was found
    return list(states)


def _tid(memory: Memory, at: Offsets, state: int) -> int:
    if at.native_thread_id is not None:
        return read_u64(memory, state + at.native_thread_id)
    return read_u32(memory, read_u64(memory, state + at.thread_ident) + PTHREAD_TID)


def _steady_chain(
    memory: Memory, at: Offsets, state: int, tries: int, links: _Links
) -> tuple[tuple[RawFrame, ...], bool, bool]:
    """The frames, whether two readings agree, and whether the chain was cut."""
    before = _chain(memory, at, state, links)
    for _ in range(tries):
        now = _chain(memory, at, state, links)
        if now == before and now is not None:
            return now[0], True, now[1]
        before = now
    frames, cut = before or ((), False)
    return frames, False, cut


def _chain(memory: Memory, at: Offsets, state: int, links: _Links) -> tuple[tuple[RawFrame, ...], bool] | None:
    """The frames, and whether the chain was cut. None if a link is unreadable because the chain changed meanwhile."""
    frames: list[RawFrame] = []
    seen: set[int] = set()
    is_cut = False
    size = max(at.frame_previous, at.frame_code, at.frame_instruction, at.frame_mark or 0) + 8
    try:
        frame = read_u64(memory, state + at.thread_frame)
        if frame and at.cframe_frame is not None:
            frame = read_u64(memory, frame + at.cframe_frame)
        while frame:
            if frame in seen or len(frames) >= MAX_FRAMES or not links.follow():
                is_cut = True
                break
            seen.add(frame)
            raw = memory.read(frame, size)
            frames.append(_raw_frame(at, raw))
            frame = int(struct.unpack_from("<Q", raw, at.frame_previous)[0])
    except Unreadable:
        return None
    return tuple(frames), is_cut


def _raw_frame(at: Offsets, raw: bytes) -> RawFrame:
    code = int(struct.unpack_from("<Q", raw, at.frame_code)[0]) & ~7
    if at.code_start is None:
        index = int(struct.unpack_from("<i", raw, at.frame_instruction)[0])
        return RawFrame(code, index * 2 if at.version == (3, 10) else index, ENTRY)
    pointer = int(struct.unpack_from("<Q", raw, at.frame_instruction)[0])
    mark = raw[at.frame_mark or 0]
    if at.version >= (3, 12):
        if mark == 3:
            return RawFrame(0, 0, SHIM)
        return RawFrame(code, pointer - code - at.code_start, 0)
    return RawFrame(code, pointer - code - at.code_start, ENTRY if mark else 0)
