"""ELF files: real ones against binutils, broken ones against the promise that nothing but BadElf comes out."""

import contextlib
import ctypes
import gc
import io
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from symbols_files import chain_program, libc, mapped_files, open_elf, python_code

from memforensics.symbols.elf.reader import BadElf, ElfFile
from memforensics.symbols.names.lines import LineReader, WaitBudget
from memforensics.symbols.unwind.cfi import Cfi

WATCHED = ("mmap", "munmap", "mremap", "brk", "malloc", "free", "dlsym", "memcpy", "read")


def readelf(*words: str) -> list[list[str]]:
    if shutil.which("readelf") is None:
        pytest.skip("needs binutils")
    out = subprocess.run(["readelf", "-W", *words], capture_output=True, text=True, check=True).stdout
    return [line.split() for line in out.splitlines()]


@pytest.mark.parametrize("path", [libc(), python_code()], ids=lambda path: path.name)
def test_header_facts_are_readelfs(path: Path) -> None:
    elf = open_elf(path)
    rows = readelf("-ndl", str(path))
    notes = [row[-1] for row in rows if "Build" in row and "ID:" in row]
    assert elf.build_id() == (notes[0] if notes else None)
    assert list(elf.needed) == [row[-1].strip("[]") for row in rows if "(NEEDED)" in row]
    sonames = [row[-1].strip("[]") for row in rows if "(SONAME)" in row]
    assert elf.soname == (sonames[0] if sonames else None)
    loads = [tuple(int(word, 16) for word in (row[2], row[1], row[4], row[5])) for row in rows if row[:1] == ["LOAD"]]
    assert [(s.vaddr, s.offset, s.filesz, s.memsz) for s in elf.load_segments] == loads


def test_every_function_of_the_static_table_is_found_by_address() -> None:
    path = chain_program()
    elf = open_elf(path)
    functions = {
        row[7]: (int(row[1], 16), int(row[2], 0))
        for row in readelf("-s", str(path))
        if len(row) == 8 and row[3] == "FUNC" and row[6] != "UND"
    }
    assert {"main", "level_1", "level_12", "no_cfi_1", "before_read", "on_signal"} <= functions.keys()
    for name, (start, size) in functions.items():
        if size:
            for inside in (start, start + size - 1):
                symbol = elf.symbol_at(inside)
                assert symbol is not None
                assert (symbol.name, symbol.start, symbol.size) == (name, start, size)
    last, size = functions["level_12"]
    assert elf.find_symbol("level_12") == elf.symbol_at(last)
    beyond = elf.symbol_at(last + size)
    assert beyond is None or beyond.start >= last + size


def test_a_stripped_file_still_has_its_exports() -> None:
    elf = open_elf(libc())
    address = elf.find_symbol("malloc")
    assert address is not None
    at = elf.symbol_at(address.start + 1)
    assert at is not None
    assert at.name == "malloc"  # of __libc_malloc, malloc, __malloc the one for people
    assert elf.defines("malloc")
    assert not elf.defines("no_such_function")
    assert elf.find_symbol("no_such_function") is None


def test_default_version_wins() -> None:
    """libc has memcpy@GLIBC_2.2.5 and memcpy@@GLIBC_2.14: others are bound to the latter. Compared by what this
    process's own linker found, through an IFUNC's symbol for pthread_cond_wait, which has two versions too."""
    elf = open_elf(libc())
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(libc()))]
    base = min(int(line[0].partition("-")[0], 16) for line in maps)
    function = ctypes.CDLL(str(libc())).pthread_cond_wait
    address = ctypes.cast(function, ctypes.c_void_p).value
    symbol = elf.find_symbol("pthread_cond_wait")
    assert symbol is not None
    assert address is not None
    assert symbol.start == address - base


@pytest.mark.parametrize("path", [libc(), python_code(), mapped_files()[0]], ids=lambda path: path.name)
def test_relocations_are_readelfs(path: Path) -> None:
    kinds = {"R_X86_64_64": 1, "R_X86_64_GLOB_DAT": 6, "R_X86_64_JUMP_SLOT": 7}
    kinds |= {name[:16]: kind for name, kind in kinds.items()}  # readelf cuts them off
    expected = set()
    for row in readelf("-r", str(path)):
        if len(row) >= 5 and row[2] in kinds and row[4].partition("@")[0] in WATCHED:
            expected.add((int(row[0], 16), row[4].partition("@")[0], kinds[row[2]]))
    found = open_elf(path).relocations(WATCHED)
    assert {(r.slot_vaddr, r.symbol, r.type) for r in found} == expected
    assert [r.slot_vaddr for r in found] == sorted(r.slot_vaddr for r in found)


