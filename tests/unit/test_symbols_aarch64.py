"""The unwinder for aarch64, of which no machine is at hand: real tables and code of that machine against binutils and
capstone, and stacks laid out as its ABI and its kernel do."""

import base64
import ctypes
import gzip
import itertools
import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import capstone
import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from kernel_walk import kernel_walk
from processes import TESTS
from symbols_files import open_elf
from test_symbols_cfi import Row, readelf_rows
from test_symbols_space import BASE, NOTHING, mapped_as_the_kernel_does, mapping, space_of

from memforensics.case.model import Mapping
from memforensics.probes.ebpf.loader import engine, layout
from memforensics.symbols.address_space import AddressSpace
from memforensics.symbols.unwind.call_instructions import (
    _resolve_stubs_aarch64,
    call_before,
    call_doubt,
    jump_targets_aarch64,
    rest_of_stub,
)
from memforensics.symbols.unwind.cfi import Cfi
from memforensics.symbols.unwind.machines import AARCH64
from memforensics.symbols.unwind.rule import Rule
from memforensics.symbols.unwind.unwinder import Registers, Unwound, unwind
from memforensics.target.memory import BytesMemory, Memory, Unreadable

pytestmark = pytest.mark.needs_aarch64
ADDRESS = (1 << 48) - 1
STACK = 0x7FFF_FFFF_0000
SIGNATURE = 0x5A << 56 | 0x15 << 48  # what pointer authentication may put above an address of 48 bits
TRAMPOLINE = 0x7000_0000_0000
SIGRETURN = bytes.fromhex("681180d2010000d4")
Cs = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)


def library(name: str = "msgspec") -> Path:
    """A real one, of many functions, by GCC, or (orjson) by LLVM; `make setup-test` fetches it."""
    return next((TESTS.parent / ".make/aarch64" / name).rglob("*.so"))


def differences(rule: Rule | None, row: Row) -> str | None:
    """Differences to readelf, which writes `u` for registers without an instruction: x30 in a leaf."""
    _, cfa, registers = row
    if rule is None:
        return "no rule"
    if cfa != f"{ {'rsp': 'sp', 'rbp': 'x29'}[rule.cfa_base] }{rule.cfa_offset:+d}":
        return f"CFA {rule.cfa_base}{rule.cfa_offset:+d}"
    for name, offset in (("ra", rule.ra_offset), ("x29", rule.rbp_offset)):
        said = registers.get(name, "u")
        if said != ("u" if offset is None else f"c{offset:+d}"):
            return f"{name} {offset}"
    return None if rule.ra_in_lr == (registers.get("ra", "u") == "u" and not rule.end) else "in x30"


@pytest.mark.parametrize(("name", "bases"), [("msgspec", {"rsp"}), ("orjson", {"rsp", "rbp"})])
def test_rules_agree_with_readelf(name: str, bases: set[str]) -> None:
    cfi = Cfi(open_elf(library(name)))
    compared = [(cfi.rule(row[0]), row) for row in readelf_rows(library(name))]
    assert len(compared) > 1000
    for rule, row in compared:
        difference = differences(rule, row)
        assert difference is None, (hex(row[0]), row, difference)
    assert {rule.cfa_base for rule, _ in compared if rule} == bases
    assert {rule.ra_in_lr for rule, _ in compared if rule} == {False, True}


def the_space(memory: Memory = NOTHING, *more: Mapping) -> AddressSpace:
    return space_of([*mapped_as_the_kernel_does(library(), BASE), *more], memory)


def instructions() -> list[tuple[int, str, str]]:
    text = open_elf(library()).section(".text")
    assert text is not None
    code = open_elf(library()).read_at_vaddr(text.vaddr, text.size)
    return [(at, name, operands) for at, _, name, operands in Cs.disasm_lite(code, text.vaddr)]


def test_calls_agree_with_capstone() -> None:
    space = the_space()
    kinds = set()
    for at, name, operands in instructions():
        call = call_before(space, BASE + at + 4, AARCH64)
        assert (call is not None) == (name in ("bl", "blr")), (hex(at), name, operands)
        if call is not None:
            kinds.add(name)
            assert call.target == (BASE + int(operands[1:], 16) if name == "bl" else None)
    assert kinds == {"bl", "blr"}
    assert call_before(space, BASE + instructions()[0][0] + 2, AARCH64) is None


