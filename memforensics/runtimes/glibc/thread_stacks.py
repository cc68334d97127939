"""Stacks of living and ended threads, recognised by glibc's thread descriptors."""

import re
import struct
from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise

from memforensics.case.model import Mapping, OwnerMark
from memforensics.errors import MemforensicsError, TargetError
from memforensics.runtimes.reading import PageReader, Run
from memforensics.runtimes.scene import Scene
from memforensics.runtimes.static_data import is_private_anonymous
from memforensics.target import Process
from memforensics.target.pagemap import PAGE
from memforensics.target.parse import parse_status, status_numbers
from memforensics.units import GIB, KIB, MIB

_TCB_WINDOW = 16 * KIB
_TCB_SEARCH = MIB
_BLOCK = 64 * KIB
_WORD = re.compile(r"0x[0-9a-f]{1,16}")
_MIN_STACK = 12 * KIB  # PTHREAD_STACK_MIN is 16 KiB, guard page included


def recognise(scene: Scene) -> Iterator[OwnerMark]:
    """Stacks that glibc allocated, in use or cached, by the thread descriptor at their top (nptl/descr.h, x86-64): it
    begins with a pointer to itself, which is repeated at +16; tid is at +0x2d0, stackblock and its size follow. The
    search begins above each guard mapping and above the stack pointer of each blocked thread."""
    reader, process = scene.reader, scene.process
    tids, main = _thread_ids(process), _inner_pid(process)
    mappings = scene.snapshot.mappings
    seen: set[int] = set()
    for guard, mapping in pairwise(mappings):
        guarded = guard.end == mapping.start and guard.perms == "---p" and guard.path == ""
        if guarded and mapping.size >= _MIN_STACK and is_private_anonymous(mapping):
            found = _descriptor(reader, max(mapping.start, mapping.end - _TCB_WINDOW), mapping.end)
            bounds: Run | None = (mapping.start, mapping.end)
            if (
                found is None and mapping.rss is not None and mapping.rss <= _TCB_SEARCH
            ):  # merged with the mapping above
                found = _descriptor(reader, mapping.start, mapping.end)
                bounds = _stack_bounds(reader, found, mapping) if found is not None else None
            if found is None or bounds is None or bounds[0] != mapping.start:
                continue
            seen.add(found)
            tid = _tid(reader, found)
            if tid != main:  # the main thread's stack is [stack], its descriptor lies elsewhere
                yield _stack_mark(tid, *bounds, tids)
    by_start = [mapping.start for mapping in mappings]
    for tid, pointer in _stack_pointers(process):
        index = bisect_right(by_start, pointer) - 1
        if index < 0 or pointer >= mappings[index].end or not is_private_anonymous(mappings[index]):
            continue
        mapping = mappings[index]
        found = _descriptor(reader, pointer & -PAGE, min(mapping.end, (pointer & -PAGE) + _TCB_SEARCH))
        if found is None or found in seen:
            continue
        seen.add(found)
        bounds = _stack_bounds(reader, found, mapping)
        if bounds is not None and bounds[0] <= pointer < bounds[1]:
            yield _stack_mark(_tid(reader, found), *bounds, tids | {tid})


def _descriptor(reader: PageReader, start: int, end: int) -> int | None:
    """The highest address in the range that holds a pointer to itself, twice: a pthread descriptor."""
    for first, last in reversed(reader.present(start, end)):
        data = reader.read_present(first, last - first)
        if data is None:
            continue
        for block in range(last - 1 & -_BLOCK, (first & -_BLOCK) - 1, -_BLOCK):
            upper_bytes = (block // _BLOCK).to_bytes(6, "little")  # the upper bytes of all addresses in the block
            low, top = max(first, block) - first, min(last, block + _BLOCK) - first
            at = data.rfind(upper_bytes, low, top)
            while at >= 0:
                pos = at - 2
                address = first + pos
                pointer = address.to_bytes(8, "little")
                if address % 16 == 0 and pos >= 0 and data[pos : pos + 8] == pointer == data[pos + 16 : pos + 24]:
                    return address
                at = data.rfind(upper_bytes, low, at + 5)
    return None


def _stack_bounds(reader: PageReader, descriptor: int, mapping: Mapping) -> Run | None:
    """The bounds of a stack in a merged mapping, from its descriptor (stackblock, stackblock_size)."""
    size = min(0x900, mapping.end - descriptor)
    data = reader.read(descriptor, size)
    if data is None:
        return None
    words = struct.unpack(f"<{size // 8}Q", data[: size // 8 * 8])
    for block, length in pairwise(words):
        fits = block % PAGE == 0 and length % PAGE == 0 and 0 < length <= GIB
        if fits and block < descriptor < block + length and block + length - descriptor <= _TCB_SEARCH:
            return max(block, mapping.start), min(block + length, mapping.end)
    return None


def _tid(reader: PageReader, descriptor: int) -> int:
    """The thread's ID, which the kernel sets to 0 when the thread ends (CLONE_CHILD_CLEARTID)."""
    data = reader.read(descriptor + 0x2D0, 4)
    return int.from_bytes(data, "little", signed=True) if data is not None else 0


def _stack_mark(tid: int, start: int, end: int, tids: frozenset[int]) -> OwnerMark:
    if tid in tids:
        return OwnerMark(start=start, end=end, kind="thread-stack", detail=f"thread {tid}")
    return OwnerMark(start=start, end=end, kind="thread-stack-unused", detail="its thread ended; kept for the next one")


def _thread_ids(process: Process) -> frozenset[int]:
    """Thread IDs in the PID namespace of the process itself."""
    tids = process.threads()
    if _inner_pid(process) == process.pid:
        return frozenset(tids)
    inner: set[int] = set()
    for tid in tids:
        try:
            inside = status_numbers(parse_status(process.read_text(f"task/{tid}/status")), "NSpid")
        except TargetError:
            continue  # the thread ended
        inner.update(inside[-1:])
    return frozenset(inner)


def _inner_pid(process: Process) -> int:
    """The PID of the process, and of its main thread, in its own PID namespace."""
    return (status_numbers(process.status(), "NSpid") or (process.pid,))[-1]


def _stack_pointers(process: Process) -> Iterator[tuple[int, int]]:
    """(tid, stack pointer) of each blocked thread; for a running one /proc/PID/task/TID/syscall says "running"."""
    for tid in process.threads():
        try:
            words = process.read_text(f"task/{tid}/syscall").split()
        except (MemforensicsError, OSError):
            continue  # the thread ended, the file is forbidden, or this kernel has none
        if len(words) >= 3 and _WORD.fullmatch(words[-2]):
            yield tid, int(words[-2], 16)
