"""ELF files: what is asked for and no more, bounded on hostile, truncated and very large files."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO

from memforensics.errors import MemforensicsError


class BadElf(MemforensicsError):
    """Not an ELF file of a kind that is read here, or damaged. The only error that this module makes."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A PT_LOAD program header. All addresses are the file's own (before the load bias)."""

    vaddr: int
    offset: int
    filesz: int
    memsz: int
    flags: int  # PF_X 1, PF_W 2, PF_R 4

    @property
    def executable(self) -> bool:
        return bool(self.flags & 1)


@dataclass(frozen=True, slots=True)
class Section:
    """A section header."""

    name: str
    type: int
    vaddr: int
    offset: int
    size: int
    flags: int
    link: int
    entsize: int


@dataclass(frozen=True, slots=True)
class Symbol:
    """A function or object. `start` is the file's virtual address; size 0: the file does not say."""

    name: str
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Reloc:
    """A dynamic relocation that makes the slot at `slot_vaddr` point to `symbol`. `type` is the machine's number
    (x86-64: 1 = 64, 6 = GLOB_DAT, 7 = JUMP_SLOT)."""

    slot_vaddr: int
    symbol: str
    type: int


class SymbolTable:
    """Functions and objects by address."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Symbol]:
        """By rising address; aliases included."""
        raise NotImplementedError

    def at(self, vaddr: int) -> Symbol | None:
        """The symbol that covers the address; of aliases the one for people: global, few underscores, short."""
        raise NotImplementedError


DebugFiles = Callable[[str, str | None], Iterable[AbstractContextManager[BinaryIO]]]
"""(build-id, .gnu_debuglink name or None) -> candidate separate debug files, best first."""


class ElfFile:
    """A 64-bit little-endian ELF file or image. `source`: a binary stream (its descriptor is duplicated, so the
    stream may be closed) or the bytes of an image."""

    machine: int  # e_machine: 62 x86-64, 183 aarch64
    load_segments: tuple[Segment, ...]

    def __init__(self, source: BinaryIO | bytes, *, debug_files: DebugFiles | None = None) -> None:
        raise NotImplementedError

    def build_id(self) -> str | None:
        """Hex."""
        raise NotImplementedError

    @property
    def soname(self) -> str | None:
        raise NotImplementedError

    @property
    def needed(self) -> tuple[str, ...]:
        raise NotImplementedError

    @property
    def sections(self) -> tuple[Section, ...]:
        """Empty when the file has no (readable) section headers."""
        raise NotImplementedError

    def section(self, name: str) -> Section | None:
        raise NotImplementedError

    def read_at(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes at a file offset. BadElf when they are not there."""
        raise NotImplementedError

    def vaddr_to_offset(self, vaddr: int) -> int | None:
        """None when no file byte stands there (.bss, outside)."""
        raise NotImplementedError

    def offset_to_vaddr(self, offset: int) -> int | None:
        """An executable segment wins where two segments map the same page."""
        raise NotImplementedError

    def read_at_vaddr(self, vaddr: int, size: int) -> bytes:
        """The file's bytes (before relocation). BadElf when they are not there."""
        raise NotImplementedError

    def symbols(self) -> SymbolTable:
        """.symtab, else the separate debug file's, else .dynsym."""
        raise NotImplementedError

    def symbol_at(self, vaddr: int) -> Symbol | None:
        raise NotImplementedError

    def find_symbol(self, name: str) -> Symbol | None:
        """A *defined* symbol of that name: .dynsym first, then .symtab or the debug file's."""
        raise NotImplementedError

    def find_symbols(self, names: Iterable[str]) -> dict[str, Symbol]:
        """Many at once: one pass over each table."""
        raise NotImplementedError

    def defines(self, name: str) -> bool:
        """Whether .dynsym defines it (what the dynamic linker would bind others to)."""
        raise NotImplementedError

    def relocations(self, names: Iterable[str]) -> list[Reloc]:
        """JUMP_SLOT, GLOB_DAT and 64-bit relocations against these symbols."""
        raise NotImplementedError
