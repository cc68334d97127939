"""Address spaces and the unwinder on recorded processes: no pid, no privileges."""

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from symbols_files import chain_program, libc, open_elf

from memforensics.case.model import Mapping
from memforensics.symbols.address_space import AddressSpace, RecordedProcess, group_modules
from memforensics.symbols.names.symbolizer import Symbolizer
from memforensics.symbols.unwind.unwinder import Registers, unwind
from memforensics.target.memory import BytesMemory, Memory

BASE = 0x5555_5555_4000
NOTHING = BytesMemory(0, b"")


def mapping(start: int, size: int, perms: str, offset: int, path: str, inode: int = 7) -> Mapping:
    return Mapping(start=start, end=start + size, perms=perms, offset=offset, device="fd:01", inode=inode, path=path)


def mapped_as_the_kernel_does(path: Path, base: int, inode: int = 7) -> list[Mapping]:
    """One mapping a PT_LOAD, in whole pages."""
    out = []
    for segment in open_elf(path).load_segments:
        start, skew = segment.vaddr & ~4095, segment.vaddr & 4095
        perms = "".join(letter if segment.flags & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1))) + "p"
        size = (segment.filesz + skew + 4095) & ~4095
        out.append(mapping(base + start, size, perms, segment.offset - skew, str(path), inode))
    return out


@contextlib.contextmanager
def opened(wanted: Mapping) -> Iterator[BinaryIO]:
    with open(wanted.path.removesuffix(" (deleted)"), "rb") as stream:
        yield stream


def space_of(mappings: list[Mapping], memory: Memory = NOTHING) -> AddressSpace:
    return AddressSpace(RecordedProcess(mappings, opened, memory))


def test_a_pc_becomes_an_address_in_its_file() -> None:
    program = chain_program()
    space = space_of(mapped_as_the_kernel_does(program, BASE))
    main = open_elf(program).find_symbol("main")
    assert main is not None
    found = space.find(BASE + main.start)
    assert found is not None
    module, vaddr = found
    assert vaddr == main.start
    assert (module.path, module.name, module.start) == (str(program), program.name, BASE)
    assert space.bias(module) == BASE
    assert space.address(module, vaddr) == BASE + main.start
    assert space.executable(BASE + main.start)
    assert not space.executable(BASE)
    assert space.find(BASE - 1) is None
    assert space.module_named(program.name) is module
    frame = Symbolizer(space).frame(module, main.start + 1)
    assert (frame.function, frame.offset, frame.module) == ("main", main.start + 1, str(program))
    assert frame.build_id == open_elf(program).build_id()


def test_one_file_twice_is_two_modules() -> None:
    program = chain_program()
    here, there = (mapped_as_the_kernel_does(program, base) for base in (BASE, BASE + 0x100000))
    modules = group_modules([*here, *there])
    assert [module.start for module in modules] == [BASE, BASE + 0x100000]
    assert [len(module.mappings) for module in modules] == [len(here), len(there)]


def test_mappings_split_by_a_patch_stay_one_module() -> None:
    """An inline patch makes one page writable for a moment; the mapping may stay split."""
    program = chain_program()
    whole = mapped_as_the_kernel_does(program, BASE)
    code = next(m for m in whole if "x" in m.perms)
    first = mapping(code.start, 4096, "r-xp", code.offset, code.path)
    rest = (
        [mapping(code.start + 4096, code.size - 4096, "r-xp", code.offset + 4096, code.path)]
        if code.size > 4096
        else []
    )
    split = [m for m in whole if m is not code] + [first, *rest]
    assert [m.identity for m in group_modules(split)] == [m.identity for m in group_modules(whole)]
    main = open_elf(program).find_symbol("main")
    assert main is not None
    found = space_of(split).find(BASE + main.start)
    assert found is not None
    assert found[1] == main.start


def test_data_files_are_no_modules() -> None:
    assert (
        group_modules([mapping(BASE, 4096, "r--p", 0, "/weights.bin"), mapping(BASE + 8192, 4096, "rw-p", 0, "", 0)])
        == ()
    )


