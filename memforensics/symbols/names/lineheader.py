"""The header of a DWARF line program (versions 2 to 5; DWARF 5, 6.2.4): file names, and how to run the rest."""

import posixpath
from dataclasses import dataclass

from memforensics.symbols.elf.reader import BadElf, ElfFile
from memforensics.symbols.unwind.frame_instructions import Cursor

_MAX_PROGRAM_BYTES = 4 * 1024 * 1024
_MAX_NAME_BYTES = 4096
_PATH, _DIRECTORY = 1, 2  # DW_LNCT_path, DW_LNCT_directory_index
_FIXED_FORMS = {0x0B: 1, 0x05: 2, 0x06: 4, 0x07: 8, 0x1E: 16}  # DW_FORM_data1 to data16
_STRING, _UDATA, _BLOCK = 0x08, 0x0F, 0x09
_STRING_SECTIONS = {0x0E: ".debug_str", 0x1F: ".debug_line_str"}  # DW_FORM_strp, DW_FORM_line_strp


@dataclass(frozen=True, slots=True)
class LineProgram:
    """`files` by the number that the program uses. `operands`: LEB128 operands of each standard opcode."""

    step: int
    line_base: int
    line_range: int
    opcode_base: int
    operands: bytes
    files: list[str]
    code: bytes


def read_program(elf: ElfFile, offset: int, folder: bytes) -> LineProgram | None:
    """The program at an offset of .debug_line; `folder` is where the compiler ran. None: of a kind that is not read
    here, or larger than one that is worth running. IndexError, ValueError, BadElf: damaged."""
    place = elf.open_section(".debug_line")
    if place is None:
        return None
    source, section, size = place
    if not 0 <= offset < size:
        raise ValueError("outside of .debug_line")
    length = int.from_bytes(source.read(section + offset, 4), "little")
    if length > min(_MAX_PROGRAM_BYTES, size - offset - 4):
        return None  # also the 64-bit format, which begins with 0xffffffff
    cursor = Cursor(source.read(section + offset + 4, length), 0)
    version = cursor.unsigned(2)
    if not 2 <= version <= 5 or (version == 5 and cursor.unsigned(2) != 8):  # address and segment size
        return None
    code_at = cursor.unsigned(4)
    code_at += cursor.at
    step = cursor.u8()
    cursor.at += 1 if version < 4 else 2  # operations an instruction (VLIW), whether rows begin as statements
    line_base = (cursor.u8() ^ 0x80) - 0x80
    line_range, opcode_base = cursor.u8(), cursor.u8()
    if not line_range or not opcode_base:
        return None
    operands = cursor.take(opcode_base - 1)
    names = _names_5(elf, cursor) if version == 5 else _names_4(cursor, folder)
    return LineProgram(step, line_base, line_range, opcode_base, operands, _paths(names, folder), cursor.data[code_at:])


_Names = tuple[list[bytes], list[tuple[bytes, int]]]


def _names_4(cursor: Cursor, folder: bytes) -> _Names:
    """Directories, of which 0 is the unit's own; files, numbered from 1."""
    folders, files = [folder], [(b"", 0)]
    while name := cursor.c_string():
        folders.append(name)
    while name := cursor.c_string():
        files.append((name, cursor.uleb()))
        cursor.uleb()  # time of modification
        cursor.uleb()  # size
    return folders, files


def _names_5(elf: ElfFile, cursor: Cursor) -> _Names:
    """Directories and files, both from 0 on, in a format that the header describes."""
    folders = [name for name, _ in _entries(elf, cursor)]
    return folders, _entries(elf, cursor)


def _entries(elf: ElfFile, cursor: Cursor) -> list[tuple[bytes, int]]:
    formats = [(cursor.uleb(), cursor.uleb()) for _ in range(cursor.u8())]
    out: list[tuple[bytes, int]] = []
    for _ in range(cursor.uleb()):
        start, name, folder = cursor.at, b"", 0
        for content, form in formats:
            value = _value(elf, cursor, form)
            if content == _PATH and isinstance(value, bytes):
                name = value
            elif content == _DIRECTORY and isinstance(value, int):
                folder = value
        if cursor.at == start:
            raise ValueError("entries of no bytes")
        out.append((name, folder))
    return out


def _value(elf: ElfFile, cursor: Cursor, form: int) -> int | bytes:
    if form in _FIXED_FORMS:
        return cursor.unsigned(_FIXED_FORMS[form])
    if form == _UDATA:
        return cursor.uleb()
    if form == _STRING:
        return cursor.c_string()
    if form == _BLOCK:
        return cursor.block()
    if form in _STRING_SECTIONS:
        return _string(elf, _STRING_SECTIONS[form], cursor.unsigned(4))
    raise ValueError(f"form {form:#x} in a line program's header")


def _string(elf: ElfFile, section: str, at: int) -> bytes:
    place = elf.open_section(section)
    if place is None or not 0 <= at < place[2]:
        raise BadElf(f"no string at {at:#x} of {section}")
    source, offset, size = place
    return source.read(offset + at, min(_MAX_NAME_BYTES, size - at)).partition(b"\0")[0]


def _paths(names: _Names, folder: bytes) -> list[str]:
    folders, files = names
    out: list[str] = []
    for name, index in files:
        own = folders[index] if index < len(folders) else b""
        parts = [part.decode("utf-8", "backslashreplace") for part in (folder, own, name)]
        out.append(posixpath.normpath(posixpath.join(*parts)) if name else "")
    return out
