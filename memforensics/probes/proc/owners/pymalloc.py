"""Ranges of CPython's object pools, by the invariants of their headers."""

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from memforensics.case.model import Mapping, OwnerMark, Snapshot
from memforensics.probes.proc.claimed_ranges import MAX_POOL_READS, Ground, Look, Run
from memforensics.units import KIB, MIB


@dataclass(frozen=True, slots=True)
class _Pools:
    """Geometry of pymalloc: Objects/obmalloc.c to 3.11, Include/internal/pycore_obmalloc.h from 3.12."""

    pool: int
    arena: int


_PYTHON = re.compile(r"(?:lib)?python3\.(\d+)t?(?:\.so.*)?|.*\.cpython-3(\d+)t?-.*\.so")
_POOL_HEADER = struct.Struct("<I4xQQQIIII")


def pymalloc(
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
    """A pool of an arena that was never used is all zero, present with huge pages only."""
    return data is not None and not any(data)


def _pool_mark(start: int, end: int, count: int) -> OwnerMark:
    return OwnerMark(start=start, end=end, kind="pymalloc-arena", detail=f"{count} object pools from {start:#x}")
