"""The kernel's type information (Documentation/bpf/btf.rst): type ids, and the offsets of fields."""

import struct
from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

VMLINUX = Path("/sys/kernel/btf/vmlinux")
_MAGIC = 0xEB9F
# The bytes that follow the 12 of a type, by kind: a fixed size, and a size for each of its vlen members.
_FIXED_BYTES = {1: 4, 3: 12, 14: 4, 17: 4}
_MEMBER_BYTES = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}


class BtfKind(IntEnum):
    """BTF_KIND_* of include/uapi/linux/btf.h."""

    STRUCT = 4
    TYPEDEF = 8
    FUNC = 12


# From a task to the magic number of the filesystem of one of its open files (include/linux/fdtable.h, fs.h).
FILESYSTEM_PATH = (
    ("task_struct", "files"),
    ("files_struct", "fdt"),
    ("fdtable", "fd"),
    ("file", "f_inode"),
    ("inode", "i_sb"),
    ("super_block", "s_magic"),
)


class _Sections(NamedTuple):
    types: bytes
    strings: bytes

    def name(self, name: str) -> int:
        """The offset of a name in the strings; 0 when it is absent."""
        return self.strings.find(b"\0" + name.encode() + b"\0") + 1


@lru_cache(maxsize=1)
def filesystem_offsets(btf: Path = VMLINUX) -> tuple[int, ...] | None:
    """The offsets of FILESYSTEM_PATH in bytes; None where this kernel's BTF does not have all of them."""
    try:
        return offsets(btf.read_bytes(), FILESYSTEM_PATH)
    except (OSError, ValueError, struct.error):
        return None


def offsets(data: bytes, fields: Sequence[tuple[str, str]]) -> tuple[int, ...] | None:
    """The offset of each (structure, field) in bytes; None when one is absent (fields of anonymous members are not
    searched). ValueError, struct.error: this is not BTF."""
    sections = _sections(data)
    found = [_offset(sections.types, sections.name(name), sections.name(field)) for name, field in fields]
    known = tuple(offset for offset in found if offset is not None)
    return known if len(known) == len(fields) else None


def type_id(data: bytes, name: str, kind: BtfKind) -> int:
    """The id of a type; 0 when it is absent. ValueError, struct.error: this is not BTF."""
    sections = _sections(data)
    name_at, position, identity = sections.name(name), 0, 1
    while name_at and position < len(sections.types):
        this_name, info = struct.unpack_from("<II", sections.types, position)
        this_kind = info >> 24 & 0x1F
        if this_name == name_at and this_kind == kind:
            return identity
        members = info & 0xFFFF
        position += 12 + _FIXED_BYTES.get(this_kind, 0) + _MEMBER_BYTES.get(this_kind, 0) * members
        identity += 1
    return 0


def _sections(data: bytes) -> _Sections:
    magic, _, _, header, type_at, type_size, string_at, string_size = struct.unpack_from("<HBBIIIII", data)
    if magic != _MAGIC:
        raise ValueError("bad magic")
    types = data[header + type_at : header + type_at + type_size]
    return _Sections(types, data[header + string_at : header + string_at + string_size])


def _offset(types: bytes, name: int, field: int) -> int | None:
    """Searches the bytes for the structure's name, which is faster than a walk through all types."""
    at = -4
    while name and field and (at := types.find(struct.pack("<I", name), at + 4)) >= 0:
        if at % 4 or at + 12 > len(types):
            at -= at % 4
            continue
        info = int.from_bytes(types[at + 4 : at + 8], "little")
        members = info & 0xFFFF
        if info >> 24 & 0x1F != BtfKind.STRUCT or at + 12 * (members + 1) > len(types):
            continue
        for member in range(at + 12, at + 12 * (members + 1), 12):
            this, bits = (int.from_bytes(types[word : word + 4], "little") for word in (member, member + 8))
            if this == field:
                return (bits & 0xFFFFFF if info >> 31 else bits) // 8
    return None
