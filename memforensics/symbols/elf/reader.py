"""ELF files, read lazily and within bounds: files may be hostile, truncated or very large.

Program headers and the dynamic section come first, as the kernel and the dynamic linker use them; section headers
only add what those do not tell, and may be absent. Sources: gABI (System V Application Binary Interface, 4.1 and
later), the x86-64 psABI for relocation types, and glibc's elf/dl-lookup.c for DT_GNU_HASH.
"""

import functools
import lzma
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO

from memforensics.errors import MemforensicsError
from memforensics.symbols.elf.byte_source import BadElf, Source, source_of
from memforensics.symbols.elf.symtab import RawTable, Symbol, SymbolTable

__all__ = ["BadElf", "DebugFiles", "ElfFile", "Reloc", "Section", "Segment", "Symbol", "SymbolTable"]

EM_X86_64, EM_AARCH64 = 62, 183
# Relocation types that leave a symbol's address in a slot: 64-bit absolute, GLOB_DAT, JUMP_SLOT.
_ADDRESS_RELOCS = {EM_X86_64: (1, 6, 7), EM_AARCH64: (257, 1025, 1026)}

_PT_LOAD, _PT_DYNAMIC, _PT_NOTE, _PT_GNU_EH_FRAME = 1, 2, 4, 0x6474E550
_SHT_SYMTAB, _SHT_DYNSYM = 2, 11
_NT_GNU_BUILD_ID = 3
_DT_NEEDED, _DT_PLTRELSZ, _DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ = 1, 2, 4, 5, 6, 7, 8
_DT_STRSZ, _DT_SONAME, _DT_JMPREL, _DT_GNU_HASH, _DT_VERSYM = 10, 14, 23, 0x6FFFFEF5, 0x6FFFFFF0
_VERSYM_HIDDEN = 0x8000

_MAX_SECTIONS = 65536
_MAX_SECTION_NAMES_BYTES = 16 * 1024 * 1024
_MAX_NOTE_BYTES = 65536
_MAX_DYNAMIC_BYTES = 65536
_MAX_CHAIN = 65536
_RELA_CHUNK_BYTES = 24 * 65536
_MAX_UNPACKED_BYTES = 128 * 1024 * 1024


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
class Reloc:
    """A dynamic relocation that makes the slot at `slot_vaddr` point to `symbol`. `type` is the machine's number
    (x86-64: 1 = 64, 6 = GLOB_DAT, 7 = JUMP_SLOT)."""

    slot_vaddr: int
    symbol: str
    type: int


DebugFiles = Callable[[str, str | None], Iterable[AbstractContextManager[BinaryIO]]]
"""(build-id, .gnu_debuglink name or None) -> candidate separate debug files, best first."""