def test_addresses_go_both_ways() -> None:
    elf = open_elf(python_code())
    for segment in elf.load_segments:
        for at in (0, segment.filesz // 2, segment.filesz - 1):
            if segment.filesz and segment.executable:
                assert elf.vaddr_to_offset(segment.vaddr + at) == segment.offset + at
                assert elf.offset_to_vaddr(segment.offset + at) == segment.vaddr + at
        if segment.memsz > segment.filesz:
            assert elf.vaddr_to_offset(segment.vaddr + segment.filesz) is None  # .bss has no bytes in the file
    assert elf.vaddr_to_offset(1 << 60) is None
    with pytest.raises(BadElf):
        elf.read_at_vaddr(1 << 60, 8)


def test_a_debug_file_counts_only_with_the_same_build_id(tmp_path: Path) -> None:
    program = chain_program("-Wl,--build-id")
    stripped, debug = tmp_path / "stripped", tmp_path / "debug"
    subprocess.run(["objcopy", "--only-keep-debug", program, debug], check=True)
    subprocess.run(["objcopy", "--strip-all", program, stripped], check=True)
    asked: list[tuple[str, str | None]] = []

    def candidates(build_id: str, link: str | None) -> list[io.BufferedReader]:
        asked.append((build_id, link))
        return [libc().open("rb"), debug.open("rb")]  # the first is another file's

    main = open_elf(program).find_symbol("main")
    assert main is not None
    with stripped.open("rb") as stream:
        assert ElfFile(stream).find_symbol("main") is None
        elf = ElfFile(stream, debug_files=candidates)
    assert elf.find_symbol("main") == main
    assert elf.symbol_at(main.start) == main
    assert asked == [(elf.build_id(), None)]
    lines = LineReader(elf)
    assert lines.look_up((main.start,), WaitBudget(60))
    assert lines.at(main.start)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x7fELF", b"#!/bin/sh\n" * 20, b"\x7fELF\x01\x01" + bytes(100), b"\x7fELF\x02\x02" + bytes(100)],
    ids=["empty", "magic only", "script", "32 bits", "big-endian"],
)
def test_what_is_no_elf_says_so(data: bytes) -> None:
    with pytest.raises(BadElf):
        ElfFile(data)


def test_a_stream_and_its_bytes_are_the_same() -> None:
    path = mapped_files()[0]
    data = path.read_bytes()
    with path.open("rb") as stream:
        from_file = ElfFile(stream)
    assert list(ElfFile(io.BytesIO(data)).symbols()) == list(ElfFile(data).symbols()) == list(from_file.symbols())


def test_a_file_is_closed_with_its_last_user() -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    elf = open_elf(libc())
    assert elf.symbol_at(0x1000) is None or elf.symbols()
    del elf
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


# --- hostile files


def use_everything(data: bytes) -> None:
    """Every public reader, as a probe would use it. Only BadElf may come out."""

    def tried(action: Callable[[], object]) -> None:
        with contextlib.suppress(BadElf):
            action()

    try:
        elf = ElfFile(data)
    except BadElf:
        return
    places = [s.vaddr + s.memsz // 3 for s in elf.load_segments[:8]] + [0, 4096, (1 << 64) - 1]
    tried(elf.build_id)
    tried(lambda: (elf.soname, elf.needed, elf.sections))
    tried(lambda: elf.find_symbols(("main", "malloc", "level_3", "no_such")))
    tried(lambda: elf.defines("malloc"))
    tried(lambda: elf.relocations(WATCHED))
    tried(lambda: sum(1 for _ in elf.symbols()))
    cfi = Cfi(elf)
    for vaddr in places:
        tried(partial(elf.symbol_at, vaddr))
        tried(partial(elf.read_at_vaddr, vaddr, 16))
        cfi.rule(vaddr)
        cfi.function_range(vaddr)


@pytest.fixture(scope="module")
def program() -> bytes:
    return chain_program().read_bytes()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_raise_nothing_but_bad_elf(program: bytes, data: st.DataObject) -> None:
    damaged = bytearray(program)
    headers = st.integers(0, 1023)  # ELF and program headers: most fields that steer the rest
    anywhere = st.integers(0, len(program) - 9)
    for at in data.draw(st.lists(st.one_of(headers, anywhere), min_size=1, max_size=12)):
        damaged[at : at + 8] = struct.pack("<Q", data.draw(st.sampled_from(HARD_WORDS) | st.integers(0, 2**64 - 1)))
    use_everything(bytes(damaged))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_tables_raise_nothing_but_bad_elf(program: bytes, data: st.DataObject) -> None:
    """Damage aimed at the tables that are parsed."""
    elf = ElfFile(program)
    names = [".eh_frame", ".eh_frame_hdr", ".dynsym", ".dynamic", ".gnu.hash", ".symtab", ".rela.dyn", ".rela.plt"]
    damaged = bytearray(program)
    for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=8)):
        section = elf.section(name)
        assert section is not None
        at = section.offset + data.draw(st.integers(0, section.size - 1))
        size = data.draw(st.sampled_from((1, 2, 4, 8)))
        damaged[at : at + size] = data.draw(st.binary(min_size=size, max_size=size))
    use_everything(bytes(damaged[: len(program)]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_truncated_files_raise_nothing_but_bad_elf(program: bytes, data: st.DataObject) -> None:
    use_everything(program[: data.draw(st.integers(0, len(program)))])


HARD_WORDS = (0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 31, 1 << 32, 1 << 40, 1 << 62, 1 << 63, (1 << 64) - 1, (1 << 64) - 16)
