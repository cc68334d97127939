"""From registers and a piece of stack to frames."""

from dataclasses import dataclass
from typing import Literal

from memforensics.symbols.cfi import Rule
from memforensics.symbols.space import AddressSpace, MappedModule
from memforensics.target.memory import Memory

WhyEnded = Literal[
    "outermost",  # CFI says there is no caller, or the return address is 0: complete
    "no-module",  # the pc is in no mapped file and no guess held
    "no-rule",  # no CFI there and no guess held
    "unreadable",  # the stack (or the copy of its top) ends here
    "frame-limit",
    "no-progress",  # the CFA did not move up: damaged stack or wrong rule
]


@dataclass(frozen=True, slots=True)
class Registers:
    """User registers of x86-64 that unwinding needs."""

    rip: int
    rsp: int
    rbp: int = 0
    rbx: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0


@dataclass(frozen=True, slots=True)
class UnwoundFrame:
    """One frame. `pc` is what was found (a return address but for the leaf and for what a signal interrupted);
    `lookup_pc` is what to look up (pc - 1 for return addresses)."""

    pc: int
    lookup_pc: int
    module: MappedModule | None
    vaddr: int | None  # of pc, in the module's file
    rule: Rule | None  # that led to the caller; None at the end
    guessed: bool  # this frame was found by a guess of the frame below

    @property
    def is_return(self) -> bool:
        return self.lookup_pc != self.pc


@dataclass(frozen=True, slots=True)
class Unwound:
    """Leaf first."""

    frames: tuple[UnwoundFrame, ...]
    complete: bool
    why_ended: WhyEnded


def unwind(registers: Registers, memory: Memory, space: AddressSpace, max_frames: int = 128) -> Unwound:
    """`memory` may be a copy of the stack's top (BytesMemory) or the live process."""
    raise NotImplementedError
