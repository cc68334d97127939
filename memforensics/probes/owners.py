"""Passive recognition: who owns a mapping, by what is written in it and where it lies.

Nothing runs in the target and nothing stops it. Memory is read in small pieces, and only pages that pagemap says are
there: reading an untouched page would map the zero page into the target. What is found are `OwnerMark`s; what they
mean is decided by analysis/ownership.py. Each recogniser says what it trusts; when in doubt it says nothing, and the
mapping stays anonymous.
"""

import re
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise, takewhile

from memforensics.case.model import Loss, Mapping, OwnerMark, Snapshot
from memforensics.errors import MemforensicsError, PermissionNeeded, TargetError
from memforensics.probes.chunks import Spans, chained_chunks, remembered_chunks, searched_chunks
from memforensics.probes.looking import MAX_POOL_READS, Ground, Look, Run
from memforensics.target import Process
from memforensics.target.memory import Memory
from memforensics.target.pagemap import PAGE, Pagemap
from memforensics.target.parse import parse_status
from memforensics.target.smaps import tmpfs_devices
from memforensics.units import GIB, KIB, MIB

ARENA_ALIGN = 64 * MIB  # glibc malloc/arena.c: HEAP_MAX_SIZE = 2 * DEFAULT_MMAP_THRESHOLD_MAX, on 64-bit
_TCB_WINDOW = 16 * KIB
_TCB_SEARCH = MIB


def find_owners(
    process: Process, snapshot: Snapshot, *, known: Sequence[OwnerMark] = ()
) -> tuple[tuple[OwnerMark, ...], tuple[Loss, ...]]:
    """What can be recognised in the snapshot's mappings, ascending and without overlap, and what was not looked at.

    `known`: the marks of an earlier snapshot of the same process. Where they were is looked at first, and believed only
    as far as what stands there now bears them out. Arenas of glibc need no memory: their places are few and all tried.

    TargetGone and NoSuchProcess when it left; without the right to read its memory there are no marks, and a Loss.
    """
    anonymous = [m for m in snapshot.mappings if _is_private_anonymous(m)]
    private = [m for m in anonymous if m.rss != 0]
    try:
        memory: Memory = process.memory
        pagemap = Pagemap(process.pid, process.proc)
    except PermissionNeeded:
        lost = Loss(
            probe="owners",
            what="anonymous mappings whose content may not be read",
            count=len(private),
            reduce="run as root, or grant CAP_SYS_PTRACE",
        )
        return (), (lost,)
    with pagemap:
        look = Look(memory, pagemap, can_scan=pagemap.can_scan())
        ground, spans = Ground(), Spans(anonymous)
        ground.claim(remembered_chunks(look, spans, known))
        ground.claim(_glibc_arenas(look, private))
        ground.claim(_thread_stacks(look, process, snapshot))
        chunks, broken = chained_chunks(look, private, spans, ground)
        ground.claim(chunks)
        ground.claim(_pymalloc(look, snapshot, private, ground, known))
        ground.claim(searched_chunks(look, broken, spans, ground))
        marks = [piece for mark in ground.marks for piece in _by_mapping(look, mark, snapshot)]
    taken = Ground(marks)
    taken.claim(_by_module(snapshot))
    taken.claim(_tmpfs_files(process, snapshot))
    return tuple(taken.marks), tuple(loss for loss in look.losses() if loss.count)


def _is_private_anonymous(mapping: Mapping) -> bool:
    return mapping.path == "" and mapping.perms in ("rw-p", "rwxp")


# --- glibc --------------------------------------------------------------------------------------------------------


