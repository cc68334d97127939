"""ELF files and their lines against pyelftools. Ours reads what is asked for and no more, and of damaged files what can
be read; of whole files both must say the same."""

import itertools
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import NoteSection, SymbolTableSection
from symbols_files import chain_program, libc, open_elf, python_code, ucx_libraries

from memforensics.symbols.names.lines import LineReader, WaitBudget

DEFINED = ("STT_FUNC", "STT_OBJECT", "STT_GNU_IFUNC")


@pytest.mark.parametrize("path", [libc(), python_code(), *ucx_libraries()], ids=lambda path: path.name)
def test_sections_symbols_and_build_id(path: Path) -> None:
    elf = open_elf(path)
    with path.open("rb") as stream:
        theirs = ELFFile(stream)
        sections = [(s.name, s["sh_addr"], s["sh_offset"], s["sh_size"]) for s in theirs.iter_sections()]
        build_ids = [
            note["n_desc"]
            for section in theirs.iter_sections()
            if isinstance(section, NoteSection)
            for note in section.iter_notes()
            if note["n_type"] == "NT_GNU_BUILD_ID"
        ]
        symbols = {
            (symbol["st_value"], symbol["st_size"], symbol.name)
            for section in theirs.iter_sections()
            if isinstance(section, SymbolTableSection)
            for symbol in section.iter_symbols()
            if symbol["st_info"]["type"] in DEFINED and symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_size"]
        }
    assert [(s.name, s.vaddr, s.offset, s.size) for s in elf.sections] == sections
    assert [elf.build_id()] == (build_ids or [None])
    assert symbols
    ours = {(s.start, s.size) for s in elf.symbols()}
    assert {(start, size) for start, size, _ in symbols} <= ours
    names_at: dict[int, set[str]] = {}
    for start, _, name in symbols:
        names_at.setdefault(start, set()).add(name)
    for start, _, _ in sorted(symbols)[:: max(1, len(symbols) // 500)]:
        found = elf.symbol_at(start)
        assert found is not None
        if found.start == start:  # else a larger one covers it
            assert found.name in names_at[start]


def test_lines_of_a_program() -> None:
    path = chain_program("-gdwarf-5")
    elf = open_elf(path)
    reader, budget = LineReader(elf), WaitBudget(60)
    compared = 0
    with path.open("rb") as stream:
        dwarf = ELFFile(stream).get_dwarf_info()
        for unit in dwarf.iter_CUs():
            program = dwarf.line_program_for_CU(unit)
            assert program is not None
            states = [e.state for e in program.get_entries() if e.state is not None]
            for state, following in itertools.pairwise(states):
                if state.end_sequence or following.address == state.address:
                    continue
                assert reader.look_up((state.address,), budget)
                assert reader.at(state.address)[0].line == state.line
                compared += 1
    assert compared > 50