class _Named:
    """Memory in which each word is its own address, so that the result identifies the slot that was read."""

    def read(self, address: int, size: int) -> bytes:
        return address.to_bytes(8, "little")[:size]


@dataclass(frozen=True)
class _Constant:
    word: int

    def read(self, address: int, size: int) -> bytes:
        return self.word.to_bytes(8, "little")[:size]


def plt_stubs() -> set[int]:
    """The stubs that are called: all but the first of .plt, which calls the linker."""
    plt = open_elf(library()).section(".plt")
    assert plt is not None
    calls = (int(operands[1:], 16) for _, name, operands in instructions() if name == "bl")
    return {target for target in calls if plt.vaddr <= target < plt.vaddr + plt.size}


def test_stubs_lead_to_the_slots_that_the_linker_fills() -> None:
    with library().open("rb") as stream:
        relocations = ELFFile(stream).get_section_by_name(".rela.plt")
        assert isinstance(relocations, RelocationSection)
        slots = {BASE + entry["r_offset"] for entry in relocations.iter_relocations()}
    space = the_space(_Named())
    found = [_resolve_stubs_aarch64(space, BASE + stub) for stub in plt_stubs()]
    assert len(found) > 20
    assert set(found) <= slots
    assert len(set(found)) == len(found)


def test_unbound_slot_gives_no_target() -> None:
    """The slot points to the first stub, which calls the linker."""
    plt = open_elf(library()).section(".plt")
    assert plt is not None
    space = the_space(_Constant(BASE + plt.vaddr))
    assert {_resolve_stubs_aarch64(space, BASE + stub) for stub in plt_stubs()} == {None}


def test_jumps_agree_with_capstone() -> None:
    """The targets of conditional and unconditional jumps."""
    text = open_elf(library()).section(".text")
    assert text is not None
    said = [
        int(operands.rpartition("#")[2], 16)
        for _, name, operands in instructions()
        if name == "b" or name.startswith(("b.", "cb", "tb"))
    ]
    code = open_elf(library()).read_at_vaddr(text.vaddr, text.size)
    assert list(jump_targets_aarch64(code, text.vaddr)) == said
    assert min(said) < max(said)


def functions(space: AddressSpace) -> tuple[int, int]:
    """(a pc in a leaf-like state whose return address is in x30, a return address in a function with a frame of
    sp+n), by readelf."""
    rows = list(readelf_rows(library()))
    leaf = next(row[0] for row in rows if row[1] == "sp+0" and row[2].get("ra", "u") == "u")
    framed = [
        (row[0], following[0])
        for row, following in itertools.pairwise(rows)
        if row[1].startswith("sp+") and row[2].get("ra", "u").startswith("c") and following[0] > row[0] + 8
    ]
    for start, end in framed:
        for at in range(start + 4, end, 4):
            if call_before(space, BASE + at, AARCH64) is not None and at - 4 >= start:
                return BASE + leaf, BASE + at
    raise AssertionError


def frame(space: AddressSpace, pc: int, fp: int, returns_to: int) -> bytes:
    """A frame of the function, built by its rule."""
    rule = space.rule(pc - 1)
    assert rule is not None
    assert rule.cfa_base == "rsp"
    out = bytearray(rule.cfa_offset)
    assert rule.ra_offset is not None
    struct.pack_into("<Q", out, rule.cfa_offset + rule.ra_offset, returns_to)
    if rule.rbp_offset is not None:
        struct.pack_into("<Q", out, rule.cfa_offset + rule.rbp_offset, fp)
    return bytes(out)


def unwound_twice(registers: Registers, stack: bytes, space: AddressSpace) -> Unwound:
    """Unwinds in user space; the walk in the kernel, by the rules learned from that, must find the same."""
    memory = BytesMemory(registers.rsp, stack)
    unwound = unwind(registers, memory, space)
    pcs = [layout.NativePc(f.pc, f.is_return, f.guessed) for f in unwound.frames]
    assert kernel_walk(registers, memory, unwound) == (layout.Ended.COMPLETE, pcs)
    return unwound


