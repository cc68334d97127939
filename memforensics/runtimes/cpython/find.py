"""Finds the CPython of a process: its runtime structure, version, offsets, and its native eval function."""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

from memforensics.runtimes.cpython.evals import EVAL, eval_ranges
from memforensics.runtimes.cpython.offsets import Offsets, UnsupportedPython, debug_offsets, known_versions, offsets_for
from memforensics.symbols.address_space import AddressSpace, MappedModule, MappedProcess
from memforensics.target.memory import Memory, Unreadable, read_u32, read_u64

MAX_INTERPRETERS = 256


@dataclass(frozen=True, slots=True)
class CPythonRuntime:
    """One CPython in one process. Addresses are the process's."""

    module: MappedModule  # the mapped file that defines _PyRuntime
    address: int  # of _PyRuntime
    version: tuple[int, int]
    version_text: str  # "3.11.7"; "3.8" if only the minor version is known
    offsets: Offsets
    eval_ranges: tuple[tuple[int, int], ...]  # start, end of _PyEval_EvalFrameDefault and its split-off parts

    def is_eval(self, pc: int) -> bool:
        """Whether `pc` (for a return address: minus 1) is in the interpreter's eval function."""
        return any(start <= pc < end for start, end in self.eval_ranges)

    def interpreters(self, memory: Memory) -> tuple[int, ...]:
        """Addresses of the interpreter states, newest first."""
        found: list[int] = []
        interpreter = read_u64(memory, self.address + self.offsets.interpreters_head)
        while interpreter and interpreter not in found and len(found) < MAX_INTERPRETERS:
            found.append(interpreter)
            interpreter = read_u64(memory, interpreter + self.offsets.interpreter_next)
        return tuple(found)


def find_runtime(process: MappedProcess, space: AddressSpace) -> CPythonRuntime | None:
    """The process's CPython; None if there is none or it is not initialized yet.

    Raises UnsupportedPython if it cannot be read; TargetGone, PermissionNeeded.
    """
    for module in _likely_first(space.modules):
        elf = space.elf(module)
        if elf is None:
            continue
        found = elf.find_symbols(("_PyRuntime", "Py_Version", EVAL)) if "python" in module.name else None
        if found is None and not elf.defines("_PyRuntime"):
            continue
        found = found or elf.find_symbols(("_PyRuntime", "Py_Version", EVAL))
        if "_PyRuntime" not in found:
            continue
        bias = space.bias(module)
        if bias is None:
            continue
        runtime = found["_PyRuntime"]
        hexversion = None
        if "Py_Version" in found:
            hexversion = read_u32(process.memory, found["Py_Version"].start + bias)
        version = (hexversion >> 24, hexversion >> 16 & 0xFF) if hexversion else _version_by_size(runtime.size)
        address = runtime.start + bias
        offsets = debug_offsets(process.memory, address, version) if version >= (3, 13) else offsets_for(version)
        cpython = CPythonRuntime(
            module=module,
            address=address,
            version=version,
            version_text=f"{version[0]}.{version[1]}" + (f".{hexversion >> 8 & 0xFF}" if hexversion else ""),
            offsets=offsets,
            eval_ranges=tuple((start + bias, end + bias) for start, end in eval_ranges(elf, space.cfi(module))),
        )
        with contextlib.suppress(Unreadable):  # a second CPython may be loaded and never initialized
            if cpython.interpreters(process.memory):
                return cpython
    return None


def _likely_first(modules: Iterable[MappedModule]) -> list[MappedModule]:
    return sorted(modules, key=lambda module: not module.name.startswith(("python", "libpython")))


def _version_by_size(size: int) -> tuple[int, int]:
    """3.8 to 3.10 have no Py_Version, and each has a _PyRuntime of another size."""
    for version in known_versions():
        if version < (3, 11) and offsets_for(version).runtime_size == size:
            return version
    raise UnsupportedPython("the version of this CPython is unknown", why=f"its _PyRuntime has {size} bytes")
