"""Whether an address can be a return address: the instruction before it must be a call (Intel SDM vol. 2, CALL)."""

from dataclasses import dataclass

from memforensics.symbols.space import AddressSpace

_LONGEST_CALL = 7
_FAR_BYTES = 65536
_ENDBR64 = b"\xf3\x0f\x1e\xfa"
_MAX_JUMPS = 3
_SEARCHED_BYTES = 8192  # of a function that may end in a tail call


@dataclass(frozen=True, slots=True)
class Call:
    """`target`: the called address where the instruction, or the slot that it names, tells it."""

    target: int | None


def call_before(space: AddressSpace, address: int) -> Call | None:
    """The call instruction that ends at `address`. None: no call can end there."""
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


def _relative(end: int, displacement: bytes) -> int:
    return (end + int.from_bytes(displacement, "little", signed=True)) & (1 << 64) - 1


def _indirect_size(operands: bytes) -> int | None:
    """Bytes of the instruction `FF /2` with these operand bytes; None when it is another one of FF's."""
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


def call_doubt(space: AddressSpace, call: Call, pc: int) -> int:
    """How unlikely it is that this call entered the function at `pc`: 0 it called that function, 1 it may have (by
    a pointer that is not known), 2 it called another one, which can only have jumped here."""
    target = _through_stubs(space, call.target) if call.target is not None else None
    if target is None:
        return 1
    here, there = space.find(pc), space.find(target)
    if here is None or there is None:
        return 1
    if here[0] is not there[0]:
        return 2
    entry = space.entry(here[0], here[1])
    if entry is not None:
        return 0 if entry == there[1] or _jumps(space, target, target - there[1] + entry) else 2
    return 0 if 0 <= here[1] - there[1] < _FAR_BYTES else 2


def _jumps(space: AddressSpace, function: int, target: int) -> bool:
    """Whether the function that begins there jumps to `target`, as a tail call does: JMP rel8 or rel32, or Jcc rel32,
    in its code. Looked for at every byte: by chance few agree."""
    found = space.find(function)
    extent = space.extent(found[0], found[1]) if found is not None else None
    size = min(extent[1] - extent[0], _SEARCHED_BYTES) if extent is not None else 0
    code = (space.code(function, size) if size else None) or b""
    for at, byte in enumerate(code):
        conditional = byte & 0xF0 == 0x80 and code[at - 1 : at] == b"\x0f"
        end = at + 1 + (1 if byte == 0xEB else 4 if byte == 0xE9 or conditional else 0)
        if at + 1 < end <= size and _relative(function + end, code[at + 1 : end]) == target:
            return True
    return False


def _through_stubs(space: AddressSpace, target: int) -> int | None:
    """Where a call ends that goes through PLT stubs and thunks. None: at a slot that cannot be read."""
    for _ in range(_MAX_JUMPS):
        code = space.code(target, 16)
        if code is None:
            return target
        skip = 4 if code.startswith(_ENDBR64) else 0
        skip += code[skip] == 0xF2  # bnd
        if code[skip : skip + 2] == b"\xff\x25":
            slot = space.word(_relative(target + skip + 6, code[skip + 2 : skip + 6]))
            if slot is None or 0 < slot - target <= 16:  # not bound yet: back into the stub
                return None
            target = slot
        elif code[skip] == 0xE9:
            target = _relative(target + skip + 5, code[skip + 1 : skip + 5])
        else:
            return target
    return target