class ElfFile:
    """A 64-bit little-endian ELF file or image. `origin`: a binary stream (its descriptor is duplicated, so the stream
    may be closed) or the bytes of an image. Every method raises BadElf, and nothing else, where the file is damaged."""

    machine: int  # e_machine: 62 x86-64, 183 aarch64
    load_segments: tuple[Segment, ...]
    eh_frame_hdr: tuple[int, int] | None  # vaddr, size of PT_GNU_EH_FRAME

    def __init__(self, origin: BinaryIO | bytes | Source, *, debug_files: DebugFiles | None = None) -> None:
        self.source = origin if isinstance(origin, Source) else source_of(origin)
        self._debug_files = debug_files
        header = self.source.read(0, 64)
        if header[:4] != b"\x7fELF":
            raise BadElf("not an ELF file")
        if header[4:6] != b"\x02\x01":
            raise BadElf("not a 64-bit little-endian ELF file")
        self.machine = struct.unpack_from("<H", header, 18)[0]
        phoff, self._shoff = struct.unpack_from("<QQ", header, 32)
        phentsize, phnum, self._shentsize, self._shnum, self._shstrndx = struct.unpack_from("<HHHHH", header, 54)
        if phnum and phentsize != 56:
            raise BadElf(f"program headers of {phentsize} bytes")
        loads: list[Segment] = []
        self._notes: list[tuple[int, int]] = []
        self._dynamic_range: tuple[int, int] | None = None
        self.eh_frame_hdr = None
        for kind, flags, offset, vaddr, _, filesz, memsz, _ in struct.iter_unpack(
            "<IIQQQQQQ", self.source.read(phoff, phnum * 56)
        ):
            if kind == _PT_LOAD:
                loads.append(Segment(vaddr, offset, filesz, memsz, flags))
            elif kind == _PT_DYNAMIC:
                self._dynamic_range = (offset, min(filesz, _MAX_DYNAMIC_BYTES))
            elif kind == _PT_NOTE:
                self._notes.append((offset, min(filesz, _MAX_NOTE_BYTES)))
            elif kind == _PT_GNU_EH_FRAME:
                self.eh_frame_hdr = (vaddr, memsz)
        self.load_segments = tuple(loads)

    # --- places

    def read_at(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes at a file offset."""
        return self.source.read(offset, size)

    def vaddr_to_offset(self, vaddr: int) -> int | None:
        """None when no byte of the file stands there (.bss, outside)."""
        for segment in self.load_segments:
            if 0 <= vaddr - segment.vaddr < segment.filesz:
                return vaddr - segment.vaddr + segment.offset
        return None

    def offset_to_vaddr(self, offset: int) -> int | None:
        """An executable segment wins where two segments hold the same byte."""
        found: int | None = None
        for segment in self.load_segments:
            if 0 <= offset - segment.offset < segment.filesz:
                if segment.executable:
                    return offset - segment.offset + segment.vaddr
                found = offset - segment.offset + segment.vaddr if found is None else found
        return found

    def read_at_vaddr(self, vaddr: int, size: int) -> bytes:
        """The file's bytes (before relocation)."""
        offset = self.vaddr_to_offset(vaddr)
        if offset is None:
            raise BadElf(f"no bytes of the file at address {vaddr:#x}")
        return self.source.read(offset, size)

    # --- identity

    @functools.cached_property
    def _build_id(self) -> str | None:
        places = list(self._notes) or [(s.offset, s.size) for s in self.sections if s.type == 7]
        for offset, size in places:
            try:
                notes = self.source.read(offset, min(size, _MAX_NOTE_BYTES))
            except BadElf:
                continue
            position = 0
            while position + 12 <= len(notes):
                name_size, size, kind = struct.unpack_from("<III", notes, position)
                name_end = position + 12 + name_size
                start = (name_end + 3) & ~3
                if kind == _NT_GNU_BUILD_ID and notes[position + 12 : name_end] == b"GNU\0" and 0 < size <= 64:
                    return notes[start : start + size].hex()
                position = (start + size + 3) & ~3
        return None

    def build_id(self) -> str | None:
        """Hex."""
        return self._build_id

    @property
    def soname(self) -> str | None:
        names = self._dynamic_strings(_DT_SONAME)
        return names[0] if names else None

    @property
    def needed(self) -> tuple[str, ...]:
        return self._dynamic_strings(_DT_NEEDED)

    # --- sections

    @functools.cached_property
    def sections(self) -> tuple[Section, ...]:
        """Empty when the file has no (readable) section headers."""
        try:
            return tuple(self._read_sections())
        except (BadElf, struct.error):
            return ()

    def _read_sections(self) -> Iterator[Section]:
        count, names_index = self._shnum, self._shstrndx
        if not self._shoff or self._shentsize != 64:
            return
        first = struct.unpack("<IIQQQQIIQQ", self.source.read(self._shoff, 64))
        count = count or first[5]  # more than 0xff00 sections: the count stands in section 0
        names_index = first[6] if names_index == 0xFFFF else names_index
        if count > _MAX_SECTIONS or names_index >= count:
            raise BadElf("section headers out of range")
        headers = list(struct.iter_unpack("<IIQQQQIIQQ", self.source.read(self._shoff, count * 64)))
        names = self.source.read(headers[names_index][4], min(headers[names_index][5], _MAX_SECTION_NAMES_BYTES))
        for name, kind, flags, vaddr, offset, size, link, _, _, entsize in headers:
            text = names[name : names.find(b"\0", name)].decode("utf-8", "backslashreplace")
            yield Section(text, kind, vaddr, offset, size, flags, link, entsize)

    def section(self, name: str) -> Section | None:
        return self._sections_by_name.get(name)

    @functools.cached_property
    def _sections_by_name(self) -> dict[str, Section]:
        return {section.name: section for section in reversed(self.sections)}

    # --- the dynamic section

    @functools.cached_property
    def _dynamic(self) -> tuple[tuple[int, int], ...]:
        if self._dynamic_range is None:
            return ()
        offset, size = self._dynamic_range
        out: list[tuple[int, int]] = []
        for tag, value in struct.iter_unpack("<QQ", self.source.read(offset, size & ~15)):
            if tag == 0:
                break
            out.append((tag, value))
        return tuple(out)

    def _tag(self, wanted: int) -> int | None:
        return next((value for tag, value in self._dynamic if tag == wanted), None)

    def _dynamic_strings(self, wanted: int) -> tuple[str, ...]:
        table = self._dynsym
        if table is None:
            return ()
        return tuple(table.name(v).decode("utf-8", "backslashreplace") for tag, v in self._dynamic if tag == wanted)

    @functools.cached_property
    def _dynsym(self) -> RawTable | None:
        symbols, strings, strings_size = self._tag(_DT_SYMTAB), self._tag(_DT_STRTAB), self._tag(_DT_STRSZ)
        if symbols is None or strings is None or strings_size is None:
            return None
        offset, strings_offset = self.vaddr_to_offset(symbols), self.vaddr_to_offset(strings)
        if offset is None or strings_offset is None:
            return None
        return RawTable(self.source, offset, self._dynsym_count(), strings_offset, strings_size)

    def _dynsym_count(self) -> int:
        """The dynamic section does not say it; the hash tables do."""
        section = next((s for s in self.sections if s.type == _SHT_DYNSYM), None)
        if section is not None:
            return section.size // 24
        hashes = self._tag(_DT_HASH)
        if hashes is not None:
            return int(struct.unpack("<II", self.read_at_vaddr(hashes, 8))[1])
        return self._gnu_hash.symbol_count() if self._gnu_hash else 0

    @functools.cached_property
    def _gnu_hash(self) -> "_GnuHash | None":
        place = self._tag(_DT_GNU_HASH)
        return _GnuHash(self, place) if place is not None else None

    # --- symbols

    @functools.cached_property
    def _symtab(self) -> RawTable | None:
        return self._table_of_type(_SHT_SYMTAB)

    def _table_of_type(self, kind: int) -> RawTable | None:
        for section in self.sections:
            if section.type == kind and section.link < len(self.sections):
                strings = self.sections[section.link]
                return RawTable(self.source, section.offset, section.size // 24, strings.offset, strings.size)
        return None

    @functools.cached_property
    def debug(self) -> "ElfFile | None":
        """The separate debug file, when there is one whose build-id agrees."""
        build_id = self.build_id()
        debug_files, self._debug_files = self._debug_files, None  # it may hold a process
        if debug_files is None or build_id is None:
            return None
        for candidate in debug_files(build_id, self._debug_link()):
            try:
                with candidate as stream:
                    elf = ElfFile(stream)
                if elf.build_id() == build_id:
                    return elf
            except (OSError, MemforensicsError):  # not there, damaged; the target gone
                continue
        return None

    def _debug_link(self) -> str | None:
        """The file name in .gnu_debuglink; never a path."""
        section = self.section(".gnu_debuglink")
        if section is None:
            return None
        try:
            name = self.source.read(section.offset, min(section.size, 512)).partition(b"\0")[0]
        except BadElf:
            return None
        text = name.decode("utf-8", "surrogateescape")
        return text if text and "/" not in text and text not in (".", "..") else None

    @functools.cached_property
    def _mini_debug(self) -> "ElfFile | None":
        """.gnu_debugdata: an xz-packed ELF with the symbols that Fedora leaves in stripped files."""
        section = self.section(".gnu_debugdata")
        if section is None:
            return None
        try:
            unpacker = lzma.LZMADecompressor(memlimit=_MAX_UNPACKED_BYTES)
            packed = self.source.read(section.offset, section.size)
            return ElfFile(unpacker.decompress(packed, _MAX_UNPACKED_BYTES))
        except (lzma.LZMAError, BadElf, EOFError):
            return None

    @functools.cached_property
    def _static_table(self) -> RawTable | None:
        """.symtab of this file, its debug file or its packed one."""
        for elf in (self, self.debug, self._mini_debug):
            if elf is not None and elf._symtab is not None:
                return elf._symtab
        return None

    @functools.cached_property
    def _symbols(self) -> SymbolTable:
        return SymbolTable([table for table in (self._static_table, self._dynsym) if table is not None])

    def symbols(self) -> SymbolTable:
        """Functions and objects: .symtab of this file or its debug file, and those that only .dynsym has."""
        return self._symbols

    def symbol_at(self, vaddr: int) -> Symbol | None:
        """The symbol that covers the address; one without a size reaches to the next symbol in its segment."""
        symbol = self._symbols.at(vaddr)
        if symbol is not None and symbol.size == 0:
            together = any(
                s.vaddr <= symbol.start and vaddr < s.vaddr + s.memsz for s in self.load_segments if vaddr >= s.vaddr
            )
            return symbol if together else None
        return symbol

    def find_symbol(self, name: str) -> Symbol | None:
        """A *defined* function or object of that name: .dynsym first, then .symtab or the debug file's."""
        return self.find_symbols((name,)).get(name)

    def find_symbols(self, names: Iterable[str]) -> dict[str, Symbol]:
        """Many at once: one pass over the static table for all that .dynsym does not define."""
        found: dict[str, Symbol] = {}
        missing: set[bytes] = set()
        for name in names:
            symbol = self._dynamic_definition(name)
            if symbol is not None:
                found[name] = symbol
            else:
                missing.add(name.encode())
        table = self._static_table
        if missing and table is not None:
            for index, raw in table.indices(missing):
                symbol = table.defined(index)
                if symbol is not None:
                    found.setdefault(raw.decode(), symbol)
        return found

    def _dynamic_definition(self, name: str) -> Symbol | None:
        table = self._dynsym
        if table is None:
            return None
        symbols = [(index, table.defined(index)) for index in self._dynamic_indices(name)]
        defined = [(index, symbol) for index, symbol in symbols if symbol is not None]
        if len(defined) > 1:  # several versions: the one that is not hidden is the default
            defined = [pair for pair in defined if not self._is_hidden(pair[0])] or defined
        return defined[0][1] if defined else None

    def _dynamic_indices(self, name: str) -> Iterator[int]:
        """Entries of .dynsym with that name, defined ones (all of them, where there is no GNU hash)."""
        table = self._dynsym
        if table is None:
            return
        if self._gnu_hash is not None:
            for index in self._gnu_hash.candidates(name.encode()):
                head = table.words(index, 1)
                if head and table.name(head[0] & 0xFFFFFFFF) == name.encode():
                    yield index
        else:
            for index, _ in table.indices({name.encode()}):
                yield index

    def _is_hidden(self, index: int) -> bool:
        versions = self._tag(_DT_VERSYM)
        if versions is None:
            return False
        return bool(struct.unpack("<H", self.read_at_vaddr(versions + 2 * index, 2))[0] & _VERSYM_HIDDEN)

    def defines(self, name: str) -> bool:
        """Whether .dynsym defines it: what the dynamic linker may bind others to."""
        return self._dynamic_definition(name) is not None

    # --- relocations

    def relocations(self, names: Iterable[str]) -> list[Reloc]:
        """JUMP_SLOT, GLOB_DAT and 64-bit relocations against these symbols, by rising slot."""
        table, types = self._dynsym, _ADDRESS_RELOCS.get(self.machine)
        if table is None or types is None:
            return []
        wanted = {name.encode() for name in names}
        symbols: dict[int, bytes] = {}
        if self._gnu_hash is not None:  # undefined entries come first, the hash table has the others
            symbols.update(table.indices(wanted, 1, self._gnu_hash.first - 1))
            for raw in wanted:
                symbols.update((index, raw) for index in self._dynamic_indices(raw.decode()))
        else:
            symbols.update(table.indices(wanted))
        infos = {index << 32 | kind: (raw.decode(), kind) for index, raw in symbols.items() for kind in types}
        found: dict[tuple[int, int], Reloc] = {}
        for offset, size in self._rela_tables():
            end = offset + size - size % 24
            for at in range(offset, end, _RELA_CHUNK_BYTES):
                words = array("Q")
                words.frombytes(self.source.read(at, min(_RELA_CHUNK_BYTES, end - at)))
                for place, info in enumerate(words[1::3]):
                    if info in infos:
                        name, kind = infos[info]
                        found[words[3 * place], kind] = Reloc(words[3 * place], name, kind)
        return [found[key] for key in sorted(found)]

    def _rela_tables(self) -> Iterator[tuple[int, int]]:
        """File offset and size of DT_RELA and DT_JMPREL (which some linkers make overlap)."""
        for start, size in ((_DT_RELA, _DT_RELASZ), (_DT_JMPREL, _DT_PLTRELSZ)):
            vaddr, length = self._tag(start), self._tag(size)
            offset = self.vaddr_to_offset(vaddr) if vaddr is not None else None
            if offset is not None and length:
                yield offset, length


class _GnuHash:
    """DT_GNU_HASH: entries `first` and up of .dynsym, by bucket."""

    def __init__(self, elf: ElfFile, vaddr: int) -> None:
        self._elf = elf
        self.buckets, self.first, bloom_words, _ = struct.unpack("<IIII", elf.read_at_vaddr(vaddr, 16))
        self._buckets_at = vaddr + 16 + 8 * bloom_words
        self._chains_at = self._buckets_at + 4 * self.buckets
        if not self.buckets:
            raise BadElf("an empty symbol hash")

    def candidates(self, name: bytes) -> Iterator[int]:
        """Entries whose hash is the name's."""
        value = 5381
        for byte in name:
            value = (value * 33 + byte) & 0xFFFFFFFF
        index = self._u32(self._buckets_at + 4 * (value % self.buckets))
        if index < self.first:
            return
        for step in range(index, index + _MAX_CHAIN):
            chain = self._u32(self._chains_at + 4 * (step - self.first))
            if (chain ^ value) < 2:
                yield step
            if chain & 1:
                return

    def symbol_count(self) -> int:
        """One more than the last entry of the last chain."""
        buckets = array("I")
        buckets.frombytes(self._elf.read_at_vaddr(self._buckets_at, 4 * self.buckets))
        last = max(buckets)
        if last < self.first:
            return int(self.first)
        for step in range(last, last + _MAX_CHAIN):
            if self._u32(self._chains_at + 4 * (step - self.first)) & 1:
                return step + 1
        raise BadElf("a symbol hash chain without an end")

    def _u32(self, vaddr: int) -> int:
        return int(struct.unpack("<I", self._elf.read_at_vaddr(vaddr, 4))[0])
