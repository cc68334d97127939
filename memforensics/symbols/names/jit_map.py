"""Names of code that no file has: the map that just-in-time compilers write for perf, one line a function: its address
and size in hexadecimal, and the rest of the line its name (Linux, tools/perf/Documentation/jit-interface.txt).

The file is the target's own, and it is only believed: bounded in size, entries and length of names."""

import os
import time
from array import array
from bisect import bisect_right
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import BinaryIO

from memforensics.errors import MemforensicsError

LOOK_AGAIN_S = 0.25
_MAX_BYTES = 64 * 1024 * 1024
_MAX_ENTRIES = 1 << 19
_MAX_TEXT = 32 * 1024 * 1024  # of all names
_MAX_NAME = 512
_MAX_LINE = 4096
_LOOK_BACK = 64  # how many entries may begin between a function's start and a pc in it

Opener = Callable[[], AbstractContextManager[BinaryIO]]


class JitMap:
    """`opener` opens the file, raising OSError or a MemforensicsError where there is none. It is looked at again, a few
    times a second at most, and what came to it is read: compilers append. Of two entries for an address the later
    counts."""

    def __init__(self, opener: Opener, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._opener, self._clock = opener, clock
        self._look_at: float | None = None
        self._file: tuple[int, int] | None = None
        self._read_bytes = 0
        # An entry is a number: three arrays and one text take a tenth of as many tuples and strings.
        self._start, self._end, self._name_at = array("Q"), array("Q"), array("Q")
        self._text = bytearray()
        self._order: list[int] | None = None  # the entries by their starts, then by the order in the file

    def name(self, pc: int) -> str | None:
        """The function there. None: the map does not have it."""
        self._look()
        if self._order is None:
            self._order = sorted(range(len(self._start)), key=self._start.__getitem__)
        last = bisect_right(self._order, pc, key=self._start.__getitem__)
        near = self._order[max(0, last - _LOOK_BACK) : last]
        found = max((entry for entry in near if pc < self._end[entry]), default=None)
        return None if found is None else self._name_of(found)

    def _name_of(self, entry: int) -> str:
        after = self._name_at[entry + 1] if entry + 1 < len(self._name_at) else len(self._text)
        return self._text[self._name_at[entry] : after].decode("utf-8", "backslashreplace").strip()

    def _look(self) -> None:
        now = self._clock()
        if self._look_at is not None and now < self._look_at:
            return
        self._look_at = now + LOOK_AGAIN_S
        try:
            with self._opener() as stream:
                self._read(stream)
        except (OSError, MemforensicsError):
            pass  # none there, or it left: what was read stands

    def _read(self, stream: BinaryIO) -> None:
        about = os.fstat(stream.fileno())
        if self._file != (about.st_dev, about.st_ino) or about.st_size < self._read_bytes:
            self._file = about.st_dev, about.st_ino
            self._read_bytes = 0
            del self._start[:], self._end[:], self._name_at[:], self._text[:]
            self._order = None
        stream.seek(self._read_bytes)
        while self._read_bytes < min(about.st_size, _MAX_BYTES) and not self._is_full():
            line = stream.readline(_MAX_LINE)
            if not line.endswith(b"\n") and len(line) < _MAX_LINE:
                return  # still being written: again from here
            self._read_bytes += len(line)
            self._add(line)

    def _is_full(self) -> bool:
        return len(self._start) >= _MAX_ENTRIES or len(self._text) >= _MAX_TEXT

    def _add(self, line: bytes) -> None:
        try:
            start_text, size_text, name = line.split(maxsplit=2)
            start, size = int(start_text, 16), int(size_text, 16)
        except ValueError:
            return  # another program's idea of the format
        if start > 0 and 0 < size < 1 << 32 and start + size < 1 << 64:
            self._start.append(start)
            self._end.append(start + size)
            self._name_at.append(len(self._text))
            self._text += name[:_MAX_NAME]
            self._order = None
