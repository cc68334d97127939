"""Files, lines and inlined calls of addresses, from DWARF. A process of our own reads it (line_server.py): one for all
files, started with the first question. An answer may take seconds on a large file; whoever asks waits as long as its
budget allows, and a later question finds the answer.
"""

import contextlib
import json
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from memforensics.symbols.elf.reader import BadElf, ElfFile
from memforensics.symbols.names import line_server

_SHT_NOBITS = 8
_MAX_KNOWN = 1 << 15
_MAX_ADDRESSES = 4096  # in one request
_MAX_ANSWER_BYTES = 64 << 20
_TOO_LONG = (-signal.SIGALRM, -signal.SIGXCPU)


class Location(NamedTuple):
    """None: the file does not say. `function` is mangled where the file has it so."""

    function: str | None
    file: str | None
    line: int | None


@dataclass(slots=True)
class WaitBudget:
    """Seconds to wait for answers, in all."""

    left_s: float


class LineReader:
    """The lines of one file, or of its separate debug file."""

    def __init__(self, elf: ElfFile) -> None:
        self._elf = elf
        self._known: dict[int, tuple[Location, ...]] = {}
        self._origin: ElfFile | None = None
        self._is_open = False
        self.why_not: str | None = None  # why the reading process gave up

    @property
    def has_any(self) -> bool:
        """Whether there is DWARF at all."""
        return self._open() is not None

    def at(self, vaddr: int) -> tuple[Location, ...]:
        """The location, innermost inlined call first, as far as `look_up` brought it. Empty: none, or not known."""
        return self._known.get(vaddr, ())

    def look_up(self, vaddrs: Sequence[int], budget: WaitBudget) -> bool:
        """Asks for these addresses. False: the answer is still to come."""
        if len(self._known) > _MAX_KNOWN:
            self._known.clear()
        missing = [vaddr for vaddr in vaddrs if vaddr not in self._known and 0 <= vaddr < 1 << 63]
        if not missing or self.why_not is not None or self._open() is None:
            return True
        began = time.monotonic()
        try:
            return _PROCESS.ask(self, missing, began + max(0.0, budget.left_s))
        finally:
            budget.left_s -= time.monotonic() - began

    def take(self, vaddrs: Sequence[int], answer: Sequence[Sequence[Location]]) -> None:
        """The reading process's answer."""
        for vaddr, locations in zip(vaddrs, answer, strict=True):
            self._known[vaddr] = tuple(locations)

    def missing(self, vaddrs: Sequence[int]) -> list[int]:
        return [vaddr for vaddr in vaddrs if vaddr not in self._known][:_MAX_ADDRESSES]

    @property
    def descriptor(self) -> int | None:
        origin = self._open()
        return origin.source.descriptor if origin is not None else None

    def _open(self) -> ElfFile | None:
        if not self._is_open:
            self._is_open = True
            try:
                self._origin = next((e for e in (self._elf, self._elf.debug) if e is not None and _has_dwarf(e)), None)
            except BadElf:
                self._origin = None
        return self._origin


def _has_dwarf(elf: ElfFile) -> bool:
    sections = [elf.section(name) for name in (".debug_info", ".debug_line")]
    return elf.source.descriptor is not None and all(
        section is not None
        and section.type != _SHT_NOBITS
        and 0 < section.size <= section.offset + section.size <= elf.source.size
        for section in sections
    )


class _ReadingProcess:
    """One request at a time; what else is asked meanwhile comes later."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._end: weakref.finalize[..., object] | None = None
        self._request: tuple[LineReader, list[int]] | None = None
        self._received = b""
        self._killed: weakref.WeakSet[LineReader] = weakref.WeakSet()

    def ask(self, reader: LineReader, vaddrs: Sequence[int], until: float) -> bool:
        """False: time was up before the answer came."""
        with self._lock:
            while reader.why_not is None and (missing := reader.missing(vaddrs)):
                try:
                    if self._request is None:
                        self._send(reader, missing)
                    if not self._receive(until):
                        return False
                except (OSError, ValueError) as error:
                    self._stop(str(error))
        return True

    def _send(self, reader: LineReader, vaddrs: list[int]) -> None:
        descriptor = reader.descriptor
        assert descriptor is not None
        self._request = (reader, vaddrs)
        text = json.dumps(vaddrs).encode()
        message = len(text).to_bytes(4, "little") + text
        sock = self._started()
        sent = socket.send_fds(sock, [message], [descriptor])
        sock.sendall(message[sent:])

    def _started(self) -> socket.socket:
        if self._socket is None:
            ours, theirs = socket.socketpair()
            with theirs:
                command = [sys.executable, "-I", "-S", line_server.__file__, str(theirs.fileno())]
                self._process = subprocess.Popen(
                    [*command, *(str(Path(folder).absolute()) for folder in sys.path if folder)],
                    env={},
                    cwd="/",
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            self._socket, self._received = ours, b""
            self._end = weakref.finalize(self, _end, self._process, ours)
        return self._socket

    def _receive(self, until: float) -> bool:
        """False: the answer is not here yet."""
        assert self._socket is not None
        while True:
            size = int.from_bytes(self._received[:4], "little")
            if size > _MAX_ANSWER_BYTES:
                raise ValueError("its answer is too long")
            if len(self._received) >= 4 + size and self._received:
                break
            if not select.select([self._socket], [], [], max(0.0, until - time.monotonic()))[0]:
                return False
            piece = self._socket.recv(1 << 20)
            if not piece:
                raise ValueError("it ended")
            self._received += piece
        text, self._received = self._received[4 : 4 + size], b""
        assert self._request is not None
        reader, vaddrs = self._request
        reader.take(vaddrs, msgspec.json.decode(text, type=list[list[Location]]))
        self._request = None
        return True

    def _stop(self, why: str) -> None:
        """The process failed: the file that it was reading is not asked for again, unless somebody killed it."""
        status = None
        if self._process is not None and self._end is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self._process.wait(timeout=1.0)
            self._end()
        reader = self._request[0] if self._request is not None else None
        self._process = self._socket = self._end = self._request = None
        if reader is None or (status == -signal.SIGKILL and reader not in self._killed):
            if reader is not None:
                self._killed.add(reader)
            return
        if status in _TOO_LONG:
            why = f"it takes more than {line_server.FILE_SECONDS} s to read"
        elif status == -signal.SIGABRT:
            why = f"it is damaged, or takes more than {line_server.MEMORY_BYTES >> 30} GiB of memory to read"
        elif status is not None:
            why = f"reading it ended with status {status}"
        reader.why_not = why


def _end(process: "subprocess.Popen[bytes]", sock: socket.socket) -> None:
    sock.close()
    process.kill()
    process.wait()


_PROCESS = _ReadingProcess()
