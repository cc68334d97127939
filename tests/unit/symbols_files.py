"""Real ELF files for the tests of symbols/: files that this Python has mapped, and a compiled program."""

import _ctypes
import functools
import os
import random
import re
import shutil
import sys
from pathlib import Path

import capstone
import pytest
from processes import compiled

from memforensics.symbols.elf.debug_files import debug_files_for
from memforensics.symbols.elf.reader import ElfFile


@functools.cache
def mapped_files() -> tuple[Path, ...]:
    """Mapped files of this process with code, smallest first."""
    assert _ctypes  # its import maps libffi
    lines = Path("/proc/self/maps").read_text().splitlines()
    paths = {line[73:] for line in lines if "r-xp" in line and line[73:].startswith("/")}
    return tuple(sorted((Path(path) for path in paths), key=lambda path: path.stat().st_size))


def library(pattern: str) -> Path:
    """The mapped file whose name matches."""
    return next(path for path in mapped_files() if re.match(pattern, path.name))


def libc() -> Path:
    return library(r"libc[.-]")


def python_code() -> Path:
    """libpython, or the program that contains it."""
    return next((path for path in mapped_files() if path.name.startswith("libpython3")), Path(sys.executable).resolve())


def open_elf(path: Path) -> ElfFile:
    with path.open("rb") as stream:
        return ElfFile(stream, debug_files=debug_files_for(str(path)))


def chain_program(*flags: str) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    return compiled("sym_chain.c", "-O2", "-fomit-frame-pointer", *flags)


def ucx_libraries() -> list[Path]:
    """The libraries of the real UCX wheel, anywhere below MEMFORENSICS_UCX_DIR."""
    folder = os.environ.get("MEMFORENSICS_UCX_DIR")
    return sorted(Path(folder).rglob("libuc[msp].so.0.0.0")) if folder else []


def call_sites(elf: ElfFile, count: int, seed: int) -> list[int]:
    """Addresses as they are looked up for the frames of a stack: the last byte of a call, one for each function."""
    text = elf.section(".text")
    assert text is not None
    functions = [s for s in elf.symbols() if s.size and text.vaddr <= s.start < text.vaddr + text.size]
    pick, engine = random.Random(seed), capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    pick.shuffle(functions)
    found: list[int] = []
    for function in functions:
        code = engine.disasm_lite(elf.read_at_vaddr(function.start, function.size), function.start)
        calls = [address + size - 1 for address, size, name, _ in code if name == "call"]
        found += [pick.choice(calls)] if calls else []
        if len(found) == count:
            break
    return found