def test_a_leaf_and_signed_return_addresses() -> None:
    space = the_space()
    leaf, caller = functions(space)
    one = frame(space, caller, STACK + 4096, caller | SIGNATURE)
    stack = one + frame(space, caller, 0, 0)
    registers = Registers(rip=leaf, rsp=STACK, rbp=STACK + 8, lr=caller | SIGNATURE)
    unwound = unwound_twice(registers, stack, space)
    assert [(f.pc, f.is_return, f.guessed) for f in unwound.frames] == [
        (leaf, False, False),
        (caller, True, False),
        (caller, True, False),
    ]
    assert unwound.complete


def test_only_a_leaf_returns_to_x30() -> None:
    """A frame that has made a call does not: the call overwrote x30."""
    space = the_space()
    leaf, _ = functions(space)
    registers = Registers(rip=leaf, rsp=STACK, lr=leaf + 1)
    unwound = unwind(registers, BytesMemory(STACK, bytes(64)), space)
    assert not unwound.complete
    assert len(unwound.frames) == 2


class _Sigcontext(ctypes.Structure):
    """arch/arm64/include/uapi/asm/sigcontext.h; what follows pstate begins at a multiple of 16."""

    _fields_ = (
        ("fault_address", ctypes.c_uint64),
        ("regs", ctypes.c_uint64 * 31),
        ("sp", ctypes.c_uint64),
        ("pc", ctypes.c_uint64),
        ("pstate", ctypes.c_uint64),
        ("_pad", ctypes.c_uint64),
        ("reserved", ctypes.c_uint8 * 4096),
    )


class _RtSigframe(ctypes.Structure):
    """arch/arm64/kernel/signal.c and include/uapi/asm/ucontext.h: siginfo_t, then uc_flags, uc_link, uc_stack,
    uc_sigmask with room to 1024 bits, and, at a multiple of 16, uc_mcontext."""

    _fields_ = (
        ("info", ctypes.c_uint8 * 128),
        ("uc_flags", ctypes.c_uint64),
        ("uc_link", ctypes.c_uint64),
        ("ss_sp", ctypes.c_uint64),
        ("ss_flags", ctypes.c_uint64),
        ("ss_size", ctypes.c_uint64),
        ("uc_sigmask", ctypes.c_uint8 * 128),
        ("_align", ctypes.c_uint64),
        ("uc_mcontext", _Sigcontext),
    )


class _Pieces:
    def __init__(self, *pieces: BytesMemory) -> None:
        self._pieces = pieces

    def read(self, address: int, size: int) -> bytes:
        for piece in self._pieces:
            if piece.base <= address < piece.base + len(piece.data):
                return piece.read(address, size)
        raise Unreadable(address, size)


def test_a_signal_that_interrupted_a_leaf() -> None:
    """The handler's return address is the trampoline's in the vdso, which has no unwind table."""
    assert ctypes.sizeof(_RtSigframe) % 16 == 0
    assert _RtSigframe.uc_mcontext.offset % 16 == 0
    assert [words[2:] for words in Cs.disasm_lite(SIGRETURN, 0)] == [("mov", "x8, #0x8b"), ("svc", "#0")]
    plain = the_space()
    leaf, caller = functions(plain)
    interrupted = STACK + 8192
    pushed = _RtSigframe()
    context = pushed.uc_mcontext
    context.pc, context.sp = leaf, interrupted
    context.regs[29], context.regs[30] = 0x1234, caller
    stack = bytes(pushed).ljust(8192, b"\0") + frame(plain, caller, 0, 0)
    memory = _Pieces(BytesMemory(STACK, stack), BytesMemory(TRAMPOLINE, SIGRETURN + bytes(56)))
    code = mapping(TRAMPOLINE, 4096, "r-xp", 0, "", 0)
    space = the_space(memory, code)
    frames = [(leaf, False), (TRAMPOLINE, True), (leaf, False), (caller, True)]
    unwound = unwound_twice(Registers(rip=leaf, rsp=STACK, lr=TRAMPOLINE), stack, space)
    assert [(f.pc, f.is_return) for f in unwound.frames] == frames
    assert unwound.complete
    resumed = unwind(Registers(rip=TRAMPOLINE, rsp=STACK, lr=0), memory, space, is_return=True)
    assert [(f.pc, f.is_return) for f in resumed.frames] == frames[1:]


