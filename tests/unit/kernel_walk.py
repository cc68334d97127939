"""The in-kernel walk of aarch64 stacks (unwind.bpf.h), compiled for user space, so that it runs on any machine."""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from processes import LEAKERS

from memforensics.probes.ebpf.loader import engine, layout
from memforensics.symbols.unwind.unwinder import Registers, Unwound
from memforensics.target.memory import BytesMemory


@functools.cache
def _library() -> ctypes.CDLL:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    flags = ("-shared", "-fPIC", f"-I{engine.SOURCES}", "-D__TARGET_ARCH_arm64")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "walk.so"
        subprocess.run(
            ["gcc", "-O1", "-Wall", "-Werror", *flags, "-o", made, LEAKERS / "sym_kernel_walk.c"], check=True
        )
        return ctypes.CDLL(str(made))


def kernel_walk(
    registers: Registers, stack: BytesMemory, learned: Unwound
) -> tuple[layout.Ended, list[layout.NativePc]]:
    """Walks with the rules of this unwinding only."""
    rules = {frame.lookup_pc: layout.pack_rule(frame.rule) for frame in learned.frames if frame.rule is not None}
    entries = b"".join(pc.to_bytes(8, "little") + rule for pc, rule in rules.items() if rule is not None)
    frames, count = (ctypes.c_uint64 * layout.MAX_NATIVE)(), ctypes.c_uint32()
    numbers = (registers.rip, registers.rsp, registers.rbp, registers.lr or 0)
    ended = _library().walk(
        entries,
        ctypes.c_uint64(len(entries) // (8 + layout.RULE.size)),
        ctypes.c_uint64(stack.base),
        bytes(stack.data),
        ctypes.c_uint64(len(stack.data)),
        *map(ctypes.c_uint64, numbers),
        frames,
        ctypes.byref(count),
    )
    return layout.Ended(ended), [layout.native_pc(value) for value in frames[: count.value]]
