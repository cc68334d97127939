"""Reading the memory of a target. A live process and a bytes buffer have the same interface."""

import errno
import os
import struct
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

from memforensics.errors import MemforensicsError, NoSuchProcess, PermissionNeeded, TargetGone
from memforensics.target.procfs import ProcFS
from memforensics.target.realtime_priority import realtime_priority

MAX_READ_BYTES = 64 * 1024 * 1024
_SHORT = 256 * 1024  # 0.1 ms


class Unreadable(MemforensicsError):
    """The range cannot be read now: it is not mapped or not readable. Zeros never take its place."""

    def __init__(self, address: int, size: int) -> None:
        super().__init__(f"cannot read {size} bytes at {address:#x} of the target")
        self.address, self.size = address, size


class Memory(Protocol):
    """Reads memory at an address."""

    def read(self, address: int, size: int) -> bytes:
        """Exactly `size` bytes. Unreadable if any of them cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class BytesMemory:
    """A buffer as the memory at an address."""

    base: int
    data: bytes

    def read(self, address: int, size: int) -> bytes:
        offset = address - self.base
        if offset < 0 or size < 0 or offset + size > len(self.data):
            raise Unreadable(address, size)
        return self.data[offset : offset + size]


class ProcessMemory:
    """/proc/PID/mem of a live process. It is not stopped, not attached to, and nothing is written.

    The file belongs to the address space in which it was opened: after an exec, reads return 0 bytes, never bytes of
    the new program.
    """

    def __init__(self, pid: int, proc: ProcFS) -> None:
        self.pid = pid
        try:
            self._fd = os.open(proc.root / str(pid) / "mem", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise proc.explain(error, pid, "mem") from error

    def read(self, address: int, size: int) -> bytes:
        if size < 0 or size > MAX_READ_BYTES or not 0 <= address < 1 << 63:
            raise Unreadable(address, size)
        try:
            with realtime_priority if size <= _SHORT else nullcontext():
                data = os.pread(self._fd, size, address)
        except OSError as error:
            if error.errno == errno.ESRCH:
                raise NoSuchProcess(self.pid) from error
            if error.errno in (errno.EPERM, errno.EACCES):
                raise PermissionNeeded(
                    f"not allowed to read memory of {self.pid}", privilege="CAP_SYS_PTRACE"
                ) from error
            raise Unreadable(address, size) from error
        if not data and size:
            raise TargetGone(self.pid, "its address space is gone (exit or exec)")
        if len(data) != size:
            raise Unreadable(address, size)
        return data

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_u64(memory: Memory, address: int) -> int:
    return int(struct.unpack("<Q", memory.read(address, 8))[0])


def read_u32(memory: Memory, address: int) -> int:
    return int(struct.unpack("<I", memory.read(address, 4))[0])


def read_c_string(memory: Memory, address: int, limit: int = 4096) -> bytes:
    """Bytes up to the NUL, at most `limit`. No read crosses a page, because the next one may not be mapped."""
    out = b""
    while len(out) < limit:
        step = min(limit - len(out), 256 - (address + len(out)) % 256)
        piece = memory.read(address + len(out), step)
        end = piece.find(b"\0")
        if end >= 0:
            return out + piece[:end]
        out += piece
    return out