def test_code_without_a_table_is_left_by_x30_or_by_its_frame_record() -> None:
    """Anonymous code, as a just-in-time compiler writes it, called by a function with a table."""
    plain = the_space()
    _, caller = functions(plain)
    callers = frame(plain, caller, 0, caller) + frame(plain, caller, 0, 0)
    code = mapping(TRAMPOLINE, 4096, "r-xp", 0, "", 0)
    text = BytesMemory(TRAMPOLINE, bytes(4096))
    for registers, stack in (
        (Registers(rip=TRAMPOLINE + 64, rsp=STACK, lr=caller), callers),
        (
            Registers(rip=TRAMPOLINE + 64, rsp=STACK, rbp=STACK + 16, lr=0),
            struct.pack("<4Q", 1, 2, 0, caller | SIGNATURE) + callers,
        ),
    ):
        memory = _Pieces(BytesMemory(STACK, stack), text)
        space = the_space(memory, code)
        unwound = unwound_twice(registers, stack, space)
        assert [f.pc for f in unwound.frames] == [TRAMPOLINE + 64, caller, caller], registers
        assert unwound.frames[1].guessed
        assert unwound.complete


def test_a_frame_record_need_not_lie_at_the_top_of_its_frame() -> None:
    """GCC puts it at the bottom. The place of the caller's own record gives the start of the caller's stack."""
    plain = the_space()
    _, caller = functions(plain)
    rule = plain.rule(caller - 1)
    assert rule is not None
    assert rule.rbp_offset is not None
    size = 64
    callers_record = STACK + size + rule.cfa_offset + rule.rbp_offset
    stack = struct.pack("<2Q", callers_record, caller).ljust(size, b"\0")
    stack += frame(plain, caller, 0, caller) + frame(plain, caller, 0, 0)
    code = mapping(TRAMPOLINE, 4096, "r-xp", 0, "", 0)
    memory = _Pieces(BytesMemory(STACK, stack), BytesMemory(TRAMPOLINE, bytes(4096)))
    registers = Registers(rip=TRAMPOLINE + 64, rsp=STACK, rbp=STACK, lr=0)
    unwound = unwound_twice(registers, stack, the_space(memory, code))
    assert [(f.pc, f.guessed) for f in unwound.frames] == [
        (TRAMPOLINE + 64, False),
        (caller, True),
        (caller, False),
    ]
    assert unwound.complete
    guess = unwound.frames[0].rule
    assert guess is not None
    assert layout.pack_rule(guess) == layout.RULE.pack(size, 8 - size, -size, 1, 2 | 16, 0)


def test_a_stub_leaves_the_stack_as_it_is() -> None:
    """Stubs have no unwind table; the last of their four instructions jumps."""
    plain = the_space()
    _, caller = functions(plain)
    stack = frame(plain, caller, 0, 0)
    assert rest_of_stub(plain, caller) == b""
    for stub in plt_stubs():
        for pc in range(BASE + stub, BASE + stub + 16, 4):
            unwound = unwound_twice(Registers(rip=pc, rsp=STACK, lr=caller), stack, plain)
            assert [(f.pc, f.guessed) for f in unwound.frames] == [(pc, False), (caller, False)]


def test_a_call_of_the_function_itself_leaves_no_doubt() -> None:
    space = the_space()
    at, target = next(
        (at, target)
        for at, name, operands in instructions()
        if name == "bl" and space.entry(space.modules[0], target := int(operands[1:], 16)) == target
    )
    call = call_before(space, BASE + at + 4, AARCH64)
    assert call is not None
    assert call_doubt(space, call, BASE + target + 4, AARCH64) == 0
    assert call_doubt(space, call, BASE + at, AARCH64) == 2


