"""The unwind rule for one pc, from .eh_frame: the one FDE that is hit is parsed, never the whole table."""

from dataclasses import dataclass
from typing import Literal

from memforensics.symbols.elf import ElfFile

CfaBase = Literal[
    "rsp", "rbp", "rbx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rax", "rcx", "rdx", "rsi", "rdi",
    "expression-plt",
    "deref-rbp",
    "deref-rsp",
    "signal",
    "expression",
]  # fmt: skip
SaveBase = Literal["cfa", "rbp", "rsp"]


@dataclass(frozen=True, slots=True)
class Saved:
    """Where a register of the caller is: in memory at `base` (this frame's register, or the CFA) + `offset`."""

    register: str
    base: SaveBase
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How to get from one frame to its caller, at one pc. Hashable: many pcs share few rules.

    The canonical frame address (CFA), which is the caller's rsp, by `cfa_base`:

    - a register's name: register + cfa_offset;
    - "expression-plt": rsp + 8 + (8 if (rip & 15) >= cfa_offset else 0), the lazy PLT stubs (cfa_offset is 11 in most);
    - "deref-rbp", "deref-rsp": the word at register + cfa_offset (functions that realign their stack: GCC's DRAP);
    - "signal": the word at rsp + cfa_offset; the kernel's rt_sigframe. Here ra_offset and rbp_offset are relative to
      *rsp* too, not to the CFA, and the pc found is exact, no return address (do not subtract 1);
    - "expression": `expression` is to be evaluated (user space only; rare).

    The return address is the word at CFA + ra_offset; `end`: there is none, this is the outermost frame.
    The caller's rbp is the word at CFA + rbp_offset (rbp + rbp_offset where rbp_base is "rbp"); None: rbp is unchanged.
    """

    cfa_base: CfaBase
    cfa_offset: int
    ra_offset: int | None = -8
    end: bool = False
    rbp_offset: int | None = None
    rbp_base: SaveBase = "cfa"
    saved: tuple[Saved, ...] = ()  # rbx, r12 to r15, those that are
    signal_frame: bool = False
    guessed: bool = False  # not from CFI: a frame-pointer step, or found by scanning the stack
    expression: bytes | None = None


class Cfi:
    """The unwind table of one file."""

    def __init__(self, elf: ElfFile) -> None:
        raise NotImplementedError

    def rule(self, vaddr: int) -> Rule | None:
        """The rule at that address of the file (the pc of a leaf, return address - 1 else); None: no CFI covers it.
        Never raises on damaged tables: what cannot be decoded is None. Cached."""
        raise NotImplementedError

    def function_range(self, vaddr: int) -> tuple[int, int] | None:
        """[start, end) of the FDE that covers the address: a function's extent even in a stripped file."""
        raise NotImplementedError
