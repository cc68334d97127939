"""Whether an address can be a return address: the instruction before it must be a call (Intel SDM vol. 2, CALL; Arm
ARM, C6.2: BL, BLR)."""

from collections.abc import Iterator
from dataclasses import dataclass

from memforensics.symbols.address_space import AddressSpace
from memforensics.symbols.unwind.machines import AARCH64, X86_64, Machine

_LONGEST_CALL = 7
_FAR_BYTES = 65536
_ENDBR64 = b"\xf3\x0f\x1e\xfa"
_MAX_JUMPS = 3
_BL = 0b100101  # the upper six bits
# aarch64's jumps: mask, masked value, lowest bit of the offset (in words) and its number of bits (Arm ARM, C4.1.66)
_JUMPS = (
    (0xFC000000, 0x14000000, 0, 26),  # B
    (0xFF000010, 0x54000000, 5, 19),  # B.cond
    (0x7E000000, 0x34000000, 5, 19),  # CBZ, CBNZ
    (0x7E000000, 0x36000000, 5, 14),  # TBZ, TBNZ
)
# aarch64's PLT stubs: [bti c;] adrp x16, page; ldr x17, [x16, #at]; add x16, x16, #at; [autia1716;] br x17
_ADRP_X16, _LDR_X17 = (0x9F00001F, 0x90000010), (0xFFC003FF, 0xF9400211)
_IN_STUB = (_ADRP_X16, _LDR_X17, (0xFFC003FF, 0x91000210), (0xFFFFFFFF, 0xD503245F), (0xFFFFFFFF, 0xD503219F))
_BR_X17 = 0xD61F0220
_BINDING_STUB = bytes.fromhex("f07bbfa9")  # stp x16, x30, [sp, #-16]!: begins the stub that unbound slots point to
_SEARCHED_BYTES = 8192  # at the start of a function, for tail calls


@dataclass(frozen=True, slots=True)
class Call:
    """`target`: the called address, if the instruction or its GOT slot gives it."""

    target: int | None


def call_before(space: AddressSpace, address: int, machine: Machine = X86_64) -> Call | None:
    """The call instruction that ends at `address`; None if no call can end there."""
    if machine is AARCH64:
        return _call_before_aarch64(space, address)
    code = space.code(address - _LONGEST_CALL, _LONGEST_CALL)
    if code is None:
        return None
    if code[-5] == 0xE8:
        target = _relative(address, code[-4:])
        if space.executable(target):
            return Call(target)
    for size in range(2, _LONGEST_CALL + 1):
        if code[-size] == 0xFF and _indirect_size(code[-size + 1 :]) == size:
            through_slot = code[-size + 1] == 0x15  # call *slot(%rip): the GOT, in code built without a PLT
            return Call(space.word(_relative(address, code[-4:])) if through_slot else None)
    return None


def _call_before_aarch64(space: AddressSpace, address: int) -> Call | None:
    code = space.code(address - 4, 4) if address % 4 == 0 else None
    if code is None:
        return None
    word = int.from_bytes(code, "little")
    if word >> 26 == _BL:
        target = _add_words(address - 4, word, 26)
        return Call(target) if space.executable(target) else None
    return Call(None) if word & 0xFEFFF000 == 0xD63F0000 else None  # BLR, and BLRAA etc., which authenticate


def _add_words(address: int, words: int, bits: int) -> int:
    """The address plus a signed number of words, given in the lowest `bits` bits."""
    words &= (1 << bits) - 1
    return (address + 4 * (words - (words >> bits - 1 << bits))) & (1 << 64) - 1


def jump_targets_aarch64(code: bytes, start: int) -> Iterator[int]:
    """The targets of the jumps in the code at `start`."""
    for at in range(0, len(code) - 3, 4):
        word = int.from_bytes(code[at : at + 4], "little")
        for mask, jump, shift, bits in _JUMPS:
            if word & mask == jump:
                yield _add_words(start + at, word >> shift, bits)


def _relative(end: int, displacement: bytes) -> int:
    return (end + int.from_bytes(displacement, "little", signed=True)) & (1 << 64) - 1


def _indirect_size(operands: bytes) -> int | None:
    """Bytes of the instruction `FF /2` with these operand bytes; None if the opcode extension is not 2."""
    mode, extension, base = operands[0] >> 6, operands[0] >> 3 & 7, operands[0] & 7
    if extension != 2:
        return None
    if mode == 3:
        return 2
    size = 2
    if base == 4:
        if len(operands) < 2:
            return None
        size, base = 3, operands[1] & 7
    return size + (4 if mode == 2 or (mode == 0 and base == 5) else 1 if mode == 1 else 0)