@dataclass(frozen=True)
class _State:
    registers: Registers
    stack: bytes
    frames: list[tuple[int, bool]]  # (pc, whether it is a return address)


class _Recorded:
    """fixtures/record_aarch64.py: a program that QEMU ran, which signs return addresses; each instruction of it."""

    def __init__(self, folder: Path) -> None:
        recorded = json.loads(gzip.decompress((TESTS / "fixtures/recorded/aarch64.json.gz").read_bytes()))
        program, at = folder / "chain", recorded["trampoline"]
        program.write_bytes(base64.b64decode(recorded["program"]))
        code = BytesMemory(at, base64.b64decode(recorded["trampoline_code"]).ljust(64, b"\0"))
        mappings = [*mapped_as_the_kernel_does(program, 0), mapping(at, 4096, "r-xp", 0, "", 0)]
        self.space = space_of(mappings, code)
        self.states = [self._state(**state) for state in recorded["states"]]

    @staticmethod
    def _state(registers: dict[str, int], stack: str, returns: list[tuple[int, bool]]) -> _State:
        frames = [(registers["rip"], False), *((pc, is_return) for pc, is_return in returns)]
        return _State(Registers(**registers), base64.b64decode(stack), frames)


def test_each_instruction_of_a_program(tmp_path: Path) -> None:
    recorded = _Recorded(tmp_path)
    assert {len(state.frames) for state in recorded.states} == set(range(1, 10))
    assert any((state.registers.lr or 0) > ADDRESS for state in recorded.states)
    for state in recorded.states:
        unwound = unwound_twice(state.registers, state.stack, recorded.space)
        assert [(f.pc, f.is_return) for f in unwound.frames] == state.frames
        assert unwound.complete
        for callee, caller in itertools.pairwise(unwound.frames):
            assert caller.guessed == (recorded.space.rule(callee.lookup_pc) is None and callee.module is not None)


def test_the_kernel_gets_the_leafs_rule_and_the_signals() -> None:
    walk = (engine.SOURCES / "unwind.bpf.h").read_text()
    bit = int(re.search(r"#define RULE_RA_IN_LR (\d+)", walk)[1])  # type: ignore[index]
    leaf = Rule(cfa_base="rsp", cfa_offset=16, ra_offset=None, ra_in_lr=True)
    assert layout.pack_rule(leaf) == layout.RULE.pack(16, 0, 0, 0, bit, 0)
    before = int(re.search(r"#define AARCH64_LR_BEFORE_PC (\d+)", walk)[1])  # type: ignore[index]
    rule = AARCH64.signal_rule
    assert [saved.offset for saved in rule.saved] == [(rule.ra_offset or 0) - before]
    assert layout.pack_rule(rule) is not None


@pytest.mark.parametrize("from_leaf", [True, False])
def test_registers_of_a_miss(from_leaf: bool) -> None:
    """x30 is the leaf's or, if the walk in the kernel stopped after a signal, the interrupted frame's."""
    pcs = [0x1000 | 1 << 63, 0x2000]
    stopped_at = STACK if from_leaf else STACK + 16384
    data = layout._HEAD.pack(layout.EventType.MISS, 7, 1, 123)
    data += layout._STACK.pack(5, layout.Kind.mmap, 1, 0x1000, STACK, 29, 30, 0, 0, 0, 0)
    data += layout._WALK.pack(0x2000, STACK + 16384, 129, 28, 0, 0, 0, len(pcs), layout.Ended.MISS)
    data += struct.pack(f"<{layout.MAX_NATIVE}Q", *pcs, *[0] * (layout.MAX_NATIVE - 2))
    data += struct.pack("<Q", 130)
    data += layout._COPY.pack(stopped_at, 16) + b"sixteen of stack"
    event = layout.parse_event(data, with_python=False)
    assert isinstance(event, layout.StackEvent)
    assert event.copy == b"sixteen of stack"
    leaf = Registers(rip=0x1000, rsp=STACK, rbp=29, lr=30)
    assert event.registers == (leaf if from_leaf else Registers(rip=0x2000, rsp=STACK + 16384, rbp=129, lr=130))
