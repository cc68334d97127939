"""Names of code that no file has: the map that just-in-time compilers write for perf, one line a function: its address
and size in hexadecimal, and the rest of the line its name (Linux, tools/perf/Documentation/jit-interface.txt).

The file is the target's own, and it is only believed: bounded in size, entries and length of names."""

import os
import time
from bisect import bisect_right
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import BinaryIO

from memforensics.errors import MemforensicsError

LOOK_AGAIN_S = 0.25
_MAX_BYTES = 64 * 1024 * 1024
_MAX_ENTRIES = 1 << 20
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
        self._entries: dict[int, tuple[int, int, str]] = {}  # start -> end, number of its line, name
        self._lines = 0
        self._starts: list[int] | None = None

    def name(self, pc: int) -> str | None:
        """The function there. None: not told."""
        self._look()
        if self._starts is None:
            self._starts = sorted(self._entries)
        last = bisect_right(self._starts, pc)
        covering = [self._entries[start] for start in self._starts[max(0, last - _LOOK_BACK) : last]]
        found = max((entry for entry in covering if pc < entry[0]), key=lambda entry: entry[1], default=None)
        return found[2] if found is not None else None

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
            self._entries.clear()
            self._starts = None
        stream.seek(self._read_bytes)
        while self._read_bytes < min(about.st_size, _MAX_BYTES) and len(self._entries) < _MAX_ENTRIES:
            line = stream.readline(_MAX_LINE)
            if not line.endswith(b"\n") and len(line) < _MAX_LINE:
                return  # still being written: again from here
            self._read_bytes += len(line)
            self._add(line)

    def _add(self, line: bytes) -> None:
        self._lines += 1
        try:
            start_text, size_text, name = line.split(maxsplit=2)
            start, size = int(start_text, 16), int(size_text, 16)
        except ValueError:
            return  # another program's idea of the format
        if 0 < start < 1 << 64 and 0 < size < 1 << 32:
            text = name[:_MAX_NAME].decode("utf-8", "backslashreplace").strip()
            self._entries[start] = (start + size, self._lines, text)
            self._starts = None
