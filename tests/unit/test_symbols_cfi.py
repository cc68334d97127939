"""Unwind rules of real libraries compared with binutils' decoder, row by row, and special cases of the platform."""

import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from symbols_files import chain_program, libc, library, open_elf, python_code, ucx_libraries

from memforensics.symbols.elf.reader import ElfFile
from memforensics.symbols.unwind.cfi import Cfi
from memforensics.symbols.unwind.rule import Rule

ROWS_A_FILE = 3000
CALLEE_SAVED = ("rbx", "rbp", "r12", "r13", "r14", "r15")
_FDE = re.compile(r"[0-9a-f]+ [0-9a-f]+ [0-9a-f]+ FDE .*pc=([0-9a-f]+)\.\.([0-9a-f]+)")
_ROW = re.compile(r"([0-9a-f]{16}) (\S+)\s+(.*)")
_PLAIN = re.compile(r"u|s|exp|c[+-]\d+")

Row = tuple[int, str, dict[str, str]]


def readelf_rows(path: Path) -> Iterator[Row]:
    """(address, CFA, register -> rule) of `readelf --debug-dump=frames-interp`, of .eh_frame. Rows with registers
    kept in registers (vfork, longjmp) are left out: readelf's columns are ambiguous there."""
    if shutil.which("readelf") is None:
        pytest.skip("needs binutils")
    command = ["readelf", "--debug-dump=frames-interp", str(path)]
    # It exits with 1 if it finds a fault in the separate debug file.
    text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    columns: list[str] = []
    in_fde, end = False, 0
    for line in text.splitlines():
        if line.startswith("Contents of the"):
            in_eh_frame = ".eh_frame" in line
        elif found := _FDE.match(line):
            in_fde, end, columns = in_eh_frame, int(found[2], 16), []
        elif " CIE " in line:
            in_fde = False
        elif line.startswith("   LOC"):
            columns = line.split()[2:]
        elif in_fde and (found := _ROW.match(line)):
            address, registers = int(found[1], 16), found[3].split()
            if address < end and len(registers) == len(columns) and all(map(_PLAIN.fullmatch, registers)):
                yield address, found[2], dict(zip(columns, registers, strict=True))


def differences(rule: Rule | None, row: Row) -> str | None:
    """Differences to readelf."""
    _, cfa, registers = row
    if rule is None:
        return "no rule"
    if cfa == "exp":
        if rule.cfa_base not in ("expression-plt", "deref-rbp", "deref-rsp", "signal", "expression"):
            return f"CFA {rule.cfa_base}"
    elif cfa != f"{rule.cfa_base}{rule.cfa_offset:+d}":
        return f"CFA {rule.cfa_base}{rule.cfa_offset:+d}"
    if rule.end != (registers["ra"] == "u"):
        return f"end {rule.end}"
    if registers["ra"][0] == "c" and rule.ra_offset != int(registers["ra"][1:]):
        return f"ra {rule.ra_offset}"
    saved = {entry.register: (entry.base, entry.offset) for entry in rule.saved}
    if rule.rbp_offset is not None:
        saved["rbp"] = (rule.rbp_base, rule.rbp_offset)
    for name in CALLEE_SAVED:
        said = registers.get(name, "u")
        if said in ("u", "s") and name in saved:
            return f"{name} {saved[name]}"
        if said[0] == "c" and saved.get(name) != ("cfa", int(said[1:])):
            return f"{name} {saved.get(name)}"
    return None


FILES = [libc(), library("ld-linux"), library("libffi"), python_code(), *ucx_libraries()]
STDCXX = Path("/usr/lib/x86_64-linux-gnu/libstdc++.so.6")