def _glibc_arenas(look: Look, private: Sequence[Mapping]) -> Iterator[OwnerMark]:
    """Heaps of arenas other than the main one. Trusts malloc/arena.c's heap_info at 64 MiB alignment: {ar_ptr, prev,
    size, mprotect_size}, the arena's own struct right behind its first heap's header (2.35 added pagesize: 0x30)."""
    heads: dict[int, tuple[int, int, int, int, Mapping]] = {}
    for mapping in private:
        for address in range(-(-mapping.start // ARENA_ALIGN) * ARENA_ALIGN, mapping.end, ARENA_ALIGN):
            data = look.read(address, 32)
            if data is None:
                continue
            arena, previous, size, writable = struct.unpack("<4Q", data)
            plausible = 0 < size <= writable <= ARENA_ALIGN and size % PAGE == 0 and writable % PAGE == 0
            if plausible and address + size <= mapping.end:
                heads[address] = (arena, previous, size, writable, mapping)
    for address, (arena, previous, _, writable, mapping) in heads.items():
        home = arena & -ARENA_ALIGN
        is_first = home == address and previous == 0 and arena - address in (0x20, 0x30, 0x40)
        is_further = home != address and previous != address and home in heads and previous in heads
        if is_first or is_further:
            yield OwnerMark(
                start=address,
                end=min(address + writable, mapping.end),
                kind="glibc-arena",
                detail=f"heap_info at {address:#x}, arena at {arena:#x}",
            )


# --- threads ------------------------------------------------------------------------------------------------------


def _thread_stacks(look: Look, process: Process, snapshot: Snapshot) -> Iterator[OwnerMark]:
    """Stacks that glibc made, of living threads and cached ones. Trusts the thread's descriptor (nptl/descr.h, at the
    stack's top on x86-64): it begins with a pointer to itself, again at +16; tid at +0x2d0; stackblock and its size
    further on. Looked for above a guard mapping, and above each blocked thread's stack pointer."""
    tids, main = _thread_ids(process), _inner_pid(process)
    mappings = snapshot.mappings
    seen: set[int] = set()
    for guard, mapping in pairwise(mappings):
        guarded = guard.end == mapping.start and guard.perms == "---p" and guard.path == ""
        if guarded and _is_private_anonymous(mapping):
            found = _descriptor(look, max(mapping.start, mapping.end - _TCB_WINDOW), mapping.end)
            bounds: Run | None = (mapping.start, mapping.end)
            if found is None and mapping.rss is not None and mapping.rss <= _TCB_SEARCH:  # merged with what lies above
                found = _descriptor(look, mapping.start, mapping.end)
                bounds = _stack_bounds(look, found, mapping) if found is not None else None
            if found is None or bounds is None or bounds[0] != mapping.start:
                continue
            seen.add(found)
            tid = _tid(look, found)
            if tid != main:  # the main thread's descriptor lies apart from its stack, which is [stack]
                yield _stack_mark(tid, *bounds, tids)
    by_start = [mapping.start for mapping in mappings]
    for tid, pointer in _stack_pointers(process):
        index = bisect_right(by_start, pointer) - 1
        if index < 0 or pointer >= mappings[index].end or not _is_private_anonymous(mappings[index]):
            continue
        mapping = mappings[index]
        found = _descriptor(look, pointer & -PAGE, min(mapping.end, (pointer & -PAGE) + _TCB_SEARCH))
        if found is None or found in seen:
            continue
        seen.add(found)
        bounds = _stack_bounds(look, found, mapping)
        if bounds is not None and bounds[0] <= pointer < bounds[1]:
            yield _stack_mark(_tid(look, found), *bounds, tids | {tid})


def _descriptor(look: Look, start: int, end: int) -> int | None:
    """The highest address in the range that holds a pointer to itself, twice: a pthread descriptor."""
    for first, last in reversed(look.present(start, end)):
        data = look.read_present(first, last - first)
        if data is None:
            continue
        words: tuple[int, ...] = struct.unpack(f"<{len(data) // 8}Q", data)
        for index in range(len(words) - 3, -1, -1):
            if words[index] == first + 8 * index == words[index + 2] and words[index] % 16 == 0:
                return words[index]
    return None


def _stack_bounds(look: Look, descriptor: int, mapping: Mapping) -> Run | None:
    """Where mappings are merged: the stack as its descriptor has it (stackblock, stackblock_size, guardsize)."""
    size = min(0x900, mapping.end - descriptor)
    data = look.read(descriptor, size)
    if data is None:
        return None
    words = struct.unpack(f"<{size // 8}Q", data[: size // 8 * 8])
    for block, length in pairwise(words):
        fits = block % PAGE == 0 and length % PAGE == 0 and 0 < length <= GIB
        if fits and block < descriptor < block + length and block + length - descriptor <= _TCB_SEARCH:
            return max(block, mapping.start), min(block + length, mapping.end)
    return None


def _tid(look: Look, descriptor: int) -> int:
    """The thread's id; the kernel writes 0 there when it ends (CLONE_CHILD_CLEARTID)."""
    data = look.read(descriptor + 0x2D0, 4)
    return int.from_bytes(data, "little", signed=True) if data is not None else 0


def _stack_mark(tid: int, start: int, end: int, tids: frozenset[int]) -> OwnerMark:
    if tid in tids:
        return OwnerMark(start=start, end=end, kind="thread-stack", detail=f"thread {tid}")
    return OwnerMark(start=start, end=end, kind="thread-stack-unused", detail="its thread ended; kept for the next one")


def _thread_ids(process: Process) -> frozenset[int]:
    """As the process itself knows them (in its own PID namespace)."""
    tids = process.threads()
    if _inner_pid(process) == process.pid:
        return frozenset(tids)
    inner = set()
    for tid in tids:
        try:
            words = parse_status(process.read_text(f"task/{tid}/status")).get("NSpid", "").split()
        except TargetError:
            continue  # that thread ended
        if words:
            inner.add(int(words[-1]))
    return frozenset(inner)


def _inner_pid(process: Process) -> int:
    """Its PID (and its main thread's tid) in its own PID namespace."""
    words = parse_status(process.read_text("status")).get("NSpid", "").split()
    return int(words[-1]) if words else process.pid


def _stack_pointers(process: Process) -> Iterator[tuple[int, int]]:
    """(tid, stack pointer) of each thread that is blocked; /proc/PID/task/TID/syscall says "running" of the others."""
    for tid in process.threads():
        try:
            words = process.read_text(f"task/{tid}/syscall").split()
        except (MemforensicsError, OSError):
            continue  # ended, forbidden, or no such file in this kernel
        if len(words) >= 3:
            yield tid, int(words[-2], 16)


# --- CPython ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Pools:
    """Geometry of pymalloc: Objects/obmalloc.c to 3.11, Include/internal/pycore_obmalloc.h from 3.12."""

    pool: int
    arena: int


_PYTHON = re.compile(r"(?:lib)?python3\.(\d+)t?(?:\.so.*)?|.*\.cpython-3(\d+)t?-.*\.so")
_POOL_HEADER = struct.Struct("<I4xQQQIIII")


def _pymalloc(
    look: Look, snapshot: Snapshot, private: Sequence[Mapping], ground: Ground, known: Sequence[OwnerMark]
) -> Iterator[OwnerMark]:
    """Ranges of object pools. Trusts the pool header's invariants: size class below 32, maxnextoffset = pool size minus
    block size, block count and offsets that fit. Of a large heap every n-th pool is read, of what was known fewer are
    passed over than of the rest."""
    minor = _python_minor(snapshot)
    if minor is None:
        return
    pools = _Pools(16 * KIB, MIB) if minor >= 10 else _Pools(4 * KIB, 256 * KIB)
    parts = [
        part
        for mapping in private
        for part in ground.free_parts(mapping.start, mapping.end)
        if part[1] - part[0] >= pools.pool
    ]
    before = Ground(_joined(known, pools.arena))
    of_known = [part for start, end in parts for part in before.taken_parts(start, end)]
    of_rest = [part for start, end in parts for part in before.free_parts(start, end)]
    budget = MAX_POOL_READS
    for some, share in ((of_known, 2), (of_rest, 1)):
        places = [_pool_places(look.present(*part), pools.pool) for part in some]
        total = sum(len(each) for each in places)
        stride = -(-total // (budget // share)) or 1
        budget -= total // stride
        look.unread_pools += total - total // stride
        for each in places:
            yield from _pool_runs(look, each[::stride], pools, stride)


def _joined(known: Sequence[OwnerMark], reach: int) -> list[OwnerMark]:
    """The ranges of pools of an earlier snapshot, those in reach of one another as one."""
    out: list[OwnerMark] = []
    for mark in known:
        if mark.kind == "pymalloc-arena":
            is_near = out and mark.start - out[-1].end <= reach
            start = out.pop().start if is_near else mark.start
            out.append(OwnerMark(start=start, end=mark.end, kind=mark.kind))
    return out


def _python_minor(snapshot: Snapshot) -> int | None:
    found = (_PYTHON.fullmatch(m.path.rpartition("/")[2]) for m in snapshot.mappings if m.path.startswith("/"))
    return max((int(match[1] or match[2]) for match in found if match is not None), default=None)


def _pool_places(runs: Sequence[Run], pool: int) -> Sequence[int]:
    """Addresses where a pool can begin and its first page is present."""
    if len(runs) == 1:
        return range(-(-runs[0][0] // pool) * pool, runs[0][1], pool)
    return [address for start, end in runs for address in range(-(-start // pool) * pool, end, pool)]


def _pool_runs(look: Look, places: Sequence[int], pools: _Pools, stride: int) -> Iterator[OwnerMark]:
    """Pools in reach of one another are one range: within an arena the pools not yet used lie between."""
    reach = max(pools.arena, 2 * stride * pools.pool)
    first = last = count = 0
    for address in places:
        data = look.read_present(address, _POOL_HEADER.size)
        if data is None or not _is_pool(address, data, pools.pool):
            if count and stride == 1 and not _is_unused(data):
                yield _pool_mark(first, last + pools.pool, count)
                count = 0
            continue
        if count and address - last > reach:
            yield _pool_mark(first, last + pools.pool, count)
            count = 0
        first, last, count = (first if count else address), address, count + 1
    if count:
        yield _pool_mark(first, last + pools.pool, count)


def _is_pool(address: int, data: bytes, pool: int) -> bool:
    count, free, _, _, _, size_class, next_offset, max_next = _POOL_HEADER.unpack(data)
    if size_class >= 32:
        return False
    block = (size_class + 1) * 16
    return bool(
        max_next == pool - block
        and count <= (pool - _POOL_HEADER.size) // block
        and _POOL_HEADER.size <= next_offset <= pool
        and (free == 0 or address < free < address + pool)
    )


def _is_unused(data: bytes | None) -> bool:
    """A pool of an arena that was never used is all zero, present with huge pages only."""
    return data is not None and not any(data)


def _pool_mark(start: int, end: int, count: int) -> OwnerMark:
    return OwnerMark(start=start, end=end, kind="pymalloc-arena", detail=f"{count} object pools from {start:#x}")


# --- by module and place ------------------------------------------------------------------------------------------

# Library -> kind of mark, alignment of the start of its mappings. Coarse: says what is likely, in the mark's detail.
_ALLOCATORS: tuple[tuple[re.Pattern[str], str, int], ...] = (
    (re.compile(r"libjemalloc.*\.so.*"), "jemalloc", 2 * MIB),
    (re.compile(r"libtcmalloc.*\.so.*"), "tcmalloc", MIB),
    (re.compile(r"libmimalloc.*\.so.*"), "mimalloc", 4 * MIB),
)
_COMPRESSED_HEAP_END = 32 * GIB  # JVM: compressed references reach that far; the class space follows it


def _by_module(snapshot: Snapshot) -> Iterator[OwnerMark]:
    """What a loaded allocator or JVM most likely owns, by alignment and place. The least certain of all."""
    names = {mapping.path.rpartition("/")[2] for mapping in snapshot.mappings}
    allocator = next(
        ((kind, align) for pattern, kind, align in _ALLOCATORS if any(pattern.fullmatch(name) for name in names)), None
    )
    has_jvm = "libjvm.so" in names
    for mapping in snapshot.mappings if has_jvm or allocator else ():
        if mapping.path != "" or mapping.shared or not mapping.perms.startswith("rw") or mapping.rss == 0:
            continue
        if has_jvm and mapping.start < _COMPRESSED_HEAP_END:
            kind, detail = "jvm-heap", "libjvm is loaded; below 32 GiB, where compressed references reach"
        elif has_jvm and ("x" in mapping.perms or mapping.start < 2 * _COMPRESSED_HEAP_END):
            kind, detail = "jvm-native", "libjvm is loaded; code cache or class space by its place"
        elif allocator and mapping.start % allocator[1] == 0:
            kind, detail = allocator[0], f"its library is loaded; by alignment to {allocator[1] // MIB} MiB"
        else:
            continue
        yield OwnerMark(start=mapping.start, end=mapping.end, kind=kind, detail=detail)


def _tmpfs_files(process: Process, snapshot: Snapshot) -> Iterator[OwnerMark]:
    try:
        devices = tmpfs_devices(process.read_text("mountinfo"))
    except (MemforensicsError, OSError):
        return
    for mapping in snapshot.mappings:
        if mapping.device in devices and mapping.path.startswith("/") and not mapping.path.startswith("/dev/shm/"):
            yield OwnerMark(start=mapping.start, end=mapping.end, kind="tmpfs-file", detail=f"device {mapping.device}")


def _by_mapping(look: Look, mark: OwnerMark, snapshot: Snapshot) -> Iterator[OwnerMark]:
    """A mark for each mapping that it lies in; with resident bytes where it covers only a part of that."""
    index = bisect_right(snapshot.mappings, mark.start, key=lambda m: m.start) - 1
    for mapping in takewhile(lambda m: m.start < mark.end, islice(snapshot.mappings, index, None)):
        start, end = max(mark.start, mapping.start), min(mark.end, mapping.end)
        whole = start == mapping.start and end == mapping.end
        resident = None if whole else sum(last - first for first, last in look.present(start, end))
        yield OwnerMark(start=start, end=end, kind=mark.kind, detail=mark.detail, resident_bytes=resident)
