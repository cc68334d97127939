"""Bytes by offset, from an open file or a buffer. Files are never mapped: if the owner truncates a mapped file, the
reader gets SIGBUS."""

import contextlib
import io
import os
import stat
import weakref
from typing import BinaryIO

from memforensics.errors import MemforensicsError

MAX_READ_BYTES = 256 * 1024 * 1024


class BadElf(MemforensicsError):
    """Not an ELF file of a kind that is read here, or damaged. The only error that parsing one makes."""


class Source:
    """`size` bytes; `read` returns a part of them."""

    size: int
    descriptor: int | None = None  # of the file that it is

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes at `offset`. BadElf when they are not there."""
        if offset < 0 or size < 0 or size > MAX_READ_BYTES or offset + size > self.size:
            raise BadElf(f"no {size} bytes at offset {offset:#x} of the file")
        data = self._pread(offset, size)
        if len(data) != size:
            raise BadElf(f"the file ends before {size} bytes at offset {offset:#x}")
        return data

    def _pread(self, offset: int, size: int) -> bytes:
        raise NotImplementedError


class BytesSource(Source):
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def _pread(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]


class FileSource(Source):
    """Has its own descriptor, closed with this object, so the original stream may be closed at once."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = duplicate = os.dup(descriptor)
        weakref.finalize(self, os.close, duplicate)
        about = os.fstat(duplicate)
        if not stat.S_ISREG(about.st_mode):
            raise BadElf("not a regular file")
        self.size = about.st_size

    def _pread(self, offset: int, size: int) -> bytes:
        assert self.descriptor is not None
        pieces: list[bytes] = []
        while size:
            try:
                piece = os.pread(self.descriptor, size, offset)
            except OSError as error:
                raise BadElf(f"the file cannot be read: {error.strerror}") from error
            if not piece:
                break
            pieces.append(piece)
            offset += len(piece)
            size -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def source_of(origin: BinaryIO | bytes) -> Source:
    """A buffer, a file, or any other binary stream (read whole, MAX_READ_BYTES of it)."""
    if isinstance(origin, bytes):
        return BytesSource(origin)
    with contextlib.suppress(AttributeError, io.UnsupportedOperation):
        return FileSource(origin.fileno())
    origin.seek(0)
    return BytesSource(origin.read(MAX_READ_BYTES))
