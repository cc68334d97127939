"""Whether an address can be a return address: the instruction before it must be a call (Intel SDM vol. 2, CALL)."""

from dataclasses import dataclass

from memforensics.symbols.space import AddressSpace

_LONGEST_CALL = 7
_FAR_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Call:
    """`target`: the called address of a direct call, None for one through a register or memory."""

    target: int | None


def call_before(space: AddressSpace, address: int) -> Call | None:
    """The call instruction that ends at `address`. None: no call can end there."""
    code = space.code(address - _LONGEST_CALL, _LONGEST_CALL)
    if code is None:
        return None
    if code[-5] == 0xE8:
        target = (address + int.from_bytes(code[-4:], "little", signed=True)) & (1 << 64) - 1
        if space.executable(target):
            return Call(target)
    for size in range(2, _LONGEST_CALL + 1):
        if code[-size] == 0xFF and _indirect_size(code[-size + 1 :]) == size:
            return Call(None)
    return None


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
    """How unlikely it is that this call entered the function at `pc`: 0 it called that function, 1 it may have
    (indirect, or through a PLT of another module), 2 it called another one."""
    if call.target is None:
        return 1
    here, there = space.find(pc), space.find(call.target)
    if here is None or there is None or here[0] is not there[0]:
        return 1
    elf = space.elf(here[0])
    function = elf.symbol_at(here[1]) if elf is not None else None
    if function is not None:
        return 0 if function.start == there[1] else 2
    return 0 if 0 <= here[1] - there[1] < _FAR_BYTES else 2
