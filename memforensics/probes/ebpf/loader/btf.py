"""Where the fields of the kernel's own structures are, by its type information (Documentation/bpf/btf.rst)."""

import struct
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

VMLINUX = Path("/sys/kernel/btf/vmlinux")
_MAGIC = 0xEB9F
_STRUCT = 4

# From a task to the kind of the filesystem of one of its open files (include/linux/fdtable.h, fs.h).
TO_FILESYSTEM = (
    ("task_struct", "files"),
    ("files_struct", "fdt"),
    ("fdtable", "fd"),
    ("file", "f_inode"),
    ("inode", "i_sb"),
    ("super_block", "s_magic"),
)


@lru_cache(maxsize=1)
def to_filesystem(btf: Path = VMLINUX) -> tuple[int, ...] | None:
    """The offsets of TO_FILESYSTEM in bytes; None where this kernel does not tell all of them."""
    try:
        return offsets(btf.read_bytes(), TO_FILESYSTEM)
    except (OSError, ValueError, struct.error):
        return None


def offsets(data: bytes, fields: Sequence[tuple[str, str]]) -> tuple[int, ...] | None:
    """Of each (structure, field), in bytes; None when one is not there (fields of anonymous members are not looked
    for). ValueError, struct.error: it is no BTF."""
    magic, _, _, header, type_at, type_size, string_at, string_size = struct.unpack_from("<HBBIIIII", data)
    if magic != _MAGIC:
        raise ValueError("bad magic")
    strings = data[header + string_at : header + string_at + string_size]
    types = data[header + type_at : header + type_at + type_size]
    found = [_offset(types, _name(strings, name), _name(strings, field)) for name, field in fields]
    known = tuple(offset for offset in found if offset is not None)
    return known if len(known) == len(fields) else None


def _name(strings: bytes, name: str) -> int:
    """Where a name stands; 0: nowhere."""
    return strings.find(b"\0" + name.encode() + b"\0") + 1


def _offset(types: bytes, name: int, field: int) -> int | None:
    """The types are not numbered here: a structure is found by its name, which is quicker than to walk them all."""
    at = -4
    while name and field and (at := types.find(struct.pack("<I", name), at + 4)) >= 0:
        if at % 4 or at + 12 > len(types):
            at -= at % 4
            continue
        info = int.from_bytes(types[at + 4 : at + 8], "little")
        members = info & 0xFFFF
        if info >> 24 & 0x1F != _STRUCT or at + 12 * (members + 1) > len(types):
            continue
        for member in range(at + 12, at + 12 * (members + 1), 12):
            this, bits = (int.from_bytes(types[word : word + 4], "little") for word in (member, member + 8))
            if this == field:
                return (bits & 0xFFFFFF if info >> 31 else bits) // 8
    return None
