"""CPython's object pools, recognised by the invariants of their headers."""

import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from memforensics.case.model import OwnerMark
from memforensics.runtimes.reading import MAX_POOL_READS, PageReader, Run
from memforensics.runtimes.scene import ClaimedRanges, Scene
from memforensics.target.realtime_priority import realtime_priority
from memforensics.text import basename
from memforensics.units import KIB, MIB


@dataclass(frozen=True, slots=True)
class _Pools:
    """Sizes in bytes: Objects/obmalloc.c up to 3.11, Include/internal/pycore_obmalloc.h since 3.12."""

    pool: int
    arena: int


_PYTHON = re.compile(r"(?:lib)?python3\.(\d+)t?(?:\.so.*)?|.*\.cpython-3(\d+)t?-.*\.so")
_POOL_HEADER = struct.Struct("<I4xQQQIIII")


def recognise(scene: Scene) -> Iterator[OwnerMark]:
    """Ranges of object pools. A pool header has a size class below 32, maxnextoffset = pool size minus block size, and
    a block count and offsets that fit. In a large heap every n-th pool is read, with a smaller n where the previous
    snapshot had pools."""
    minor = _python_minor(scene.modules)
    if minor is not None:
        with realtime_priority:
            yield from _pool_ranges(scene, minor)


def _pool_ranges(scene: Scene, minor: int) -> Iterator[OwnerMark]:
    pools = _Pools(16 * KIB, MIB) if minor >= 10 else _Pools(4 * KIB, 256 * KIB)
    parts = [
        part
        for mapping in scene.resident
        for part in scene.claimed.free_parts(mapping.start, mapping.end)
        if part[1] - part[0] >= pools.pool
    ]
    previous = ClaimedRanges(_previous_ranges(scene.known, pools.arena))
    of_known = [part for start, end in parts for part in previous.claimed_parts(start, end)]
    of_rest = [part for start, end in parts for part in previous.free_parts(start, end)]
    budget = MAX_POOL_READS
    for ranges, share in ((of_known, 2), (of_rest, 1)):
        places = [_pool_places(scene.reader.present(*part), pools.pool) for part in ranges]
        total = sum(len(each) for each in places)
        stride = -(-total // (budget // share)) or 1
        budget -= total // stride
        scene.reader.unread["pools"] += total - total // stride
        for each in places:
            yield from _pool_runs(scene.reader, each[::stride], pools, stride)


def _previous_ranges(known: Sequence[OwnerMark], reach: int) -> list[OwnerMark]:
    """The pool ranges of the previous snapshot; ranges at most `reach` bytes apart become one."""
    out: list[OwnerMark] = []
    for mark in known:
        if mark.kind == "pymalloc-arena":
            is_near = out and mark.start - out[-1].end <= reach
            start = out.pop().start if is_near else mark.start
            out.append(OwnerMark(start=start, end=mark.end, kind=mark.kind))
    return out


def _python_minor(modules: Iterable[str]) -> int | None:
    found = (_PYTHON.fullmatch(basename(path)) for path in modules if path.startswith("/"))
    return max((int(match[1] or match[2]) for match in found if match is not None), default=None)


def _pool_places(runs: Sequence[Run], pool: int) -> Sequence[int]:
    """Addresses where a pool can begin and the first page is present."""
    if len(runs) == 1:
        return range(-(-runs[0][0] // pool) * pool, runs[0][1], pool)
    return [address for start, end in runs for address in range(-(-start // pool) * pool, end, pool)]


def _pool_runs(reader: PageReader, places: Sequence[int], pools: _Pools, stride: int) -> Iterator[OwnerMark]:
    """Ranges of pools. Pools of one arena are one range: the arena's unused pools lie between them."""
    reach = max(pools.arena, 2 * stride * pools.pool)
    first = last = count = 0
    for address in places:
        data = reader.read_present(address, _POOL_HEADER.size)
        if data is None or not is_pool(address, data, pools.pool):
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


def is_pool(address: int, data: bytes, pool: int) -> bool:
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
    """A pool that was never used is all zero; it is present only in a huge page."""
    return data is not None and not any(data)


def _pool_mark(start: int, end: int, count: int) -> OwnerMark:
    return OwnerMark(start=start, end=end, kind="pymalloc-arena", detail=f"{count} object pools from {start:#x}")
