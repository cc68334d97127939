"""File and line against binutils' addr2line."""

import posixpath
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from symbols_files import chain_program, open_elf, python_code, ucx_libraries

from memforensics.symbols.elf.byte_source import BytesSource, Source
from memforensics.symbols.elf.reader import BadElf, ElfFile
from memforensics.symbols.names.lineheader import read_program
from memforensics.symbols.names.lines import LineReader, TimeBudget

ADDRESSES_A_FILE = 150
PLENTY_S = 600.0


def addr2line(path: Path, addresses: list[int]) -> list[tuple[str, int] | None]:
    if shutil.which("addr2line") is None:
        pytest.skip("needs binutils")
    command = ["addr2line", "-e", str(path), *map(hex, addresses)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    places = [line.partition(" (")[0].rpartition(":") for line in out]
    return [(posixpath.normpath(file), int(line)) if line.isdigit() else None for file, _, line in places]


@pytest.mark.parametrize("path", [python_code(), *ucx_libraries()], ids=lambda path: path.name)
def test_lines_are_addr2lines(path: Path) -> None:
    elf = open_elf(path)
    text = elf.section(".text")
    if elf.section(".debug_aranges") is None:
        pytest.skip(f"{path.name} was built without DWARF, or stripped")
    assert text is not None
    functions = [s for s in elf.symbols() if s.size and text.vaddr <= s.start < text.vaddr + text.size]
    pick = random.Random(1)
    addresses = [
        s.start + pick.randrange(s.size) for s in pick.sample(functions, min(ADDRESSES_A_FILE, len(functions)))
    ]
    reader, budget = LineReader(elf), TimeBudget(PLENTY_S)
    for address, expected in zip(addresses, addr2line(path, addresses), strict=True):
        if expected is not None:
            assert reader.find(address, budget) == expected, hex(address)


@pytest.mark.parametrize("flag", ["-gdwarf-4", "-gdwarf-5", "-gz=zlib"])
def test_every_address_of_a_program(flag: str) -> None:
    path = chain_program(flag)
    elf = open_elf(path)
    first, last = elf.find_symbol("level_12"), elf.find_symbol("aligned")
    assert first is not None
    assert last is not None
    addresses = list(range(first.start, last.start + last.size))
    reader, budget = LineReader(elf), TimeBudget(PLENTY_S)
    found = [reader.find(address, budget) for address in addresses]
    expected = addr2line(path, addresses)
    assert sum(place is not None for place in expected) > len(addresses) // 2
    assert [ours for ours, theirs in zip(found, expected, strict=True) if theirs] == [p for p in expected if p]


def test_a_header_of_endless_nothing_is_refused() -> None:
    """Version 5, directories in a format of no fields, 2**63 of them."""
    endless = bytes.fromhex("0500 0800 20000000 01 01 01 fb 0e 01 00") + b"\xff" * 9 + b"\x00" + bytes(16)
    section = (len(endless)).to_bytes(4, "little") + endless
    elf = ElfWithLines(section)
    with pytest.raises((IndexError, ValueError, BadElf)):
        read_program(elf, 0, b"/src")


class ElfWithLines(ElfFile):
    """An ELF file of which only .debug_line matters."""

    def __init__(self, section: bytes) -> None:
        super().__init__(chain_program().read_bytes())
        self._lines = section

    def open_section(self, name: str) -> tuple[Source, int, int] | None:
        return BytesSource(self._lines), 0, len(self._lines)


def test_no_budget_no_lines() -> None:
    elf = open_elf(chain_program())
    main = elf.find_symbol("main")
    assert main is not None
    reader = LineReader(elf)
    assert reader.find(main.start, TimeBudget(0.0)) is None
    assert reader.find(main.start, TimeBudget(PLENTY_S)) is not None


def test_the_budget_counts_only_time_spent_inside() -> None:
    now = 0.0
    budget = TimeBudget(2.0, clock=lambda: now)
    now = 100.0
    assert not budget.spent
    with budget.spending():
        now += 1.5
        assert not budget.spent
    now += 100.0
    with budget.spending():
        assert not budget.spent
        now += 0.5
        assert budget.spent
    assert budget.spent
