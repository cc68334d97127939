"""Which BPF program types and maps this kernel lets us load: a two-instruction program of each type is loaded.

This calls bpf and perf_event_open directly. It works without bcc and keeps the errno of each type, where bcc reports
"need super-user privileges" for every failure. Nothing is attached to a process, and each descriptor is closed at once.
"""

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from memforensics.probes.ebpf.loader.btf import VMLINUX, BtfKind, type_id
from memforensics.probes.ebpf.loader.syscalls import ATTRIBUTE_BYTES, BpfCommand, PerfType, bpf, perf_event_open

_RETURN_0 = bytes.fromhex("b700000000000000 9500000000000000")  # r0 = 0; exit
_RINGBUF = 27  # enum bpf_map_type
_PERF_COUNT_SW_CPU_CLOCK = 0
_SAMPLE_PERIOD_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class ProgramType:
    """`number`: enum bpf_prog_type. A type that BTF binds to one kernel function also has an attach type and the name
    of that function or typedef."""

    name: str
    number: int
    attach_type: int = 0
    btf_name: str = ""
    btf_kind: BtfKind = BtfKind.FUNC
    use: str = ""


PROGRAM_TYPES: tuple[ProgramType, ...] = (
    ProgramType("tracepoint", 5, use="trace-mmap, diagnose"),
    ProgramType("raw_tracepoint", 17, use="cheaper scheduler events"),
    ProgramType("tp_btf", 26, 23, "btf_trace_sys_enter", BtfKind.TYPEDEF, "typed tracepoints"),
    ProgramType("kprobe", 2, use="kprobes, and uprobes on allocators (trace-malloc)"),
    ProgramType("perf_event", 7, use="sampling, hardware watchpoints"),
    ProgramType("fentry", 26, 24, "do_sys_open", BtfKind.FUNC, "kernel functions without kprobes"),
    ProgramType("lsm", 29, 27, "bpf_lsm_file_open", BtfKind.FUNC, "not used by memforensics"),
)


@dataclass(frozen=True, slots=True)
class Support:
    """Whether the kernel accepted it, or why not."""

    ok: bool
    why: str = ""


def program_type(kind: ProgramType, btf: Path = VMLINUX) -> Support:
    """Loads `r0 = 0; exit` as a program of that type."""
    btf_id = 0
    if kind.btf_name:
        try:
            btf_id = type_id(btf.read_bytes(), kind.btf_name, kind.btf_kind)
        except (OSError, ValueError, struct.error) as error:
            return Support(False, f"no usable BTF of the kernel: {error}")
        if not btf_id:
            return Support(False, f"the kernel's BTF has no {kind.btf_name}")
    code = ctypes.create_string_buffer(_RETURN_0, len(_RETURN_0))
    license_ = ctypes.create_string_buffer(b"GPL")
    attributes = bytearray(ATTRIBUTE_BYTES)
    struct.pack_into("<IIQQ", attributes, 0, kind.number, 2, ctypes.addressof(code), ctypes.addressof(license_))
    struct.pack_into("<I", attributes, 68, kind.attach_type)  # expected_attach_type
    struct.pack_into("<I", attributes, 108, btf_id)  # attach_btf_id
    return _try(lambda: bpf(BpfCommand.PROG_LOAD, attributes))


def ring_buffer() -> Support:
    """Creates a BPF ring buffer map (Linux 5.8) of one page."""
    attributes = bytearray(ATTRIBUTE_BYTES)
    struct.pack_into("<IIII", attributes, 0, _RINGBUF, 0, 0, mmap.PAGESIZE)
    return _try(lambda: bpf(BpfCommand.MAP_CREATE, attributes))


def attach_tracepoint(tracepoint_id: int) -> Support:
    """Opens the perf event of a tracepoint on CPU 0 for all processes, as attaching does, without a program."""
    return _try(lambda: perf_event_open(PerfType.TRACEPOINT, tracepoint_id, sample_period=1))


def perf_sampling() -> Support:
    """Opens a CPU clock sampling event on CPU 0 for all processes."""
    return _try(lambda: perf_event_open(PerfType.SOFTWARE, _PERF_COUNT_SW_CPU_CLOCK, sample_period=_SAMPLE_PERIOD_NS))


def _try(open_descriptor: Callable[[], int]) -> Support:
    try:
        os.close(open_descriptor())
    except OSError as error:
        number = error.errno or 0
        return Support(False, f"{errno.errorcode.get(number, number)}: {error.strerror}")
    return Support(True)
