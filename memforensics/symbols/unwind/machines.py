"""The facts about each machine that unwinding needs. aarch64 was tested under QEMU only, not on hardware.

Rules and registers have x86-64's names. On aarch64, "rip" is the pc, "rsp" is sp and "rbp" is x29, the frame pointer.
x30, the link register, has no counterpart: it is `Registers.lr`, and `Rule.ra_in_lr` in a leaf.

Sources: x86-64 psABI, figure 3.36; "DWARF for the Arm 64-bit Architecture" (AADWARF64), 4.1; Linux
arch/arm64/kernel/vdso/sigreturn.S, arch/arm64/kernel/signal.c (struct rt_sigframe), include/uapi/asm/sigcontext.h.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from memforensics.symbols.elf.reader import EM_AARCH64, EM_X86_64
from memforensics.symbols.unwind.rule import DWARF_REGISTERS, SIGNAL_RULE, CfaBase, Rule, SaveBase, Saved

_U64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Machine:
    """Registers by their DWARF number."""

    cfa_bases: Mapping[int, CfaBase]
    frame_pointer: int
    stack_pointer: int
    return_address: int
    pc: int  # in expressions
    has_link_register: bool  # a leaf's return address need not be in memory
    callee_saved: Mapping[int, str]  # the ones that a rule restores, except the frame pointer
    address_mask: int  # the address bits of a return address; the others may be a signature (pointer authentication)
    sigreturn_codes: tuple[bytes, ...]  # the first instructions of signal trampolines
    signal_rule: Rule
    entry_cfa: int  # at the first instruction of a function the CFA is the stack pointer + this

    @property
    def save_bases(self) -> Mapping[int, SaveBase]:
        return {self.frame_pointer: "rbp", self.stack_pointer: "rsp"}

    def is_sigreturn_code(self, code: bytes) -> bool:
        """Whether these instructions (9 bytes at the pc suffice) begin a signal trampoline."""
        return code.startswith(self.sigreturn_codes)


X86_64 = Machine(
    cfa_bases=dict(enumerate(DWARF_REGISTERS)),
    frame_pointer=6,
    stack_pointer=7,
    return_address=16,
    pc=16,
    has_link_register=False,
    callee_saved={3: "rbx", 12: "r12", 13: "r13", 14: "r14", 15: "r15"},
    address_mask=_U64,
    # mov $15,%rax; syscall and mov $15,%eax; syscall: every libc and Go call rt_sigreturn in one of these ways.
    sigreturn_codes=(bytes.fromhex("48c7c00f0000000f05"), bytes.fromhex("b80f0000000f05")),
    signal_rule=SIGNAL_RULE,
    entry_cfa=8,
)
# sp points to the siginfo_t (128 bytes) of the rt_sigframe. The ucontext_t follows; 176 bytes into it is the
# sigcontext: fault_address, x0 to x30, sp, pc.
_SIGCONTEXT = 128 + 176
_X0 = _SIGCONTEXT + 8
AARCH64 = Machine(
    cfa_bases={29: "rbp", 31: "rsp"},
    frame_pointer=29,
    stack_pointer=31,
    return_address=30,
    pc=32,
    has_link_register=True,
    callee_saved={},
    address_mask=(1 << 48) - 1,
    sigreturn_codes=(bytes.fromhex("681180d2010000d4"),),  # mov x8, #139; svc #0
    signal_rule=Rule(
        cfa_base="signal",
        cfa_offset=_X0 + 31 * 8,
        ra_offset=_X0 + 32 * 8,
        rbp_offset=_X0 + 29 * 8,
        rbp_base="rsp",
        saved=(Saved("lr", "rsp", _X0 + 30 * 8),),
        signal_frame=True,
    ),
    entry_cfa=0,
)
MACHINES = {EM_X86_64: X86_64, EM_AARCH64: AARCH64}  # by e_machine
