"""File and line against binutils' addr2line, and the process that reads them."""

import os
import posixpath
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import compiled
from symbols_files import call_sites, chain_program, open_elf, python_code, ucx_libraries

from memforensics.symbols.elf.reader import ElfFile
from memforensics.symbols.names import lines as lines_module
from memforensics.symbols.names.lines import LineReader, WaitBudget
from memforensics.symbols.names.symbolizer import named

ADDRESSES_A_FILE = 150
PLENTY_S = 100.0
Place = tuple[str, int] | None


def addr2line(path: Path, addresses: list[int]) -> list[Place]:
    if shutil.which("addr2line") is None:
        pytest.skip("needs binutils")
    command = ["addr2line", "-e", str(path), *map(hex, addresses)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    places = [line.partition(" (")[0].rpartition(":") for line in out]
    return [(posixpath.normpath(file), int(line)) if line.isdigit() else None for file, _, line in places]


def innermost(reader: LineReader, addresses: list[int]) -> list[Place]:
    assert reader.look_up(addresses, WaitBudget(PLENTY_S))
    found = [named(None, reader.at(address)) for address in addresses]
    places = [one.inlined[0][1:] if one.inlined else (one.file, one.line) for one in found]
    return [(file, line) if file is not None and line is not None else None for file, line in places]


@pytest.mark.parametrize("path", [python_code(), *ucx_libraries()], ids=lambda path: path.name)
def test_lines_agree_with_addr2line(path: Path) -> None:
    elf = open_elf(path)
    if elf.section(".debug_info") is None:
        pytest.skip(f"{path.name} was built without DWARF, or stripped")
    addresses = call_sites(elf, ADDRESSES_A_FILE, 1)
    pairs = list(zip(innermost(LineReader(elf), addresses), addr2line(path, addresses), strict=True))
    assert [
        (ours, theirs) for ours, theirs in pairs if ours is not None and theirs is not None and ours != theirs
    ] == []
    # symbolic has no line for a function that is one line to the compiler (a macro makes it, say)
    assert sum(ours is None and theirs is not None for ours, theirs in pairs) <= len(pairs) // 50


@pytest.mark.parametrize("flag", ["-gdwarf-4", "-gdwarf-5", "-gz=zlib"])
def test_every_address_of_a_program(flag: str) -> None:
    path = chain_program(flag)
    elf = open_elf(path)
    first, last = elf.find_symbol("level_12"), elf.find_symbol("aligned")
    assert first is not None
    assert last is not None
    addresses = [a for a in range(first.start, last.start + last.size) if elf.symbol_at(a) is not None]
    found, expected = innermost(LineReader(elf), addresses), addr2line(path, addresses)
    assert sum(place is not None for place in expected) > len(addresses) // 2
    assert [ours for ours, theirs in zip(found, expected, strict=True) if theirs] == [p for p in expected if p]


def test_a_file_without_dwarf_starts_no_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stripped = tmp_path / "stripped"
    subprocess.run(["objcopy", "--strip-debug", chain_program(), stripped], check=True)
    process = lines_module._ReadingProcess()
    monkeypatch.setattr(lines_module, "_PROCESS", process)
    reader = LineReader(open_elf(stripped))
    assert not reader.has_any
    assert reader.look_up((0x1139,), WaitBudget(PLENTY_S))
    assert process._process is None


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> lines_module._ReadingProcess:
    """A reading process of this test alone, that has answered once."""
    process = lines_module._ReadingProcess()
    monkeypatch.setattr(lines_module, "_PROCESS", process)
    assert innermost(LineReader(open_elf(chain_program("-gdwarf-4"))), [0x1139])
    return process


def test_without_time_to_wait_the_answer_comes_later(process: lines_module._ReadingProcess) -> None:
    elf = open_elf(chain_program())
    main = elf.find_symbol("main")
    assert main is not None
    assert process._process is not None
    reader = LineReader(elf)
    os.kill(process._process.pid, signal.SIGSTOP)
    assert not reader.look_up((main.start,), WaitBudget(0.0))
    assert reader.at(main.start) == ()
    os.kill(process._process.pid, signal.SIGCONT)
    assert reader.look_up((main.start,), WaitBudget(PLENTY_S))
    assert reader.at(main.start)[0].function == "main"


def test_the_reading_process_is_confined(process: lines_module._ReadingProcess) -> None:
    assert process._process is not None
    proc = Path("/proc", str(process._process.pid))
    assert (proc / "environ").read_bytes() == b""
    status = (proc / "status").read_text()
    assert "NoNewPrivs:\t1" in status
    limits = (proc / "limits").read_text()
    assert f"Max address space         {4 << 30}" in limits
    if os.geteuid() == 0:
        assert "Uid:\t65534\t65534\t65534\t65534" in status
        assert "CapEff:\t0000000000000000" in status
    assert len(os.listdir(proc / "fd")) == 4  # three times /dev/null, and the socket


def test_a_file_that_ends_the_reading_process_is_given_up(process: lines_module._ReadingProcess) -> None:
    """And the next file is read by a new one."""
    assert process._process is not None
    os.kill(process._process.pid, signal.SIGSTOP)
    bad, good = LineReader(open_elf(chain_program("-gdwarf-5"))), LineReader(open_elf(chain_program()))
    main = good._elf.find_symbol("main")
    assert main is not None
    assert not bad.look_up((main.start,), WaitBudget(0.0))
    os.kill(process._process.pid, signal.SIGXCPU)
    os.kill(process._process.pid, signal.SIGCONT)
    assert good.look_up((main.start,), WaitBudget(PLENTY_S))
    assert good.at(main.start)
    assert bad.look_up((main.start,), WaitBudget(PLENTY_S))
    assert (bad.why_not, bad.at(main.start)) == ("it takes more than 60 s to read", ())


def test_a_killed_reading_process_is_started_again(process: lines_module._ReadingProcess) -> None:
    assert process._process is not None
    os.kill(process._process.pid, signal.SIGKILL)
    reader = LineReader(open_elf(chain_program("-gdwarf-5")))
    main = reader._elf.find_symbol("main")
    assert main is not None
    assert reader.look_up((main.start,), WaitBudget(PLENTY_S))
    assert reader.at(main.start)


def test_the_reading_process_ends_with_its_parent() -> None:
    program = (
        "import sys, os, signal\n"
        "from memforensics.symbols.elf.reader import ElfFile\n"
        "from memforensics.symbols.names import lines\n"
        "elf = ElfFile(open(sys.argv[1], 'rb'))\n"
        "lines.LineReader(elf).look_up((elf.find_symbol('main').start,), lines.WaitBudget(60))\n"
        "print(lines._PROCESS._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", program, str(chain_program())]
    out = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    reading = Path("/proc", out.strip())
    until = time.monotonic() + 20
    while reading.exists() and "State:\tZ" not in (reading / "status").read_text() and time.monotonic() < until:
        time.sleep(0.01)
    assert out.strip().isdigit()
    assert not reading.exists() or "State:\tZ" in (reading / "status").read_text()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32), count=st.integers(1, 40))
def test_damaged_debug_sections_give_an_answer_or_none(tmp_path: Path, seed: int, count: int) -> None:
    whole = compiled("sym_inline.c", "-O2", "-gdwarf-5").read_bytes()
    pick = random.Random(seed)
    data = bytearray(whole)
    sections = [s for s in ElfFile(whole).sections if s.name.startswith(".debug_") and s.size]
    for _ in range(count):
        section = pick.choice(sections)
        data[section.offset + pick.randrange(section.size)] = pick.choice((0, 0x7F, 0x80, 0xFF, pick.randrange(256)))
    damaged = tmp_path / f"damaged{seed}"
    damaged.write_bytes(data)
    keep = ElfFile(whole).find_symbol("keep")
    assert keep is not None
    reader = LineReader(open_elf(damaged))
    assert reader.look_up(range(keep.start, keep.start + keep.size, 5), WaitBudget(PLENTY_S))
    assert reader.why_not is None or "reading it ended" in reader.why_not or "damaged" in reader.why_not
