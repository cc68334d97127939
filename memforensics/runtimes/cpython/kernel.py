"""Packs the facts about a process that the walk in the kernel (`pyframes.bpf.h`) needs."""

import os
import struct
from collections.abc import Sequence

from memforensics.runtimes.cpython.find import CPythonRuntime
from memforensics.runtimes.cpython.stacks import ENTRY, PTHREAD_TID, SHIM
from memforensics.target import Process

INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO, include/linux/proc_ns.h
PROCESS = struct.Struct("<3Q22I2Q")  # struct py_process
THREADS = struct.Struct("<6Q4I")  # struct py_threads
KERNEL_MAX_STATES = 256  # thread states that the kernel searches: PY_MAX_THREADS of pyframes.bpf.h
_ALL = (1 << 64) - 1


def pid_namespace(process: Process) -> tuple[int, int]:
    """Device and inode of the target's PID namespace; (0, 0) if it is the initial one or unknown."""
    try:
        status = os.stat(process.proc.root / str(process.pid) / "ns" / "pid")
    except OSError:
        return 0, 0
    return (0, 0) if status.st_ino == INITIAL_PID_NAMESPACE else (status.st_dev, status.st_ino)


def pack_threads(states: Sequence[int], head: int, now_ns: int) -> bytes:
    """A value of the map py_thread_states: the thread states of one thread, newest first, in a process with `head` as
    its only interpreter."""
    kept = [*states[:3], states[-1] if len(states) > 3 else 0, 0, 0][:4]
    return THREADS.pack(*kept, head, now_ns, 0, 0, 0, 0)


def pack_process(runtime: CPythonRuntime, namespace: tuple[int, int] = (0, 0)) -> bytes:
    """A value of the map py_processes."""
    at = runtime.offsets
    if at.version >= (3, 12):
        mark_mask, mark_value, mark_flag = 0xFF, 3, SHIM  # FRAME_OWNED_BY_CSTACK, pycore_frame.h
    elif at.version == (3, 11):
        mark_mask, mark_value, mark_flag = 0xFF, 1, ENTRY
    else:
        mark_mask, mark_value, mark_flag = 0, 0, ENTRY  # each frame has its own native frame
    pointer = at.code_start is not None
    last = max(at.frame_previous, at.frame_code, at.frame_instruction) + 8
    return PROCESS.pack(
        runtime.address,
        *namespace,
        at.interpreters_head,
        at.interpreter_next,
        at.threads_head,
        at.thread_next,
        at.thread_ident if at.native_thread_id is None else at.native_thread_id,
        PTHREAD_TID if at.native_thread_id is None else 0,
        at.thread_frame,
        at.cframe_frame or 0,
        int(at.cframe_frame is not None),
        max(last, (at.frame_mark or 0) + 1),
        at.frame_previous,
        at.frame_code,
        at.frame_instruction,
        at.frame_mark or 0,
        mark_mask,
        mark_value,
        mark_flag,
        int(at.version == (3, 10)),
        at.code_qualname,
        at.code_linetable,
        at.code_firstlineno,
        0,
        _ALL if pointer else 0,
        at.code_start or 0,
    )
