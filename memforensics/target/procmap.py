"""PROCMAP_QUERY: one mapping by address, without the text of all others (kernel 6.11, fs/proc/task_mmu.c,
uapi/linux/fs.h). For all mappings it costs more than maps. It knows what maps does not print: the page size, and
whether a backslash is part of the path."""

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator

from memforensics.case.model import Mapping
from memforensics.errors import ProbeFailed, TargetGone
from memforensics.target.procfs import ProcFS

_ARG = struct.Struct("9Q4I2Q")
_IOCTL = 0xC0686611  # _IOWR('f', 17, struct procmap_query), 104 bytes
_READABLE, _WRITABLE, _EXECUTABLE, _SHARED, _OR_NEXT = 1, 2, 4, 8, 16
_NAME_BYTES = 4096
_END = 1 << 64


class ProcMap:
    """The open file. `close` it, or use it in a with block."""

    def __init__(self, pid: int, proc: ProcFS) -> None:
        self.pid = pid
        try:
            self._fd = os.open(proc.root / str(pid) / "maps", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise proc.explain(error, pid, "maps") from error
        self._name = ctypes.create_string_buffer(_NAME_BYTES)

    def at(self, address: int, *, or_next: bool = False) -> tuple[Mapping, int] | None:
        """The mapping at the address (with or_next: or the next above) and its page size in bytes; None if there is
        none.

        TargetGone when the process left, ProbeFailed when this kernel has no PROCMAP_QUERY.
        """
        arg = bytearray(
            _ARG.pack(
                _ARG.size,
                _OR_NEXT if or_next else 0,
                address,
                *[0] * 8,
                _NAME_BYTES,
                0,  # build_id_size
                ctypes.addressof(self._name),
                0,
            )
        )
        try:
            fcntl.ioctl(self._fd, _IOCTL, arg, True)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            if error.errno == errno.ESRCH:
                raise TargetGone(self.pid, "its address space is gone (exit or exec)") from error
            why = "it needs Linux 6.11" if error.errno == errno.ENOTTY else os.strerror(error.errno or 0)
            raise ProbeFailed("PROCMAP_QUERY failed", why=why) from error
        _, _, _, start, end, flags, page_size, offset, inode, major, minor, name_size, *_ = _ARG.unpack(arg)
        path = self._name.raw[: max(name_size - 1, 0)].decode("utf-8", "surrogateescape")
        perms = "".join(
            letter if flags & bit else "-" for letter, bit in (("r", _READABLE), ("w", _WRITABLE), ("x", _EXECUTABLE))
        )
        mapping = Mapping(
            start=start,
            end=end,
            perms=perms + ("s" if flags & _SHARED else "p"),
            offset=offset,
            device=f"{major:02x}:{minor:02x}",
            inode=inode,
            path=path,
        )
        return mapping, page_size

    def all(self) -> Iterator[Mapping]:
        """All mappings, ascending, one call each; without [vsyscall], which is not the process's own."""
        address = 0
        while address < _END and (found := self.at(address, or_next=True)) is not None:
            yield found[0]
            address = found[0].end

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> "ProcMap":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
