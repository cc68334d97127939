"""Executes the call frame instructions of a CIE and an FDE up to one address (DWARF 5, 6.4)."""

import struct
from dataclasses import dataclass, field

from memforensics.symbols.unwind.machines import Machine
from memforensics.symbols.unwind.rule import CfaBase, Rule, SaveBase, Saved


class Cursor:
    """Reads little-endian values. Raises IndexError or struct.error past the end. `vaddr`: the address of `data`."""

    __slots__ = ("at", "data", "vaddr")

    def __init__(self, data: bytes, vaddr: int, at: int = 0) -> None:
        self.data, self.vaddr, self.at = data, vaddr, at

    def u8(self) -> int:
        value = self.data[self.at]
        self.at += 1
        return value

    def number(self, layout: struct.Struct) -> int:
        value = layout.unpack_from(self.data, self.at)[0]
        self.at += layout.size
        return int(value)

    def uleb(self) -> int:
        value = shift = 0
        while True:
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 70:
                raise ValueError("unterminated LEB128 number")

    def sleb(self) -> int:
        start = self.at
        value = self.uleb()
        bits = 7 * (self.at - start)
        return value - (1 << bits) if value >> (bits - 1) else value

    def take(self, size: int) -> bytes:
        if not 0 <= size <= len(self.data) - self.at:
            raise IndexError(size)
        self.at += size
        return self.data[self.at - size : self.at]

    def block(self) -> bytes:
        return self.take(self.uleb())

    def unsigned(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def c_string(self) -> bytes:
        text = self.data[self.at : self.data.index(b"\0", self.at)]
        self.at += len(text) + 1
        return text

    def pointer(self, encoding: int, data_base: int = 0) -> int | None:
        """A pointer in a DW_EH_PE encoding. None if it is omitted, or its base (text, function) is unsupported."""
        if encoding == 0xFF:
            return None
        place = self.vaddr + self.at
        kind = encoding & 0x0F
        value = self.uleb() if kind == 1 else self.sleb() if kind == 9 else self.number(_POINTER_LAYOUTS[kind])
        relative = encoding & 0x70
        if value == 0 or relative == 0:
            return value
        if relative == 0x10:
            return (place + value) & _U64
        return (data_base + value) & _U64 if relative == 0x30 else None


_U16, _U32, _U64_LAYOUT = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q")
_POINTER_LAYOUTS = {
    0: _U64_LAYOUT, 2: _U16, 3: _U32, 4: _U64_LAYOUT,
    10: struct.Struct("<h"), 11: struct.Struct("<i"), 12: struct.Struct("<q"),
}  # fmt: skip
_U64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Cie:
    code_align: int
    data_align: int
    ra_register: int
    fde_encoding: int
    has_augmentation: bool
    signal_frame: bool
    program: bytes


@dataclass(frozen=True, slots=True)
class Fde:
    cie: Cie
    start: int
    size: int
    program: bytes
    program_vaddr: int


# A register's rule: ("offset", n) saved at CFA + n; ("expression", bytes); ("undefined", 0); ("other", 0).
_RegisterRule = tuple[str, int | bytes]


@dataclass(slots=True)
class _Row:
    """One row of the table that a CFA program describes."""

    cfa_register: int = -1
    cfa_offset: int = 0
    cfa_expression: bytes | None = None
    registers: dict[int, _RegisterRule] = field(default_factory=dict)

    def copy(self) -> "_Row":
        return _Row(self.cfa_register, self.cfa_offset, self.cfa_expression, dict(self.registers))


# --- running the program


def row_at(fde: Fde, vaddr: int) -> _Row:
    """The row of the table that covers the address."""
    row = _Row()
    _execute(Cursor(fde.cie.program, 0), fde.cie, row, {}, 0, _U64)
    initial = dict(row.registers)
    _execute(Cursor(fde.program, fde.program_vaddr), fde.cie, row, initial, fde.start, vaddr)
    return row


def _execute(cursor: Cursor, cie: Cie, row: _Row, initial: dict[int, _RegisterRule], location: int, until: int) -> None:
    """Executes instructions until one moves the location past `until`."""
    remembered: list[_Row] = []
    registers = row.registers
    while cursor.at < len(cursor.data):
        code = cursor.u8()
        low = code & 0x3F
        match code >> 6:
            case 1:  # DW_CFA_advance_loc
                location += low * cie.code_align
                if location > until:
                    return
                continue
            case 2:  # DW_CFA_offset
                registers[low] = ("offset", cursor.uleb() * cie.data_align)
                continue
            case 3:  # DW_CFA_restore
                _restore(registers, initial, low)
                continue
        match code:
            case 0x00:  # nop
                pass
            case 0x01:  # set_loc
                target = cursor.pointer(cie.fde_encoding)
                if target is None:
                    raise ValueError("DW_CFA_set_loc without an address")
                location = target
            case 0x02:
                location += cursor.u8() * cie.code_align
            case 0x03:
                location += cursor.number(_U16) * cie.code_align
            case 0x04:
                location += cursor.number(_U32) * cie.code_align
            case 0x05:  # offset_extended
                register = cursor.uleb()
                registers[register] = ("offset", cursor.uleb() * cie.data_align)
            case 0x06:  # restore_extended
                _restore(registers, initial, cursor.uleb())
            case 0x07:
                register = cursor.uleb()
                registers[register] = ("undefined", 0)
            case 0x08:  # same_value
                registers.pop(cursor.uleb(), None)
            case 0x09:  # register
                register = cursor.uleb()
                registers[register] = ("other", cursor.uleb())
            case 0x0A:
                remembered.append(row.copy())
            case 0x0B:
                old = remembered.pop()
                row.cfa_register, row.cfa_offset, row.cfa_expression = (
                    old.cfa_register, old.cfa_offset, old.cfa_expression,
                )  # fmt: skip
                registers.clear()
                registers.update(old.registers)
            case 0x0C:  # def_cfa
                row.cfa_register, row.cfa_offset, row.cfa_expression = cursor.uleb(), cursor.uleb(), None
            case 0x0D:  # def_cfa_register
                row.cfa_register, row.cfa_expression = cursor.uleb(), None
            case 0x0E:  # def_cfa_offset
                row.cfa_offset = cursor.uleb()
            case 0x0F:  # def_cfa_expression
                row.cfa_expression = cursor.block()
            case 0x10:
                register = cursor.uleb()
                registers[register] = ("expression", cursor.block())
            case 0x11:  # offset_extended_sf
                register = cursor.uleb()
                registers[register] = ("offset", cursor.sleb() * cie.data_align)
            case 0x12:  # def_cfa_sf
                row.cfa_register, row.cfa_offset, row.cfa_expression = (
                    cursor.uleb(), cursor.sleb() * cie.data_align, None,
                )  # fmt: skip
            case 0x13:  # def_cfa_offset_sf
                row.cfa_offset = cursor.sleb() * cie.data_align
            case 0x14 | 0x15:  # val_offset, val_offset_sf
                register = cursor.uleb()
                registers[register] = ("other", cursor.uleb())
            case 0x16:  # val_expression
                register = cursor.uleb()
                registers[register] = ("other", cursor.block())
            case 0x2D:  # AARCH64_negate_ra_state: every return address is masked, signed or not
                pass
            case 0x2E:  # GNU_args_size
                cursor.uleb()
            case 0x2F:  # GNU_negative_offset_extended
                register = cursor.uleb()
                registers[register] = ("offset", -cursor.uleb() * cie.data_align)
            case _:
                raise ValueError(f"unknown call frame instruction {code:#x}")
        if 1 <= code <= 4 and location > until:
            return


def _restore(registers: dict[int, _RegisterRule], initial: dict[int, _RegisterRule], register: int) -> None:
    if register in initial:
        registers[register] = initial[register]
    else:
        registers.pop(register, None)


# --- from a row to a rule


def _register_plus(expression: bytes, tail: bytes = b"") -> tuple[int, int] | None:
    """(register, offset) of an expression that is exactly DW_OP_breg<n> offset, then `tail`."""
    if not expression or not 0x70 <= expression[0] <= 0x8F:
        return None
    cursor = Cursor(expression, 0, 1)
    offset = cursor.sleb()
    return (expression[0] - 0x70, offset) if expression[cursor.at :] == tail else None


def _plt_threshold(expression: bytes) -> int | None:
    """breg7 8; breg16 0; lit15; and; litN; ge; lit3; shl; plus: N (binutils, bfd/elfxx-x86.h: 5, 9, 10 or 11)."""
    if (
        len(expression) == 11
        and expression[:6] == b"\x77\x08\x80\x00\x3f\x1a"
        and expression[7:] == b"\x2a\x33\x24\x22"
    ):
        return expression[6] - 0x30
    return None


def _saved_at(rule: _RegisterRule | None, machine: Machine) -> tuple[SaveBase, int] | None:
    """(base, offset) where a register is saved. None if it is not, or in a form that no compiler emits for it."""
    if rule is None:
        return None
    kind, value = rule
    if kind == "offset" and isinstance(value, int):
        return "cfa", value
    simple = _register_plus(value) if kind == "expression" and isinstance(value, bytes) else None
    base = machine.save_bases.get(simple[0]) if simple is not None else None
    return (base, simple[1]) if simple is not None and base is not None else None


def rule_of(row: _Row, cie: Cie, machine: Machine) -> Rule | None:
    return_address = row.registers.get(cie.ra_register)
    in_lr = return_address is None and machine.has_link_register
    if (return_address is None and not in_lr) or cie.ra_register != machine.return_address:
        return None
    end = return_address is not None and return_address[0] == "undefined"
    ra = _saved_at(return_address, machine)
    if ra is None and not end and not in_lr:
        return None
    base, offset, expression = _cfa_of(row, machine)
    if base == "deref-rsp" and ra is not None and ra[0] == "rsp":
        base = "signal"
    elif ra is not None and ra[0] != "cfa":
        return None
    rbp = _saved_at(row.registers.get(machine.frame_pointer), machine)
    saved = tuple(
        Saved(name, *saved_at)
        for number, name in machine.callee_saved.items()
        if (saved_at := _saved_at(row.registers.get(number), machine)) is not None
    )
    cfa_shift = 0
    if machine.has_link_register and ra is not None and ra[0] == "cfa":
        # glibc's _dl_runtime_resolve (2.36) saves it above the CFA of its own table: the true CFA is higher.
        cfa_shift = max(ra[1] + 8 + 15 & ~15, 0)
    return Rule(
        cfa_base=base,
        cfa_offset=offset + cfa_shift,
        ra_offset=ra[1] - cfa_shift if ra is not None else None,
        end=end,
        rbp_offset=rbp[1] - (cfa_shift if rbp[0] == "cfa" else 0) if rbp is not None else None,
        rbp_base=rbp[0] if rbp is not None else "cfa",
        saved=saved,
        signal_frame=cie.signal_frame or base == "signal",
        expression=expression,
        ra_in_lr=in_lr,
    )


def _cfa_of(row: _Row, machine: Machine) -> tuple[CfaBase, int, bytes | None]:
    expression = row.cfa_expression
    if expression is None:
        return machine.cfa_bases[row.cfa_register], row.cfa_offset, None
    threshold = _plt_threshold(expression)
    if threshold is not None:
        return "expression-plt", threshold, None
    deref = _register_plus(expression, b"\x06")  # DW_OP_deref
    if deref is not None and deref[0] == machine.frame_pointer:
        return "deref-rbp", deref[1], None
    if deref is not None and deref[0] == machine.stack_pointer:
        return "deref-rsp", deref[1], None
    return "expression", 0, expression
