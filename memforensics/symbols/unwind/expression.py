"""The DWARF expressions (DWARF 5, 2.5) that call frame information uses."""

from collections.abc import Callable, Mapping

from memforensics.symbols.unwind.frame_instructions import Cursor

_MASK = (1 << 64) - 1
_MAX_OPERATIONS = 256


class CannotEvaluate(Exception):
    """An unsupported operation, or an unknown register."""


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


_BINARY: dict[int, Callable[[int, int], int]] = {
    0x1A: lambda a, b: a & b,
    0x1C: lambda a, b: a - b,
    0x1E: lambda a, b: a * b,
    0x21: lambda a, b: a | b,
    0x22: lambda a, b: a + b,
    0x24: lambda a, b: a << b if b < 64 else 0,
    0x25: lambda a, b: a >> b,
    0x26: lambda a, b: _signed(a) >> min(b, 64),
    0x27: lambda a, b: a ^ b,
    0x29: lambda a, b: int(a == b),
    0x2A: lambda a, b: int(_signed(a) >= _signed(b)),
    0x2B: lambda a, b: int(_signed(a) > _signed(b)),
    0x2C: lambda a, b: int(_signed(a) <= _signed(b)),
    0x2D: lambda a, b: int(_signed(a) < _signed(b)),
    0x2E: lambda a, b: int(a != b),
}  # fmt: skip
# Operand bytes and signedness of DW_OP_const1u to const8s.
_CONSTANTS = {0x08: (1, False), 0x09: (1, True), 0x0A: (2, False), 0x0B: (2, True),
              0x0C: (4, False), 0x0D: (4, True), 0x0E: (8, False), 0x0F: (8, True)}  # fmt: skip


def evaluate(expression: bytes, registers: Mapping[int, int], read_word: Callable[[int], int]) -> int:
    """The top of the stack at the end. `registers` by DWARF number. Raises CannotEvaluate and as `read_word`."""
    stack: list[int] = []
    cursor = Cursor(expression, 0)
    operations = 0
    try:
        while cursor.at < len(expression):
            operations += 1
            if operations > _MAX_OPERATIONS:
                raise CannotEvaluate("too long")
            stack.append(_operation(cursor, stack, registers, read_word) & _MASK)
        return stack.pop()
    except (IndexError, KeyError, ValueError) as error:
        raise CannotEvaluate(str(error)) from error


def _operation(cursor: Cursor, stack: list[int], registers: Mapping[int, int], read_word: Callable[[int], int]) -> int:
    code = cursor.u8()
    if 0x30 <= code <= 0x4F:  # lit<n>
        return code - 0x30
    if 0x70 <= code <= 0x8F:  # breg<n>
        return registers[code - 0x70] + cursor.sleb()
    if code in _CONSTANTS:
        size, signed = _CONSTANTS[code]
        return int.from_bytes(bytes(cursor.u8() for _ in range(size)), "little", signed=signed)
    if code in _BINARY:
        right, left = stack.pop(), stack.pop()
        return _BINARY[code](left, right)
    match code:
        case 0x06:  # deref
            return read_word(stack.pop())
        case 0x10:  # constu
            return cursor.uleb()
        case 0x11:  # consts
            return cursor.sleb()
        case 0x12:  # dup
            return stack[-1]
        case 0x1F:  # neg
            return -stack.pop()
        case 0x20:  # not
            return ~stack.pop()
        case 0x23:  # plus_uconst
            return stack.pop() + cursor.uleb()
    raise CannotEvaluate(f"operation {code:#x}")
