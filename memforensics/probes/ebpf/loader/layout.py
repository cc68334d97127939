"""The byte layouts that the BPF programs (mmap.bpf.c, stacks.bpf.h, unwind.bpf.h) share with user space. Pure."""

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import NamedTuple

from memforensics.symbols.unwind.cfi import Rule
from memforensics.symbols.unwind.unwinder import Registers

MAX_NATIVE = 128
MAX_PYTHON = 128

TARGET_KEY = struct.Struct("<I")
TARGET = struct.Struct("<QQQQQQ")  # address space, brk, parent, stacks skipped, last removal sent, munmaps
LIVE_KEY = struct.Struct("<QQ")  # address space, address
LIVE = struct.Struct("<QQQII")  # length, site, born_ns, weight, gone
SITE_KEY = struct.Struct("<QQ")  # address space, site
SITE = struct.Struct("<QQQQQQQ")
INDEX = struct.Struct("<I")  # of an array
SETTINGS = struct.Struct("<IIIII")  # recording, window_budget, sample_period, byte_sample_period, exact
PYTHON_THREAD_KEY = struct.Struct("<Q")  # tgid << 32 | tid
RUN_TIME = struct.Struct("<QQQQQ")  # runs, ns, began_ns, weight, left
RULE_KEY = struct.Struct("<QQ")  # address space, pc
RULE = struct.Struct("<iiiBBH")

_HEAD = struct.Struct("<IIQQ")
_RANGE = struct.Struct("<QQQQQQ")
_STACK = struct.Struct("<QII8Q")
_WALK = struct.Struct("<QQQQQIIII")
_LINK = struct.Struct("<Q")  # aarch64 only, behind the frames
_COPY = struct.Struct("<QQ")
_PYTHON = struct.Struct("<II")
_PYTHON_FRAME = struct.Struct("<QiI")
PYTHON_BYTES = _PYTHON.size + MAX_PYTHON * _PYTHON_FRAME.size + 128

_PC_RETURN, _PC_GUESSED = 1 << 63, 1 << 62
_PC_MASK = (1 << 62) - 1


class Kind(IntEnum):
    mmap = 1
    mremap = 2
    brk = 3
    shm = 4
    fault = 5


class KindFlag(IntFlag):
    SHARED = 0x10
    FILE = 0x20
    TMPFS = 0x40
    PLACED = 0x80


class EventType(IntEnum):
    STACK = 1
    MISS = 2
    UNMAP = 3
    EVICT = 4
    UNDO = 5
    REMAP = 6
    BRK = 7
    FORK = 8
    EXEC = 9
    EXIT = 10
    CODE = 11
    ATTACH = 12
    DETACH = 13


class LiveRange(NamedTuple):
    """One whole mapping in the kernel's table. `weight`: how many its stack counts for; 0: it was not walked."""

    start: int
    end: int
    site: int
    born_ns: int
    weight: int


class Ended(IntEnum):
    COMPLETE = 0
    MISS = 1
    LIMIT = 2
    UNREADABLE = 3
    STUCK = 4


# LOSS_* of mmap.bpf.c, in its order: what, and what reduces it
LOSSES: tuple[tuple[str, str], ...] = (
    ("events dropped: the ring buffer was full", "fewer mappings a second, or a shorter trace"),
    ("mappings dropped: the table of live mappings is full", "a shorter trace"),
    ("mappings dropped: the stack table is full", "a shorter trace"),
    ("stacks cut short: more than 128 native frames", ""),
    ("stacks cut short: the stack could not be read or followed", ""),
    ("stacks cut short: no copy of the stack could be made", ""),
    ("children not followed: too many processes", "trace a smaller tree"),
)


@dataclass(frozen=True, slots=True)
class NativePc:
    """One recorded frame. `is_return`: a return address; the call is the byte before."""

    pc: int
    is_return: bool
    guessed: bool


def native_pc(recorded: int) -> NativePc:
    return NativePc(recorded & _PC_MASK, bool(recorded & _PC_RETURN), bool(recorded & _PC_GUESSED))


@dataclass(frozen=True, slots=True)
class PythonFrame:
    code: int
    instruction: int
    flags: int


@dataclass(frozen=True, slots=True)
class RangeEvent:
    """[start, end) of an address space. The type gives the other fields their meaning (mmap.bpf.c); `old` of an EVICT
    is the weight."""

    type: EventType
    tid: int
    space: int
    t_ns: int
    start: int
    end: int
    site: int
    born_ns: int
    old: int
    old_length: int


