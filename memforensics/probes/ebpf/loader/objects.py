"""BPF maps and programs as file descriptors, by bpf(2)."""

import contextlib
import ctypes
import errno
import os
import re
import resource
import signal
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memforensics.errors import ProbeFailed
from memforensics.probes.ebpf.loader.syscalls import ATTRIBUTE_BYTES, BpfCommand, bpf

_TRACEPOINT = 5  # enum bpf_prog_type
_PER_CPU = {5, 6, 10}  # enum bpf_map_type: PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH
_LOG_BYTES = 1 << 20
_LOAD_ATTEMPTS = 8


@dataclass(frozen=True, slots=True)
class MapSpec:
    """What a map is created from. `kind`: enum bpf_map_type; `flags`: BPF_F_*."""

    name: str
    kind: int
    key_size: int
    value_size: int
    capacity: int
    flags: int


def enable_stats() -> int | None:
    """Makes the kernel count run time while the descriptor is open (Linux 5.8). None where it cannot or may not."""
    try:
        return bpf(BpfCommand.ENABLE_STATS, bytearray(ATTRIBUTE_BYTES), 4)  # BPF_STATS_RUN_TIME
    except OSError:
        return None


def create_map(spec: MapSpec) -> int:
    """OSError."""
    attributes = bytearray(ATTRIBUTE_BYTES)
    struct.pack_into("<IIIII", attributes, 0, spec.kind, spec.key_size, spec.value_size, spec.capacity, spec.flags)
    struct.pack_into("15s", attributes, 28, re.sub(r"\W", "_", spec.name).encode()[:15])  # map_name
    return bpf(BpfCommand.MAP_CREATE, attributes)


def load_program(name: str, code: bytes) -> int:
    """Loads a program for tracepoints. OSError has the last lines of the verifier."""
    try:
        return _load(name, code, None)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOSYS):
            raise
        log = ctypes.create_string_buffer(_LOG_BYTES)
        with contextlib.suppress(OSError):
            return _load(name, code, log)
        said = log.value.decode(errors="replace").strip().splitlines()[-3:]
        raise OSError(error.errno, f"{error.strerror}: {' / '.join(said)}"[:400]) from None


def _load(name: str, code: bytes, log: Any) -> int:
    license_, text = ctypes.create_string_buffer(b"GPL"), ctypes.create_string_buffer(code, len(code))
    attributes = bytearray(ATTRIBUTE_BYTES)
    struct.pack_into(
        "<IIQQ", attributes, 0, _TRACEPOINT, len(code) // 8, ctypes.addressof(text), ctypes.addressof(license_)
    )
    if log is not None:
        struct.pack_into("<IIQ", attributes, 24, 1, len(log), ctypes.addressof(log))
    struct.pack_into("15s", attributes, 48, name.encode()[:15])  # prog_name
    with _no_signals():
        for _ in range(_LOAD_ATTEMPTS - 1):
            try:
                return bpf(BpfCommand.PROG_LOAD, attributes)
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    raise
        return bpf(BpfCommand.PROG_LOAD, attributes)


@contextlib.contextmanager
def _no_signals() -> Iterator[None]:
    """Blocks signals, because the verifier gives up with EAGAIN when one is pending (kernel/bpf/verifier.c, do_check).
    A debugger or a stop can still interrupt it: hence the attempts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def lift_memory_limit() -> None:
    """Before Linux 5.11 BPF memory counts against RLIMIT_MEMLOCK."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def possible_cpus() -> int:
    """How many values a per-CPU map has for a key (Documentation/admin-guide/cputopology.rst)."""
    text = Path("/sys/devices/system/cpu/possible").read_text()
    return int(re.split(r"[-,]", text.strip())[-1]) + 1


class Table:
    """A BPF hash or array with fixed-size keys and values, in batches of bytes. `lib`: bcc's libbcc."""

    def __init__(self, lib: Any, descriptor: int, spec: MapSpec) -> None:
        self._lib, self.descriptor, self.spec = lib, descriptor, spec
        self.key_size, self.value_size, self.capacity = spec.key_size, spec.value_size, spec.capacity

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries, in no order. Entries that are added or removed meanwhile may or may not be among them."""
        for keys, values in self.batches():
            for i in range(len(keys) // self.key_size):
                yield (
                    keys[i * self.key_size : (i + 1) * self.key_size],
                    values[i * self.value_size : (i + 1) * self.value_size],
                )

    def batches(self, batch: int = 4096) -> Iterator[tuple[bytes, bytes]]:
        """All entries in large pieces: concatenated keys, and concatenated values."""
        token_in, token_out = (ctypes.c_uint32 * 16)(), (ctypes.c_uint32 * 16)()
        pointer, first = ctypes.POINTER(ctypes.c_uint32), True
        while True:
            keys = ctypes.create_string_buffer(batch * self.key_size)
            values = ctypes.create_string_buffer(batch * self.value_size)
            count = ctypes.c_uint32(batch)
            resume = None if first else ctypes.cast(token_in, pointer)
            failed = self._lib.bpf_lookup_batch(
                self.descriptor, resume, ctypes.cast(token_out, pointer), keys, values, ctypes.byref(count)
            )
            why = ctypes.get_errno()
            if failed and why == errno.ENOSPC:  # one hash bucket holds more than a batch
                batch *= 2
                continue
            if failed and why != errno.ENOENT:
                raise ProbeFailed("a BPF table cannot be read", why=os.strerror(why))
            yield keys.raw[: count.value * self.key_size], values.raw[: count.value * self.value_size]
            if failed:
                return
            first = False
            ctypes.memmove(token_in, token_out, 64)

    def get(self, key: bytes) -> bytes | None:
        """Of a per-CPU map: the values of all CPUs, concatenated, each padded to 8 bytes."""
        size = self.value_size
        if self.spec.kind in _PER_CPU:
            size = (size + 7 & ~7) * possible_cpus()
        value = ctypes.create_string_buffer(size)
        return value.raw if self._lib.bpf_lookup_elem(self.descriptor, key, value) == 0 else None

    def put(self, key: bytes, value: bytes, *, new: bool = False) -> bool:
        """False: the table is full or, with `new`, has such an entry."""
        return bool(self._lib.bpf_update_elem(self.descriptor, key, value, int(new)) == 0)

    def take(self, key: bytes) -> bytes | None:
        """Looks up and removes an entry in one step (Linux 5.14 for hashes). None: there is none."""
        value = ctypes.create_string_buffer(self.value_size)
        return value.raw if self._lib.bpf_lookup_and_delete(self.descriptor, key, value) == 0 else None

    def remove(self, key: bytes) -> bool:
        """False: there is no such entry."""
        return bool(self._lib.bpf_delete_elem(self.descriptor, key) == 0)
