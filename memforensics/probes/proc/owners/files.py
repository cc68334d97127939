"""Mapped files that are more than their name tells: those on a tmpfs, and a model's weights, by their first bytes."""

import contextlib
from collections.abc import Iterator

from memforensics.case.model import Mapping, OwnerMark, Snapshot
from memforensics.errors import MemforensicsError
from memforensics.probes.proc.claimed_ranges import Look
from memforensics.target import Process
from memforensics.target.hugetlb import hugetlb_devices
from memforensics.units import MIB

_LEAST_BYTES = MIB  # mapped: of smaller files nobody needs to know
_MAX_FILES = 256  # opened a snapshot, the largest first
_HEAD = 64
_MAX_SAFETENSORS_HEADER = 100_000_000  # its own limit


def special_files(process: Process, snapshot: Snapshot) -> Iterator[OwnerMark]:
    """`tmpfs-file`: its pages are RssShmem, not page cache. `weights-file`, `tmpfs-weights-file`: it begins as a
    model's weights do; the detail says as which. POSIX shared memory is told by its path (/dev/shm)."""
    devices = process.tmpfs_devices()
    weights = _weights(process, snapshot)
    for mapping in snapshot.mappings:
        if not mapping.path.startswith("/"):
            continue
        on_tmpfs = mapping.device in devices and not mapping.path.startswith("/dev/shm/")
        known_as = weights.get((mapping.device, mapping.inode))
        if on_tmpfs or known_as is not None:
            kind = ("tmpfs-" if on_tmpfs else "") + ("weights-file" if known_as is not None else "file")
            detail = f"begins as {known_as} does" if known_as is not None else f"device {mapping.device}"
            yield OwnerMark(start=mapping.start, end=mapping.end, kind=kind, detail=detail)


def hugetlb(look: Look, process: Process, snapshot: Snapshot) -> Iterator[OwnerMark]:
    """Mappings of hugetlb pages, with what is there of them: the kernel counts it apart from RSS."""
    if snapshot.rollup is None or not snapshot.rollup.hugetlb:
        return
    devices = hugetlb_devices(process, snapshot.mappings)
    for mapping in snapshot.mappings:
        if mapping.inode and mapping.device in devices:
            size = sum(end - start for start, end in look.present(mapping.start, mapping.end))
            detail = f"of hugetlbfs, device {mapping.device}"
            yield OwnerMark(start=mapping.start, end=mapping.end, kind="hugetlb", detail=detail, resident_bytes=size)


def _weights(process: Process, snapshot: Snapshot) -> dict[tuple[str, int], str]:
    """(device, inode) -> format, of the files mapped here that are weights."""
    code = {(m.device, m.inode) for m in snapshot.mappings if "x" in m.perms}
    mapped: dict[tuple[str, int], int] = {}
    example: dict[tuple[str, int], Mapping] = {}
    for mapping in snapshot.mappings:
        key = (mapping.device, mapping.inode)
        if mapping.inode and mapping.path.startswith("/") and key not in code:
            mapped[key] = mapped.get(key, 0) + mapping.size
            example.setdefault(key, mapping)
    large = sorted((key for key in mapped if mapped[key] >= _LEAST_BYTES), key=lambda key: -mapped[key])
    found = {}
    for key in large[:_MAX_FILES]:
        with contextlib.suppress(OSError, MemforensicsError):  # not for us to read, or not a regular file: by name only
            with process.open_mapped(example[key]) as stream:
                head, size = stream.read(_HEAD), stream.seek(0, 2)
            known_as = weights_format(head, size)
            if known_as is not None:
                found[key] = known_as
    return found


def weights_format(head: bytes, size: int) -> str | None:
    """What a file of that size which begins with `head` (64 bytes) is: "safetensors", "GGUF", ...; None for anything
    else. ONNX has no magic, and a pickle may hold anything."""
    if head[:4] == b"GGUF":
        version = int.from_bytes(head[4:8], "little")
        return "GGUF" if 1 <= min(version, int.from_bytes(head[4:8], "big")) <= 255 else None
    header = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and 2 <= header <= min(_MAX_SAFETENSORS_HEADER, size - 8):
        return "safetensors" if head[9:].lstrip()[:1] in (b'"', b"}") else None
    if head[:4] in (b"lmgg", b"tjgg", b"fmgg", b"algg"):  # 0x67676d6c "ggml", "ggjt", "ggmf", "ggla", little-endian
        return "GGML"
    if head[:4] == b"PK\x03\x04" and head[30:].split(b"PK")[0].partition(b"/")[2][:8] in (b"data.pkl", b".format_"):
        return "PyTorch"  # an archive whose first entry is NAME/data.pkl (torch.save)
    for magic, at, name in (
        (b"\x93NUMPY", 0, "NumPy"),
        (b"\x89HDF\r\n\x1a\n", 0, "HDF5"),
        (b"TFL3", 4, "TensorFlow Lite"),
    ):
        if head[at : at + len(magic)] == magic:
            return name
    return None
