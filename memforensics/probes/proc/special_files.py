"""Mapped files that need more than their name to be understood: hugetlb pages, files on a tmpfs, and model weights."""

import contextlib
from collections.abc import Iterator

from memforensics.case.model import Mapping, OwnerMark
from memforensics.errors import MemforensicsError
from memforensics.runtimes.scene import Scene
from memforensics.target import Process
from memforensics.target.hugetlb import hugetlb_devices
from memforensics.target.software import HEAD_BYTES, file_format
from memforensics.units import MIB

_LEAST_BYTES = MIB  # mapped: smaller files do not matter
_MAX_FILES = 256  # opened in a snapshot, the largest first


def recognise_hugetlb(scene: Scene) -> Iterator[OwnerMark]:
    """Mappings of hugetlb pages with their resident bytes, which the kernel counts apart from RSS."""
    rollup, mappings = scene.snapshot.rollup, scene.snapshot.mappings
    if rollup is None or not rollup.hugetlb:
        return
    devices = hugetlb_devices(scene.process, mappings)
    for mapping in mappings:
        if mapping.inode and mapping.device in devices:
            size = sum(end - start for start, end in scene.reader.present(mapping.start, mapping.end))
            detail = f"of hugetlbfs, device {mapping.device}"
            yield OwnerMark(start=mapping.start, end=mapping.end, kind="hugetlb", detail=detail, resident_bytes=size)


def recognise_files(scene: Scene) -> Iterator[OwnerMark]:
    """`tmpfs-file`: its pages are RssShmem, not page cache. `weights-file` and `tmpfs-weights-file`: it begins as files
    of model weights do; the detail names the format. POSIX shared memory is known by its path (/dev/shm)."""
    devices = scene.process.tmpfs_devices()
    weights = _weights(scene.process, scene.snapshot.mappings)
    for mapping in scene.snapshot.mappings:
        if not mapping.path.startswith("/"):
            continue
        on_tmpfs = mapping.device in devices and not mapping.path.startswith("/dev/shm/")
        form = weights.get((mapping.device, mapping.inode))
        if on_tmpfs or form is not None:
            kind = ("tmpfs-" if on_tmpfs else "") + ("weights-file" if form is not None else "file")
            detail = f"begins as {form} does" if form is not None else f"device {mapping.device}"
            yield OwnerMark(start=mapping.start, end=mapping.end, kind=kind, detail=detail)


def _weights(process: Process, mappings: tuple[Mapping, ...]) -> dict[tuple[str, int], str]:
    """The format of each mapped file that holds weights, by device and inode."""
    code = {(m.device, m.inode) for m in mappings if "x" in m.perms}
    mapped: dict[tuple[str, int], int] = {}
    example: dict[tuple[str, int], Mapping] = {}
    for mapping in mappings:
        key = (mapping.device, mapping.inode)
        if mapping.inode and mapping.path.startswith("/") and key not in code:
            mapped[key] = mapped.get(key, 0) + mapping.size
            example.setdefault(key, mapping)
    large = sorted((key for key in mapped if mapped[key] >= _LEAST_BYTES), key=lambda key: -mapped[key])
    found = {}
    for key in large[:_MAX_FILES]:
        with contextlib.suppress(OSError, MemforensicsError):  # it may not be read, or is not a regular file
            with process.open_mapped(example[key]) as stream:
                head, size = stream.read(HEAD_BYTES), stream.seek(0, 2)
            form = file_format(head, size)
            if form is not None:
                found[key] = form
    return found
