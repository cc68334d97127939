"""bpf(2) and perf_event_open(2), which the C library does not wrap; and what of the tracer depends on the machine."""

import ctypes
import errno
import os
import platform
import struct
from enum import IntEnum
from typing import NamedTuple

ATTRIBUTE_BYTES = 128  # of union bpf_attr and struct perf_event_attr; the fields after those we set are zero
_PERF_FLAG_FD_CLOEXEC = 8  # include/uapi/linux/perf_event.h


class Machine(NamedTuple):
    """`bcc_arch`: the name that bcc reads from the variable ARCH. Then system call numbers."""

    bcc_arch: str
    bpf: int
    perf_event_open: int


# What the programs themselves need to know of a machine is in bpf/include/uapi/linux/ptrace.h.
MACHINES = {"x86_64": Machine("x86", 321, 298), "aarch64": Machine("arm64", 280, 241)}


class BpfCommand(IntEnum):
    """enum bpf_cmd of include/uapi/linux/bpf.h."""

    MAP_CREATE = 0
    PROG_LOAD = 5
    ENABLE_STATS = 32


class PerfType(IntEnum):
    """enum perf_type_id of include/uapi/linux/perf_event.h."""

    SOFTWARE = 1
    TRACEPOINT = 2


def this_machine() -> Machine:
    """OSError (ENOSYS) on a machine that is not supported."""
    machine = MACHINES.get(platform.machine())
    if machine is None:
        raise OSError(errno.ENOSYS, f"not known on {platform.machine()}")
    return machine


def bpf(command: BpfCommand, attributes: bytearray, size: int = ATTRIBUTE_BYTES) -> int:
    """Returns a file descriptor. OSError."""
    return _call(this_machine().bpf, command, _address(attributes), size)


def perf_event_open(type_: PerfType, config: int, *, sample_period: int) -> int:
    """Opens a disabled event on CPU 0 for all processes; returns a file descriptor. OSError."""
    attributes = bytearray(ATTRIBUTE_BYTES)  # PERF_ATTR_SIZE_VER7
    struct.pack_into("<IIQQ", attributes, 0, type_, len(attributes), config, sample_period)
    struct.pack_into("<Q", attributes, 40, 1)  # disabled
    return _call(this_machine().perf_event_open, _address(attributes), -1, 0, -1, _PERF_FLAG_FD_CLOEXEC)


def _address(attributes: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(attributes))


def _call(number: int, *arguments: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments)))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