@pytest.mark.parametrize("path", FILES + [STDCXX] * STDCXX.exists(), ids=lambda path: path.name)
def test_rules_agree_with_readelf(path: Path) -> None:
    rows = list(readelf_rows(path))
    assert len(rows) > 100
    cfi = Cfi(open_elf(path))
    for row in random.Random(1).sample(rows, min(ROWS_A_FILE, len(rows))):
        difference = differences(cfi.rule(row[0]), row)
        assert difference is None, (hex(row[0]), row, difference)


def test_without_the_search_table_a_scan_gives_the_same() -> None:
    path = chain_program()
    searched, scanned = open_elf(path), open_elf(path)
    scanned.eh_frame_hdr = None
    text = searched.section(".text")
    assert text is not None
    by_table, by_scan = Cfi(searched), Cfi(scanned)
    rules = [by_table.rule(vaddr) for vaddr in range(text.vaddr, text.vaddr + text.size)]
    assert rules == [by_scan.rule(vaddr) for vaddr in range(text.vaddr, text.vaddr + text.size)]
    assert sum(rule is not None for rule in rules) > len(rules) // 2


def test_the_extent_of_a_function_needs_no_symbols() -> None:
    elf = open_elf(chain_program())
    symbol = elf.find_symbol("level_5")
    assert symbol is not None
    cfi = Cfi(elf)
    assert cfi.function_range(symbol.start + 3) == (symbol.start, symbol.start + symbol.size)
    bare = elf.find_symbol("no_cfi_1")
    assert bare is not None
    assert cfi.function_range(bare.start) is None
    assert cfi.rule(bare.start) is None


def test_the_entry_point_has_no_caller() -> None:
    elf = open_elf(chain_program())
    start = elf.find_symbol("_start")
    assert start is not None
    rule = Cfi(elf).rule(start.start + 4)
    assert rule is not None
    assert rule.end
    assert rule.ra_offset is None


def test_lazy_plt_stubs() -> None:
    elf = open_elf(chain_program("-Wl,-z,lazy"))
    plt = elf.section(".plt")
    assert plt is not None
    rule = Cfi(elf).rule(plt.vaddr + 16)
    assert rule is not None
    assert (rule.cfa_base, rule.cfa_offset, rule.ra_offset) == ("expression-plt", 11, -8)


def test_the_signal_trampoline_of_libc() -> None:
    """A handler returns to the trampoline with rsp at the ucontext: asm/sigcontext.h has rip 16 words after r8, at
    40 + 128."""
    elf = open_elf(libc())
    cfi = Cfi(elf)
    code = b"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05"
    text = elf.section(".text")
    assert text is not None
    offset = elf.read_at(text.offset, text.size).index(code)
    rule = cfi.rule(text.vaddr + offset)
    assert rule is not None
    assert rule.signal_frame
    assert (rule.cfa_base, rule.cfa_offset, rule.ra_offset) == ("signal", 160, 168)
    assert (rule.rbp_base, rule.rbp_offset) == ("rsp", 120)
    assert cfi.is_signal_trampoline(text.vaddr + offset)
    assert not cfi.is_signal_trampoline(text.vaddr)


def test_the_vdso_from_memory() -> None:
    """The kernel's own library has no file; its image is read from memory."""
    line = next(line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("[vdso]"))
    start, end = (int(word, 16) for word in line.split()[0].split("-"))
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        memory.seek(start)
        elf = ElfFile(memory.read(end - start))
    symbol = elf.find_symbol("__vdso_clock_gettime")
    assert symbol is not None
    rule = Cfi(elf).rule(symbol.start)
    assert rule is not None
    assert (rule.cfa_base, rule.cfa_offset, rule.ra_offset) == ("rsp", 8, -8)


def test_rules_are_shared_and_hashable() -> None:
    cfi = Cfi(open_elf(libc()))
    text = open_elf(libc()).section(".text")
    assert text is not None
    rules = [rule for vaddr in range(text.vaddr, text.vaddr + 4000) if (rule := cfi.rule(vaddr)) is not None]
    assert len({id(rule) for rule in rules}) == len(set(rules)) < len(rules)