def test_refresh_tells_what_came_went_and_changed() -> None:
    program, other = chain_program(), libc()
    mappings = mapped_as_the_kernel_does(program, BASE)
    process = RecordedProcess(mappings, opened, NOTHING)
    space = AddressSpace(process)
    assert not space.refresh()
    more = mapped_as_the_kernel_does(other, 0x7F00_0000_0000, inode=8)
    mappings += more
    change = space.refresh()
    assert [module.path for module in change.came] == [str(other)]
    assert (change.went, change.changed) == ((), ())
    del mappings[-len(more) :]
    assert [module.path for module in space.refresh().went] == [str(other)]
    mappings[:] = [mapping(m.start, m.size, m.perms, m.offset, m.path + " (deleted)") for m in mappings]
    assert not space.refresh()  # deleted on disk is the same file still
    mappings[:] = mapped_as_the_kernel_does(other, BASE, inode=9)
    change = space.refresh()
    assert [(before.path, now.path) for before, now in change.changed] == [(str(program), str(other))]
    found = space.module_named(other.name)
    assert found is not None
    assert space.bias(found) == BASE


@pytest.mark.parametrize("content", [b"", b"not an ELF file" * 100])
def test_a_file_that_is_no_elf_leaves_offsets(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "jit.bin"
    path.write_bytes(content)
    space = space_of([mapping(BASE, 8192, "r-xp", 0x3000, str(path))])
    found = space.find(BASE + 0x10)
    assert found is not None
    assert found[1] == 0x3010
    assert space.elf(found[0]) is None
    assert space.why_no_elf(found[0])
    assert space.rule(BASE + 0x10) is None
    frame = Symbolizer(space).frame(*found)
    assert (frame.function, frame.offset) == (None, 0x3010)


def test_a_missing_file_says_why() -> None:
    space = space_of([mapping(BASE, 8192, "r-xp", 0, "/no/such/library.so")])
    assert "No such file" in (space.why_no_elf(space.modules[0]) or "")


@pytest.mark.parametrize("at", [0, 6, 11, 15])
def test_both_halves_of_a_lazy_plt_stub(at: int) -> None:
    """Behind its push (byte 11 on) the stub has one word more on the stack."""
    program = chain_program("-Wl,-z,lazy")
    elf = open_elf(program)
    plt, main = elf.section(".plt"), elf.find_symbol("main")
    assert plt is not None
    assert main is not None
    return_address = BASE + main.start + 16
    words = [return_address] if at < 11 else [0x1234, return_address]
    rsp = 0x7FFF_FFFF_0000
    memory = BytesMemory(rsp, struct.pack(f"<{len(words)}Q", *words))
    unwound = unwind(
        Registers(rip=BASE + plt.vaddr + 16 + at, rsp=rsp), memory, space_of(mapped_as_the_kernel_does(program, BASE))
    )
    assert [frame.pc for frame in unwound.frames] == [BASE + plt.vaddr + 16 + at, return_address]
    assert unwound.why_ended == "unreadable"


def test_garbage_ends_at_once_and_says_so() -> None:
    space = space_of(mapped_as_the_kernel_does(chain_program(), BASE))
    memory = BytesMemory(0x1000, bytes(range(256)) * 64)
    for rip in (0, 1, BASE - 5, (1 << 64) - 1):
        unwound = unwind(Registers(rip=rip, rsp=0x1000), memory, space)
        assert not unwound.complete
        assert (len(unwound.frames), unwound.why_ended) == (1, "no-module")


def test_the_frame_limit_holds() -> None:
    """A stack of 500 identical frames."""
    program = chain_program()
    elf = open_elf(program)
    symbol = elf.find_symbol("level_4")
    assert symbol is not None
    space = space_of(mapped_as_the_kernel_does(program, BASE))
    pc = BASE + symbol.start  # at its first byte the return address is on top
    memory = BytesMemory(0x1000, struct.pack("<Q", pc + 1) * 4000)
    unwound = unwind(Registers(rip=pc, rsp=0x1000), memory, space, max_frames=50)
    assert (len(unwound.frames), unwound.why_ended) == (50, "frame-limit")
