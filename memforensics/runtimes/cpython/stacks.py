"""The Python stacks of all threads of a process that runs on, read from outside: best effort, never a stop.

A chain that changes while it is read is read again; after some tries it is given as it came, and marked.
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
MAX_LINKS = 40_000  # of all lists and chains together, a reading: the thread may be stopped meanwhile


@dataclass(frozen=True, slots=True)
class RawFrame:
    """A link of the frame chain. `instruction`: bytes from the start of the bytecode, negative when not begun.
    ENTRY: the outermost frame of its native eval frame; SHIM: no code, the mark that ends a run (3.12 on)."""

    code: int
    instruction: int
    flags: int


@dataclass(frozen=True, slots=True)
class ThreadStack:
    """Leaf first. `steady`: two readings agreed. `cut`: its frames lead in a ring, or are too many."""

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
    """How many links may still be followed, and whether something was left out."""

    left: int = MAX_LINKS
    cut: bool = False

    def follow(self) -> bool:
        self.left -= 1
        self.cut = self.cut or self.left < 0
        return self.left >= 0


def thread_stacks(
    runtime: CPythonRuntime, memory: Memory, *, tries: int = 5, only: int | None = None
) -> tuple[ThreadStack, ...]:
    """All threads that Python knows, or the one with the tid `only`; newest interpreter and thread first. A thread
    that leaves meanwhile is left out. TargetGone when the process left."""
    return bounded_stacks(runtime, memory, tries=tries, only=only)[0]


def bounded_stacks(
    runtime: CPythonRuntime, memory: Memory, *, tries: int = 5, only: int | None = None
) -> tuple[tuple[ThreadStack, ...], bool]:
    """The same, and whether all of it was read: in damaged memory lists lead in a ring or have no end, so that no more
    than MAX_LINKS links are followed."""
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
    """The thread states of each thread, the newest first; threads by their newest state, the newest first. Empty where
    there are several interpreters. TargetGone when the process left; Unreadable."""
    interpreters = runtime.interpreters(memory)
    found: dict[int, list[int]] = {}
    for interpreter in interpreters if len(interpreters) == 1 else ():
        for state in _thread_states(memory, runtime.offsets, interpreter, _Links()):
            with contextlib.suppress(Unreadable):  # it is leaving
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
        pass  # the list changed under us: what was found stands
    return list(states)


def _tid(memory: Memory, at: Offsets, state: int) -> int:
    if at.native_thread_id is not None:
        return read_u64(memory, state + at.native_thread_id)
    return read_u32(memory, read_u64(memory, state + at.thread_ident) + PTHREAD_TID)


def _steady_chain(
    memory: Memory, at: Offsets, state: int, tries: int, links: _Links
) -> tuple[tuple[RawFrame, ...], bool, bool]:
    """The frames, whether two readings agreed, and whether they were cut."""
    before = _chain(memory, at, state, links)
    for _ in range(tries):
        now = _chain(memory, at, state, links)
        if now == before and now is not None:
            return now[0], True, now[1]
        before = now
    frames, cut = before or ((), False)
    return frames, False, cut


def _chain(memory: Memory, at: Offsets, state: int, links: _Links) -> tuple[tuple[RawFrame, ...], bool] | None:
    """The frames, and whether they were cut. None when a link could not be read: it changed while being read."""
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