@dataclass(frozen=True, slots=True)
class StackEvent:
    """The stack of a new site, leaf first. A miss also has registers, and a copy of the stack from their rsp on. They
    are those of the leaf; or, when the frame without a rule is far up (`from_leaf` is False), of that frame, the last
    of `native`."""

    space: int
    tid: int
    t_ns: int
    site: int
    kind: Kind
    shared: bool
    file_backed: bool
    ended: Ended
    native: tuple[NativePc, ...]
    python: tuple[PythonFrame, ...]
    python_flags: int
    tmpfs: bool = False
    placed: bool = False
    registers: Registers | None = None
    from_leaf: bool = True
    copy: bytes = b""


def parse_event(data: bytes, with_python: bool) -> RangeEvent | StackEvent:
    """One record of the ring buffer. ValueError, struct.error: it is damaged."""
    number, tid, space, t_ns = _HEAD.unpack_from(data)
    kind = EventType(number)
    if kind not in (EventType.STACK, EventType.MISS):
        start, end, site, born_ns, old, old_length = _RANGE.unpack_from(data, _HEAD.size)
        return RangeEvent(kind, tid, space, t_ns, start, end, site, born_ns, old, old_length)
    offset = _HEAD.size
    site, flags, aarch64, rip, rsp, rbp, rbx, r12, r13, r14, r15 = _STACK.unpack_from(data, offset)
    offset += _STACK.size
    walk_pc, walk_rsp, walk_rbp, *_, count, ended = _WALK.unpack_from(data, offset)
    offset += _WALK.size
    pcs = struct.unpack_from(f"<{min(count, MAX_NATIVE)}Q", data, offset)
    offset += 8 * MAX_NATIVE
    walk_lr = 0
    if aarch64:
        (walk_lr,) = _LINK.unpack_from(data, offset)
        offset += _LINK.size
    python: tuple[PythonFrame, ...] = ()
    python_flags = 0
    if with_python:
        python_count, python_flags = _PYTHON.unpack_from(data, offset)
        end = offset + _PYTHON.size + min(python_count, MAX_PYTHON) * _PYTHON_FRAME.size
        python = tuple(PythonFrame(*f) for f in _PYTHON_FRAME.iter_unpack(data[offset + _PYTHON.size : end]))
        offset += PYTHON_BYTES
    registers, copy, from_leaf = None, b"", True
    if kind is EventType.MISS:
        copied_from, copied = _COPY.unpack_from(data, offset)
        offset += _COPY.size
        copy = data[offset : offset + copied]
        from_leaf = copied_from == rsp
        if aarch64:
            rip, rsp, rbp, lr = (rip, rsp, rbp, rbx) if from_leaf else (walk_pc, walk_rsp, walk_rbp, walk_lr)
            registers = Registers(rip=rip, rsp=rsp, rbp=rbp, lr=lr)
        elif from_leaf:
            registers = Registers(rip=rip, rsp=rsp, rbp=rbp, rbx=rbx, r12=r12, r13=r13, r14=r14, r15=r15)
        else:
            registers = Registers(rip=walk_pc, rsp=walk_rsp, rbp=walk_rbp)
    return StackEvent(
        space=space,
        tid=tid,
        t_ns=t_ns,
        site=site,
        kind=Kind(flags & 0xF),
        shared=bool(flags & KindFlag.SHARED),
        file_backed=bool(flags & KindFlag.FILE),
        ended=Ended(ended),
        native=tuple(map(native_pc, pcs)),
        python=python,
        python_flags=python_flags,
        tmpfs=bool(flags & KindFlag.TMPFS),
        placed=bool(flags & KindFlag.PLACED),
        registers=registers,
        from_leaf=from_leaf,
        copy=copy,
    )


_BASES = {"rsp": 0, "rbp": 1, "deref-rsp": 2, "deref-rbp": 3, "expression-plt": 4, "signal": 5, "go-switch": 6}
_RBP_AT = {"cfa": 2, "rbp": 4, "rsp": 8}
_I32 = range(-(1 << 31), 1 << 31)


def pack_rule(rule: Rule) -> bytes | None:
    """struct rule of the kernel. None when the kernel's walk cannot follow the rule (another register, an expression):
    such a pc stays a miss, and user space unwinds it each time."""
    if rule.end:
        return RULE.pack(0, 0, 0, 0, 1, 0)
    base = _BASES.get(rule.cfa_base)
    if base is None or (rule.ra_offset is None and not rule.ra_in_lr):
        return None
    flags = (16 if rule.guessed else 0) | (32 if rule.ra_in_lr else 0)
    if rule.rbp_offset is not None:
        flags |= _RBP_AT[rule.rbp_base]
    offsets = (rule.cfa_offset, rule.ra_offset or 0, rule.rbp_offset or 0)
    if any(offset not in _I32 for offset in offsets):
        return None
    return RULE.pack(*offsets, base, flags, rule.via)
