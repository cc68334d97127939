"""Code at a function's entry that differs from the file: what it is, and where its jumps lead. x86-64 only.

Pure, except for reads through the Memory argument.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import capstone
from capstone import x86

from memforensics.target.memory import Memory, Unreadable, read_u64

MAX_HOPS = 8
MAX_INSTRUCTION_BYTES = 15
MAX_PATCH_INSTRUCTIONS = 4


@dataclass(frozen=True, slots=True)
class Landing:
    """Where changed code leads. `hops`: run-time addresses, the patched entry first. `address`: the last hop.
    `in_progress`: a jump to itself, which a patcher puts there while it writes the rest (UCX: EB FE)."""

    address: int
    hops: tuple[int, ...]
    in_progress: bool = False


def is_breakpoint(original: bytes, live: bytes) -> bool:
    """Whether only the first byte differs, and is the int3 of a debugger or uprobe."""
    return live[:1] == b"\xcc" != original[:1] and original[1:] == live[1:]


def _disassembler() -> Any:
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    engine.detail = True
    return engine


def next_hop(memory: Memory, address: int) -> int | None:
    """The target of the code at `address` if it is an unconditional jump, after at most a few instructions that load
    the target: jmp rel8/rel32, jmp [rip+x], mov reg, imm64; jmp reg, push imm32; ret, and similar. endbr64 and nop are
    skipped. None for other code. Unreadable when the code or a pointer that it uses cannot be read."""
    code = _read_code(memory, address)
    registers: dict[int, int] = {}
    pushed: int | None = None
    for instruction in _decode(code, address):
        kind = instruction.id
        operands = instruction.operands
        if kind in (x86.X86_INS_NOP, x86.X86_INS_ENDBR64):
            continue
        if kind in (x86.X86_INS_MOVABS, x86.X86_INS_MOV, x86.X86_INS_LEA) and operands[0].type == x86.X86_OP_REG:
            value = _loaded(memory, instruction)
            if value is None:
                return None
            registers[_whole(operands[0].reg)] = value
        elif kind == x86.X86_INS_PUSH and operands[0].type == x86.X86_OP_IMM:
            pushed = operands[0].imm & (1 << 64) - 1
        elif kind == x86.X86_INS_PUSH and operands[0].type == x86.X86_OP_REG:
            pushed = registers.get(operands[0].reg)
            if pushed is None:
                return None
        elif kind == x86.X86_INS_RET:
            return pushed
        elif kind in (x86.X86_INS_JMP, x86.X86_INS_LJMP):
            return _jump_target(memory, instruction, registers)
        else:
            return None
    return None


def follow(memory: Memory, entry: int, is_end: Callable[[int], bool]) -> Landing | None:
    """Follows jumps from a changed entry until `is_end` accepts an address, or the code there does not jump. None if
    the entry does not jump."""
    hops = [entry]
    while len(hops) <= MAX_HOPS:
        try:
            target = next_hop(memory, hops[-1])
        except Unreadable:
            target = None
        if target is None:
            break
        if target == hops[-1]:
            return Landing(target, tuple(hops), in_progress=True)
        if target in hops:
            break
        hops.append(target)
        if is_end(target):
            break
    return Landing(hops[-1], tuple(hops)) if len(hops) > 1 else None


def _read_code(memory: Memory, address: int) -> bytes:
    """The bytes of up to four instructions; fewer at the end of a mapping."""
    for size in (MAX_INSTRUCTION_BYTES * MAX_PATCH_INSTRUCTIONS, MAX_INSTRUCTION_BYTES, 2):
        try:
            return memory.read(address, size)
        except Unreadable:
            continue
    raise Unreadable(address, 2)


def _decode(code: bytes, address: int) -> Iterable[Any]:
    return _disassembler().disasm(code, address, count=MAX_PATCH_INSTRUCTIONS)  # type: ignore[no-any-return]


def _loaded(memory: Memory, instruction: Any) -> int | None:
    """The value that mov reg, imm, mov reg, [rip+x] or lea reg, [rip+x] loads."""
    source = instruction.operands[1]
    if source.type == x86.X86_OP_IMM:
        return int(source.imm) & (1 << 64) - 1
    if source.type == x86.X86_OP_MEM and source.mem.base == x86.X86_REG_RIP and not source.mem.index:
        place = instruction.address + instruction.size + source.mem.disp
        return place if instruction.id == x86.X86_INS_LEA else read_u64(memory, place)
    return None


def _jump_target(memory: Memory, instruction: Any, registers: dict[int, int]) -> int | None:
    operand = instruction.operands[0]
    if operand.type == x86.X86_OP_IMM:
        return int(operand.imm) & (1 << 64) - 1
    if operand.type == x86.X86_OP_REG:
        return registers.get(operand.reg)
    if operand.type == x86.X86_OP_MEM and operand.mem.base == x86.X86_REG_RIP and not operand.mem.index:
        return read_u64(memory, instruction.address + instruction.size + operand.mem.disp)
    if operand.type == x86.X86_OP_MEM and not operand.mem.base and not operand.mem.index:
        return read_u64(memory, operand.mem.disp & (1 << 64) - 1)
    return None


def _whole(register: int) -> int:
    """The 64-bit register that holds a 32-bit one (mov to eax clears the upper half of rax)."""
    return int(_WHOLE.get(register, register))


_WHOLE = {
    getattr(x86, f"X86_REG_{low}"): getattr(x86, f"X86_REG_{high}")
    for low, high in (
        *((f"E{name}", f"R{name}") for name in ("AX", "BX", "CX", "DX", "SI", "DI", "BP", "SP")),
        *((f"R{n}D", f"R{n}") for n in range(8, 16)),
    )
}
