"""Reads code objects from a target's memory: qualified name, file, and the line of an instruction."""

import struct
from dataclasses import dataclass, field

from memforensics.case.model import Frame
from memforensics.errors import MemforensicsError
from memforensics.runtimes.cpython.locations import LineRange, line_at, ranges
from memforensics.runtimes.cpython.offsets import Offsets
from memforensics.target.memory import Memory

MAX_TEXT = 4096  # characters; longer names and paths are truncated
MAX_TABLE = 1 << 20  # bytes of a line table
MAX_CODES = 65536  # cached
CHECK_SHIFT = 16  # PY_CHECK_SHIFT of pyframes.bpf.h: in a frame's flags


class NotPython(MemforensicsError):
    """The memory at an address is not, or no longer, the expected Python object."""


def read_text(memory: Memory, offsets: Offsets, address: int) -> str:
    """A str object, truncated to MAX_TEXT characters; invalid characters are replaced. Raises NotPython, Unreadable."""
    head = memory.read(address, offsets.compact_data)
    length = int(struct.unpack_from("<q", head, offsets.unicode_length)[0])
    state = int(struct.unpack_from("<I", head, offsets.unicode_state)[0]) >> offsets.unicode_kind_shift
    kind, compact, ascii_only = state & 7, state >> 3 & 1, state >> 4 & 1
    if length < 0 or kind not in (1, 2, 4) or not compact or (ascii_only and kind != 1):
        raise NotPython(f"no string at {address:#x}")
    count = min(length, MAX_TEXT)
    data = memory.read(address + (offsets.ascii_data if ascii_only else offsets.compact_data), count * kind)
    return data.decode({1: "latin-1", 2: "utf-16-le", 4: "utf-32-le"}[kind], "replace")


def read_bytes_object(memory: Memory, offsets: Offsets, address: int) -> bytes:
    """A bytes object. Raises NotPython if its size is negative or above MAX_TABLE."""
    size = int(struct.unpack("<q", memory.read(address + offsets.bytes_size, 8))[0])
    if not 0 <= size <= MAX_TABLE:
        raise NotPython(f"no line table at {address:#x}")
    return memory.read(address + offsets.bytes_data, size)


@dataclass(frozen=True, slots=True)
class Code:
    """One code object. `qualname` is the bare name to 3.10. `own`: internal to the interpreter, for the frame that
    cleans up after an __init__ (from 3.13: _Py_InitCleanup, Python/specialize.c; its file is also its name). `check`
    distinguishes it from a later one at its address, as py_identify() of pyframes.bpf.h does."""

    qualname: str
    filename: str
    first_line: int
    lines: tuple[LineRange, ...]
    is_internal: bool = False
    check: int = 0

    def line(self, instruction: int) -> int:
        """The line of the instruction at this byte of the bytecode; negative: not begun."""
        return self.first_line if instruction < 0 else line_at(self.lines, instruction, self.first_line)


@dataclass(slots=True)
class CodeReader:
    """Code objects by address, cached. If another object has taken a freed one's address, its pointers differ."""

    memory: Memory
    offsets: Offsets
    _known: dict[tuple[int, bytes], Code] = field(default_factory=dict)

    def read(self, address: int) -> Code:
        """Raises NotPython or Unreadable if there is no code object."""
        at = self.offsets
        first = min(at.code_firstlineno, at.code_filename, at.code_qualname, at.code_linetable)
        last = max(at.code_firstlineno, at.code_filename, at.code_qualname, at.code_linetable) + 8
        raw = self.memory.read(address + first, last - first)
        known = self._known.get((address, raw))
        if known is None:

            def pointer(offset: int) -> int:
                return int(struct.unpack_from("<Q", raw, offset - first)[0])

            first_line = int(struct.unpack_from("<i", raw, at.code_firstlineno - first)[0])
            table = read_bytes_object(self.memory, at, pointer(at.code_linetable))
            known = Code(
                qualname=read_text(self.memory, at, pointer(at.code_qualname)),
                filename=read_text(self.memory, at, pointer(at.code_filename)),
                first_line=first_line,
                lines=tuple(ranges(at.version, table, first_line)),
                is_internal=pointer(at.code_qualname) == pointer(at.code_filename),
                check=_check(pointer(at.code_qualname), pointer(at.code_linetable), first_line),
            )
            if len(self._known) >= MAX_CODES:
                self._known.clear()
            self._known[address, raw] = known
        return known

    def frame(self, address: int, instruction: int, flags: int = 0) -> Frame | None:
        """A python Frame of the case model; without names if the code object can no longer be read or does not match
        the check in `flags` (if any). None for a frame that is internal to the interpreter."""
        try:
            code = self.read(address)
        except MemforensicsError:
            return Frame(kind="python", function=None, guessed=True)
        if flags >> CHECK_SHIFT not in (0, code.check):
            return Frame(kind="python", function=None, guessed=True)
        if code.is_internal:
            return None
        return Frame(kind="python", function=code.qualname, file=code.filename, line=code.line(instruction))


def _check(qualname: int, linetable: int, first_line: int) -> int:
    mixed = qualname * 0x9E3779B97F4A7C15 ^ linetable * 0xC2B2AE3D27D4EB4F
    mixed ^= (first_line & 0xFFFFFFFF) * 0x165667B19E3779F9
    return (mixed & 0xFFFFFFFFFFFFFFFF) >> 48 | 1