def call_doubt(space: AddressSpace, call: Call, pc: int, machine: Machine = X86_64) -> int:
    """How unlikely it is that this call entered the function at `pc`. 0: it calls that function. 1: its target is
    unknown. 2: it calls another function, which can only have jumped here."""
    resolve, jumps = (_resolve_stubs_aarch64, _jumps_to_aarch64) if machine is AARCH64 else (_resolve_stubs, _jumps_to)
    target = resolve(space, call.target) if call.target is not None else None
    if target is None:
        return 1
    current, called = space.find(pc), space.find(target)
    if current is None or called is None:
        return 1
    if current[0] is not called[0]:
        return 2
    entry = space.entry(current[0], current[1])
    if entry is not None:
        return 0 if entry == called[1] or jumps(space, target, target - called[1] + entry) else 2
    return 0 if 0 <= current[1] - called[1] < _FAR_BYTES else 2


def _jumps_to(space: AddressSpace, function: int, target: int) -> bool:
    """Whether the function at `function` jumps to `target`, as a tail call does, by JMP rel8, JMP rel32 or Jcc rel32.
    Every byte is tried as the start of an instruction; chance matches are rare."""
    code = _function_code(space, function)
    size = len(code)
    for at, byte in enumerate(code):
        conditional = byte & 0xF0 == 0x80 and code[at - 1 : at] == b"\x0f"
        end = at + 1 + (1 if byte == 0xEB else 4 if byte == 0xE9 or conditional else 0)
        if at + 1 < end <= size and _relative(function + end, code[at + 1 : end]) == target:
            return True
    return False


def _jumps_to_aarch64(space: AddressSpace, function: int, target: int) -> bool:
    return target in jump_targets_aarch64(_function_code(space, function), function)


def _function_code(space: AddressSpace, function: int) -> bytes:
    """The first bytes of the function at `function`; empty if its extent is unknown."""
    found = space.find(function)
    extent = space.extent(found[0], found[1]) if found is not None else None
    size = min(extent[1] - extent[0], _SEARCHED_BYTES) if extent is not None else 0
    return (space.code(function, size) if size else None) or b""


def rest_of_stub(space: AddressSpace, pc: int) -> bytes:
    """aarch64: the rest of the PLT stub from `pc` on; empty if `pc` is in no stub."""
    code = space.code(pc, 24) or b""
    for at in range(0, len(code), 4):
        word = int.from_bytes(code[at : at + 4], "little")
        if word == _BR_X17:
            return code[: at + 4]
        if not any(word & mask == part for mask, part in _IN_STUB):
            return b""
    return b""


def in_binding_stub(space: AddressSpace, pc: int) -> bool:
    """aarch64: whether `pc` is in the stub that calls the dynamic linker, after its push of x16 and x30."""
    return _BINDING_STUB in (space.code(pc - 16, 16) or b"")


def _resolve_stubs_aarch64(space: AddressSpace, target: int) -> int | None:
    """The function that a call to `target` reaches through a PLT stub; None if its slot is unbound or unreadable."""
    stub = rest_of_stub(space, target)
    slot = 0
    for at in range(0, len(stub), 4):
        word = int.from_bytes(stub[at : at + 4], "little")
        if word & _ADRP_X16[0] == _ADRP_X16[1]:
            pages = (word >> 5 & 0x7FFFF) << 2 | word >> 29 & 3
            slot = _add_words((target + at) & ~4095, pages << 10, 31)
        elif word & _LDR_X17[0] == _LDR_X17[1]:
            entry = space.word(slot + 8 * (word >> 10 & 0xFFF))
            return None if entry is not None and _BINDING_STUB in (space.code(entry, 8) or b"") else entry
    return target


def _resolve_stubs(space: AddressSpace, target: int) -> int | None:
    """The function that a call to `target` reaches through PLT stubs and thunks; None if a slot is unbound or
    unreadable."""
    for _ in range(_MAX_JUMPS):
        code = space.code(target, 16)
        if code is None:
            return target
        skip = 4 if code.startswith(_ENDBR64) else 0
        skip += code[skip] == 0xF2  # bnd
        if code[skip : skip + 2] == b"\xff\x25":
            slot = space.word(_relative(target + skip + 6, code[skip + 2 : skip + 6]))
            if slot is None or 0 < slot - target <= 16:  # not bound yet: points back into the stub
                return None
            target = slot
        elif code[skip] == 0xE9:
            target = _relative(target + skip + 5, code[skip + 1 : skip + 5])
        else:
            return target
    return target
