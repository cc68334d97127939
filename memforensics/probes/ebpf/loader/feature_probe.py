"""Which kinds of BPF program and map this kernel takes from us: a two-instruction program of each is loaded for real.

Straight through the bpf and perf_event_open system calls: works without bcc, and knows each kind's own errno, where
bcc says "need super-user privileges" to everything. Nothing is attached to a process; all is closed at once.
"""

import ctypes
import errno
import mmap
import os
import platform
import struct
from dataclasses import dataclass
from pathlib import Path

_SYSCALLS = {"x86_64": (321, 298), "aarch64": (280, 241)}  # bpf, perf_event_open
_MAP_CREATE, _PROG_LOAD = 0, 5  # include/uapi/linux/bpf.h, enum bpf_cmd
_RETURN_0 = bytes.fromhex("b700000000000000 9500000000000000")  # r0 = 0; exit
_BTF_KIND_TYPEDEF, _BTF_KIND_FUNC = 8, 12  # include/uapi/linux/btf.h
_PERF_TYPE_TRACEPOINT, _PERF_TYPE_SOFTWARE = 2, 1
_PERF_COUNT_SW_CPU_CLOCK = 0
_PERF_FLAG_FD_CLOEXEC = 8


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of program: its number (enum bpf_prog_type), and, where it is bound to one kernel function by BTF, the
    attach type and that function or typedef."""

    name: str
    number: int
    attach_type: int = 0
    btf_name: str = ""
    btf_kind: int = 0
    use: str = ""


KINDS: tuple[Kind, ...] = (
    Kind("tracepoint", 5, use="trace-mmap, diagnose"),
    Kind("raw_tracepoint", 17, use="cheaper scheduler events"),
    Kind("tp_btf", 26, 23, "btf_trace_sys_enter", _BTF_KIND_TYPEDEF, "typed tracepoints"),
    Kind("kprobe", 2, use="kprobes, and uprobes on allocators (trace-malloc)"),
    Kind("perf_event", 7, use="sampling, hardware watchpoints"),
    Kind("fentry", 26, 24, "do_sys_open", _BTF_KIND_FUNC, "kernel functions without kprobes"),
    Kind("lsm", 29, 27, "bpf_lsm_file_open", _BTF_KIND_FUNC, "not used by memforensics"),
)


@dataclass(frozen=True, slots=True)
class Tried:
    ok: bool
    why: str = ""


def load(kind: Kind, btf: Path = Path("/sys/kernel/btf/vmlinux")) -> Tried:
    """Loads `r0 = 0; exit` as a program of that kind."""
    btf_id = 0
    if kind.btf_name:
        try:
            btf_id = _btf_id(btf.read_bytes(), kind.btf_name, kind.btf_kind)
        except (OSError, ValueError, struct.error) as error:
            return Tried(False, f"no usable BTF of the kernel: {error}")
        if not btf_id:
            return Tried(False, f"the kernel's BTF has no {kind.btf_name}")
    code = ctypes.create_string_buffer(_RETURN_0, len(_RETURN_0))
    license_ = ctypes.create_string_buffer(b"GPL")
    attributes = bytearray(128)  # union bpf_attr: what follows the fields we know is zero
    struct.pack_into("<IIQQ", attributes, 0, kind.number, 2, ctypes.addressof(code), ctypes.addressof(license_))
    struct.pack_into("<I", attributes, 68, kind.attach_type)  # expected_attach_type
    struct.pack_into("<I", attributes, 108, btf_id)  # attach_btf_id
    return _bpf(_PROG_LOAD, attributes)


def ring_buffer() -> Tried:
    """Creates a BPF ring buffer map (Linux 5.8) of one page."""
    attributes = bytearray(128)
    struct.pack_into("<IIII", attributes, 0, 27, 0, 0, mmap.PAGESIZE)  # BPF_MAP_TYPE_RINGBUF
    return _bpf(_MAP_CREATE, attributes)


def attach_tracepoint(tracepoint_id: int) -> Tried:
    """Opens the perf event of a tracepoint on CPU 0 for all processes, as attaching does; counts, no program."""
    return _perf_event(_PERF_TYPE_TRACEPOINT, tracepoint_id, sample_period=1)


def perf_sampling() -> Tried:
    """Opens a CPU-clock sampling event on CPU 0 for all processes."""
    return _perf_event(_PERF_TYPE_SOFTWARE, _PERF_COUNT_SW_CPU_CLOCK, sample_period=1_000_000_000)


def _perf_event(type_: int, config: int, *, sample_period: int) -> Tried:
    attributes = bytearray(128)  # struct perf_event_attr, PERF_ATTR_SIZE_VER7
    struct.pack_into("<IIQQ", attributes, 0, type_, len(attributes), config, sample_period)
    struct.pack_into("<Q", attributes, 40, 1)  # disabled
    number = _SYSCALLS.get(platform.machine(), (0, 0))[1]
    buffer = (ctypes.c_char * len(attributes)).from_buffer(attributes)
    return _call(number, ctypes.addressof(buffer), -1, 0, -1, _PERF_FLAG_FD_CLOEXEC)


def _bpf(command: int, attributes: bytearray) -> Tried:
    number = _SYSCALLS.get(platform.machine(), (0, 0))[0]
    buffer = (ctypes.c_char * len(attributes)).from_buffer(attributes)
    return _call(number, command, ctypes.addressof(buffer), len(attributes))


def _call(number: int, *arguments: int) -> Tried:
    """A system call that gives a file descriptor, which is closed at once."""
    if not number:
        return Tried(False, f"not known on {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in arguments))
    if descriptor >= 0:
        os.close(descriptor)
        return Tried(True)
    error = ctypes.get_errno()
    return Tried(False, f"{errno.errorcode.get(error, error)}: {os.strerror(error)}")


def _btf_id(data: bytes, name: str, wanted: int) -> int:
    """The id of a type in BTF (Documentation/bpf/btf.rst); 0 when it is not there. ValueError when it is no BTF."""
    magic, _, _, header, type_at, type_size, string_at, string_size = struct.unpack_from("<HBBIIIII", data)
    if magic != 0xEB9F:
        raise ValueError("bad magic")
    strings = data[header + string_at : header + string_at + string_size]
    name_at = strings.find(b"\0" + name.encode() + b"\0") + 1
    if not name_at:
        return 0
    # What follows the 12 bytes of a type, by kind: a fixed size, and so much for each of its vlen members.
    fixed = {1: 4, 3: 12, 14: 4, 17: 4}
    member = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
    position, end, identity = header + type_at, header + type_at + type_size, 1
    while position < end:
        this_name, info = struct.unpack_from("<II", data, position)
        kind = info >> 24 & 0x1F
        if this_name == name_at and kind == wanted:
            return identity
        position += 12 + fixed.get(kind, 0) + member.get(kind, 0) * (info & 0xFFFF)
        identity += 1
    return 0
