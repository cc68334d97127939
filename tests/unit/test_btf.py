"""Offsets out of the kernel's type information: constructed sections, and this kernel's own where it has them."""

import struct

import pytest

from memforensics.probes.ebpf.loader.btf import FILESYSTEM_PATH, VMLINUX, offsets

INT, STRUCT, FUNCTION_TYPE = 1, 4, 13


def btf(*types: bytes, strings: bytes) -> bytes:
    body = b"".join(types)
    head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(strings))
    return head + body + strings


def structure(name: int, *members: tuple[int, int], kind_flag: bool = False) -> bytes:
    info = STRUCT << 24 | len(members) | kind_flag << 31
    return struct.pack("<III", name, info, 64) + b"".join(struct.pack("<III", n, 1, bits) for n, bits in members)


STRINGS = b"\0task\0files\0file\0"
TASK, FILES, FILE = (STRINGS.index(b"\0" + word + b"\0") + 1 for word in (b"task", b"files", b"file"))
INTEGER = struct.pack("<IIII", 0, INT << 24, 4, 32)


def test_a_field_is_found_by_its_whole_name() -> None:
    data = btf(INTEGER, structure(TASK, (FILE, 64), (FILES, 128)), strings=STRINGS)
    assert offsets(data, [("task", "files"), ("task", "file")]) == (16, 8)


def test_the_width_of_a_bitfield_is_no_offset() -> None:
    data = btf(structure(TASK, (FILES, 3 << 24 | 256), kind_flag=True), strings=STRINGS)
    assert offsets(data, [("task", "files")]) == (32,)


def test_only_a_structure_of_that_name_matches() -> None:
    function = struct.pack("<III", TASK, FUNCTION_TYPE << 24 | 1, 0) + struct.pack("<II", FILES, 1)
    data = btf(function, structure(FILE, (TASK, 8)), structure(TASK, (FILES, 24)), strings=STRINGS)
    assert offsets(data, [("task", "files")]) == (3,)


def test_an_absent_field_gives_none() -> None:
    data = btf(structure(TASK, (FILES, 128)), strings=STRINGS)
    assert offsets(data, [("task", "files"), ("task", "absent")]) is None
    assert offsets(data, [("file", "files")]) is None


def test_another_file_is_no_btf() -> None:
    with pytest.raises(ValueError, match="bad magic"):
        offsets(bytes(64), FILESYSTEM_PATH)


@pytest.mark.skipif(not VMLINUX.exists(), reason="this kernel has no BTF")
def test_this_kernels_files_lead_to_their_filesystem() -> None:
    found = offsets(VMLINUX.read_bytes(), FILESYSTEM_PATH)
    assert found is not None
    assert all(offset % 8 == 0 for offset in found)
