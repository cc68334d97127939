"""What the ledger asks of /proc/PID/maps. Pure: takes its text."""

import re
from dataclasses import dataclass

from memforensics.probes.ebpf.mmap.ledger import Span, union

_LINE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+(?: +(.*))?$", re.MULTILINE)
# The names of what MAP_ANONYMOUS, brk and shmat make (fs/proc/task_mmu.c, mm/shmem.c, fs/hugetlbfs/inode.c, ipc/shm.c)
_ANONYMOUS = re.compile(r"|\[heap\]|\[anon.*|/(?:dev/zero|anon_hugepage|SYSV[0-9a-f]{8}) \(deleted\)")


@dataclass(frozen=True, slots=True)
class Mapped:
    """All mapped addresses, and those of memory that the ledger records; rising and disjoint."""

    all: list[Span]
    anonymous: list[Span]


def mapped(maps: str) -> Mapped:
    every: list[Span] = []
    anonymous: list[Span] = []
    for start, end, name in _LINE.findall(maps):
        span = int(start, 16), int(end, 16)
        every.append(span)
        if not name or _ANONYMOUS.fullmatch(name):
            anonymous.append(span)
    return Mapped(union(every), union(anonymous))


def heap_end(maps: str) -> int:
    """The program break, in whole pages; 0 where there is no heap yet.

    The kernel names every mapping below the break "[heap]" (fs/proc/task_mmu.c), and there may be several: what a child
    adds after fork is not merged with what it inherited (mm/vma.c, is_mergeable_anon_vma), and mprotect splits it too.
    The last of them ends at the break.
    """
    ends = re.findall(r"^[0-9a-f]+-([0-9a-f]+) .* \[heap\]$", maps, re.MULTILINE)
    return max((int(end, 16) for end in ends), default=0)


def segment_at(maps: str, start: int) -> int | None:
    """The size of the mapping that begins there."""
    found = re.search(rf"^0*{start:x}-([0-9a-f]+) ", maps, re.MULTILINE)
    return int(found[1], 16) - start if found else None
