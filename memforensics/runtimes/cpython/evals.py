"""Finds the native code of CPython's eval function in a file. Each of its frames is a run of Python frames."""

import re
import struct
from collections import Counter
from collections.abc import Iterator

from memforensics.errors import MemforensicsError
from memforensics.symbols.elf.reader import ElfFile, Symbol
from memforensics.symbols.unwind.call_instructions import jump_targets_aarch64
from memforensics.symbols.unwind.cfi import Cfi
from memforensics.symbols.unwind.machines import AARCH64

EVAL = "_PyEval_EvalFrameDefault"
TAIL_CALLS = "_TAIL_CALL_"  # 3.14 built by clang: one function per instruction, each tail calls the next
MAX_CODE_BYTES = 1 << 20

Ranges = tuple[tuple[int, int], ...]
"""[start, end) of each, disjoint and ascending. Addresses of the file."""

_JUMP = re.compile(rb"(?:\x0f[\x80-\x8f]|\xe9)(?=(.{4}))", re.DOTALL)  # jcc rel32, jmp rel32


def eval_ranges(elf: ElfFile, cfi: Cfi | None) -> Ranges:
    """The function and the parts that the compiler split off (.cold, .part.0, .lto_priv.0): by their symbols or, if
    these are stripped (Debian's python3.11: 14 KB), by the function's jumps."""
    try:
        parts = [s for s in elf.symbols() if s.name == EVAL or s.name.startswith((EVAL + ".", TAIL_CALLS))]
    except MemforensicsError:
        parts = []
    found = {_extent(symbol) for symbol in parts}
    symbol = elf.find_symbol(EVAL)
    if symbol is None:
        return tuple(sorted(found))
    found.add(_extent(symbol))
    if len(found) == 1 and cfi is not None:
        try:
            code = elf.read_at_vaddr(symbol.start, min(symbol.size, MAX_CODE_BYTES))
        except MemforensicsError:
            code = b""
        found |= split_off_parts(code, symbol.start, cfi)
    return tuple(sorted(found))


def _extent(symbol: Symbol) -> tuple[int, int]:
    return symbol.start, symbol.start + max(symbol.size, 1)


def split_off_parts(code: bytes, start: int, cfi: Cfi) -> set[tuple[int, int]]:
    """Split-off parts of a function: its code, mapped at `start`, jumps there, and the target is not the beginning of a
    function, because it has a frame at its first instruction. On x86 every byte is tried as the start of a jump, so two
    jumps are required."""
    hits: Counter[tuple[int, int]] = Counter()
    for target in jump_targets_aarch64(code, start) if cfi.machine is AARCH64 else _jump_targets(code, start):
        if start <= target < start + len(code):
            continue
        extent = cfi.function_range(target)
        if extent is not None:
            hits[extent] += 1
    return {extent for extent, count in hits.items() if count > 1 and _has_frame(cfi, extent[0])}


def _jump_targets(code: bytes, start: int) -> Iterator[int]:
    for jump in _JUMP.finditer(code):
        yield start + jump.end() + 4 + int(struct.unpack("<i", jump[1])[0])


def _has_frame(cfi: Cfi, vaddr: int) -> bool:
    rule = cfi.rule(vaddr)
    if rule is None or rule.end or cfi.machine is None:
        return False
    return (rule.cfa_base, rule.cfa_offset) != ("rsp", cfi.machine.entry_cfa)
