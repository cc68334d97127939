"""The unwind rule of one pc, from CFI, from a guess or for the walk in the kernel."""

from dataclasses import dataclass
from typing import Literal

CfaBase = Literal[
    "rsp", "rbp", "rbx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rax", "rcx", "rdx", "rsi", "rdi",
    "expression-plt",
    "deref-rbp",
    "deref-rsp",
    "signal",
    "expression",
    "go-switch",
]  # fmt: skip
SaveBase = Literal["cfa", "rbp", "rsp"]

DWARF_REGISTERS: tuple[CfaBase, ...] = (
    "rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Saved:
    """Where a register of the caller is saved: at `base` (this frame's register, or the CFA) + `offset`."""

    register: str
    base: SaveBase
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How to get from a frame at one pc to its caller. Hashable: many pcs share few rules.

    `cfa_base` says how to compute the canonical frame address (CFA), which is the caller's rsp:

    - a register's name: register + cfa_offset;
    - "expression-plt": rsp + 8 + (8 if (rip & 15) >= cfa_offset else 0), the lazy PLT stubs (cfa_offset is 11 in most);
    - "deref-rbp", "deref-rsp": the word at register + cfa_offset (functions that realign their stack: GCC's DRAP);
    - "signal": the word at rsp + cfa_offset, in the kernel's rt_sigframe. ra_offset and rbp_offset are relative to
      *rsp* too, not to the CFA, and the pc found is exact, not a return address (do not subtract 1);
    - "expression": the value of `expression` (user space only; rare);
    - "go-switch": from Go's system stack to the goroutine's stack (walk in the kernel only: go_switch.py). `via` is the
      offset of m in g, cfa_offset of curg in m, ra_offset and rbp_offset of sched.sp and sched.bp in g.

    The return address is the word at CFA + ra_offset. With `ra_in_lr` it is still in the link register (in a leaf, on a
    machine that has one). With `end` there is none: this is the outermost frame.
    The caller's rbp is the word at CFA + rbp_offset (rbp + rbp_offset if rbp_base is "rbp"); None: rbp is unchanged.
    """

    cfa_base: CfaBase
    cfa_offset: int
    ra_offset: int | None = -8
    end: bool = False
    rbp_offset: int | None = None
    rbp_base: SaveBase = "cfa"
    saved: tuple[Saved, ...] = ()  # of rbx and r12 to r15
    signal_frame: bool = False
    guessed: bool = False  # not from CFI, but from a frame pointer or a scan of the stack
    expression: bytes | None = None
    via: int = 0
    ra_in_lr: bool = False


# glibc, sysdeps/unix/sysv/linux/x86_64/libc_sigaction.c: on entry of __restore_rt rsp points to the ucontext_t that
# the kernel pushed (arch/x86/include/asm/sigframe.h); uc_mcontext's registers begin 40 bytes into it.
SIGNAL_RULE = Rule(
    cfa_base="signal",
    cfa_offset=160,
    ra_offset=168,
    rbp_offset=120,
    rbp_base="rsp",
    saved=tuple(
        Saved(name, "rsp", at) for name, at in (("rbx", 128), ("r12", 72), ("r13", 80), ("r14", 88), ("r15", 96))
    ),
    signal_frame=True,
)
