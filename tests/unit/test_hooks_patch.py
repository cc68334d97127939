"""Patched code, decoded from bytes that stand at an address."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from memforensics.probes.hooks.patch import follow, is_breakpoint, next_hop
from memforensics.target.memory import BytesMemory

BASE = 0x7F0000001000
FAR = 0x5555DEADB000


def at(code: bytes, base: int = BASE) -> BytesMemory:
    return BytesMemory(base, code.ljust(64, b"\xcc"))


def never(_: int) -> bool:
    return False


def test_every_known_patch_is_followed() -> None:
    imm64 = struct.pack("<Q", FAR)
    for code, target in (
        (b"\xe9" + struct.pack("<i", 0x1234 - 5), BASE + 0x1234),
        (b"\xe9" + struct.pack("<i", -0x1000 - 5), BASE - 0x1000),
        (b"\xeb\x10", BASE + 0x12),
        (b"\x48\xb8" + imm64 + b"\xff\xe0", FAR),  # mov rax, imm64; jmp rax
        (b"\x49\xbb" + imm64 + b"\x41\xff\xe3", FAR),  # mov r11, imm64; jmp r11
        (b"\xff\x25\x00\x00\x00\x00" + imm64, FAR),  # jmp [rip]
        (b"\x48\xb8" + imm64 + b"\x50\xc3", FAR),  # mov rax, imm64; push rax; ret
        (b"\x68\x78\x56\x34\x12\xc3", 0x12345678),  # push imm32; ret
        (b"\xb8\x78\x56\x34\x12\xff\xe0", 0x12345678),  # mov eax, imm32; jmp rax
        (b"\xf3\x0f\x1e\xfa\xe9" + struct.pack("<i", 0x100), BASE + 4 + 5 + 0x100),  # endbr64 first
        (b"\x66\x90\xe9" + struct.pack("<i", 0x100), BASE + 2 + 5 + 0x100),  # nop first
    ):
        assert next_hop(at(code), BASE) == target, code.hex()


def test_ordinary_code_is_not_a_jump() -> None:
    for code in (
        bytes.fromhex("b80b0000000f05483d01f0ffff7301c3"),  # glibc's munmap
        bytes.fromhex("4189ca41f7c1ff0f00007514b8090000000f05"),  # glibc's mmap
        bytes.fromhex("f30f1efa554889e5"),
        b"\xc3",
        b"\xff\xe0",  # jmp to a register that nobody set
        b"\x75\x10",  # a conditional jump
    ):
        assert next_hop(at(code), BASE) is None, code.hex()


def test_chain_ends_at_the_owner() -> None:
    memory = at(b"\xe9" + struct.pack("<i", 0x10 - 5) + b"\x90" * 11 + b"\xe9" + struct.pack("<i", 0x10 - 5))
    landing = follow(memory, BASE, lambda address: address == BASE + 0x10)
    assert landing is not None
    assert landing.hops == (BASE, BASE + 0x10)
    farther = follow(memory, BASE, never)
    assert farther is not None
    assert farther.hops == (BASE, BASE + 0x10, BASE + 0x20)


def test_loops_end() -> None:
    itself = follow(at(b"\xeb\xfe"), BASE, never)
    assert itself is not None
    assert itself.in_progress
    two = follow(at(b"\xeb\x02\xcc\xcc\xeb\xfa"), BASE, never)
    assert two is not None
    assert two.hops == (BASE, BASE + 4)


def test_int3_is_a_breakpoint_if_the_rest_is_unchanged() -> None:
    original = bytes.fromhex("b80b0000000f05")
    assert is_breakpoint(original, b"\xcc" + original[1:])
    assert not is_breakpoint(original, b"\xcc" + b"\x90" * 6)
    assert not is_breakpoint(original, original)
    assert not is_breakpoint(b"\xcc\x90", b"\xcc\x90")


@given(st.binary(min_size=1, max_size=80))
def test_any_bytes_are_read_without_an_error(code: bytes) -> None:
    landing = follow(BytesMemory(BASE, code), BASE, never)
    if landing is not None:
        assert landing.hops[0] == BASE
        assert len(landing.hops) <= 9
        assert landing.in_progress or len(set(landing.hops)) == len(landing.hops) > 1
