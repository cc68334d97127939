"""The process that reads debug information with Sentry's `symbolic`: files, lines and inlined calls of addresses.

    python -I -S line_server.py SOCKET FOLDER...

`symbolic` reads a whole file at once, and the files belong to processes that may be hostile. So this program runs apart
from the tool: as nobody where it may change its user, without an environment, and under limits of memory, time, files
and processes. It ends with its parent.

SOCKET is an inherited stream socket; a message is four bytes of length (little-endian) and as much JSON.
A request is a list of addresses and comes with the descriptor of an ELF file. The answer has one list for each address:
[function, file, line], innermost first; nothing where the file has nothing.
"""

import ctypes
import json
import mmap
import os
import resource
import signal
import socket
import sys
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

FILE_SECONDS = 60  # of CPU, and of time, for one request
MEMORY_BYTES = 4 << 30
KEPT_FILES = 8
MAX_REQUEST_BYTES = 1 << 20
NOBODY = 65534
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38

Answer = list[tuple[str | None, str | None, int]]


class Files:
    """The symbol caches of the last files."""

    def __init__(self) -> None:
        from symbolic import debuginfo
        from symbolic._lowlevel import ffi
        from symbolic.exceptions import SymbolicError

        self._archive, self._ffi, self._error = debuginfo.Archive, ffi, SymbolicError
        self._caches: OrderedDict[Hashable, Any] = OrderedDict()

    def answer(self, descriptor: int, addresses: list[int]) -> list[Answer]:
        cache = self._cache(descriptor)
        return [[] if cache is None else self._look_up(cache, address) for address in addresses]

    def _cache(self, descriptor: int) -> Any:
        about = os.fstat(descriptor)
        key = about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns
        if key not in self._caches:
            self._caches[key] = self._read(descriptor)
            if len(self._caches) > KEPT_FILES:
                self._caches.popitem(last=False)
        self._caches.move_to_end(key)
        return self._caches[key]

    def _read(self, descriptor: int) -> Any:
        """None: the file cannot be read."""
        try:
            data = self._ffi.from_buffer("uint8_t[]", mmap.mmap(descriptor, 0, prot=mmap.PROT_READ))
            return next(self._archive.from_bytes(data).iter_objects()).make_symcache()
        except (self._error, StopIteration, OSError, ValueError):
            return None

    def _look_up(self, cache: Any, address: int) -> Answer:
        try:
            return [(one.symbol or None, one.full_path, one.line) for one in cache.lookup(address)]
        except self._error:
            return []


def confine() -> None:
    """Gives up what reading a file does not need."""
    os.nice(10)
    if os.geteuid() == 0:
        try:
            os.setgroups(())
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        except OSError:  # a container without these rights
            pass
    for limit, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        hard = resource.getrlimit(limit)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (most, most))
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)  # a change of user resets it
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def begin_request() -> None:
    """From here on, the kernel ends this process when the request takes too long."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft, hard = int(used.ru_utime + used.ru_stime) + FILE_SECONDS, resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
    signal.setitimer(signal.ITIMER_REAL, FILE_SECONDS)


def receive(sock: socket.socket) -> tuple[bytes, int] | None:
    """The request and its descriptor. None: the parent has left."""
    data, descriptors, _, _ = socket.recv_fds(sock, 4, 1)
    while len(data) < 4 or len(data) - 4 < int.from_bytes(data[:4], "little"):
        if len(data) > MAX_REQUEST_BYTES:
            return None
        more = sock.recv(65536)
        if not more:
            return None
        data += more
    return (data[4:], descriptors[0]) if descriptors else None


def main() -> None:
    sock = socket.socket(fileno=int(sys.argv[1]))
    sys.path[:] = [*sys.path, *sys.argv[2:]]
    files = Files()
    confine()
    while (request := receive(sock)) is not None:
        text, descriptor = request
        begin_request()
        answer = json.dumps(files.answer(descriptor, json.loads(text))).encode()
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.close(descriptor)
        sock.sendall(len(answer).to_bytes(4, "little") + answer)


if __name__ == "__main__":
    main()
