"""The ledger against /proc/PID/maps: what was not told (a full ring buffer, an operation that we do not follow) is
found there, counted and repaired.

Not everything that differs is an error: the process goes on while its maps are read. So only what is older than the
reading can be found gone, and only what two readings show, and neither the ledger nor the beginning, can be found
missing.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from memforensics.probes.ebpf.loader.layout import LiveRange
from memforensics.probes.ebpf.mmap.allocation_table import Counts
from memforensics.probes.ebpf.mmap.ledger import Span, subtract, union
from memforensics.probes.ebpf.mmap.programs import MmapPrograms
from memforensics.probes.ebpf.mmap.space import MmapSpace
from memforensics.target import Process

_LINE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+(?: +(.*))?$", re.MULTILINE)
# What MAP_ANONYMOUS, brk and shmat make, by its name (fs/proc/task_mmu.c, mm/shmem.c, fs/hugetlbfs/inode.c, ipc/shm.c)
_ANONYMOUS = re.compile(r"|\[heap\]|\[anon.*|/(?:dev/zero|anon_hugepage|SYSV[0-9a-f]{8}) \(deleted\)")


@dataclass(frozen=True, slots=True)
class Mapped:
    """Addresses that are mapped at all, and by what the ledger records; rising and disjoint."""

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


@dataclass(frozen=True, slots=True)
class Repaired:
    gone: int = 0  # ranges that the ledger had, and that are not mapped
    missing: int = 0  # ranges that are mapped, and that it had not


@dataclass(frozen=True, slots=True)
class Corrected:
    """At the end, after events were dropped. `bytes`: that `sites` had too many or too few; `unknown_bytes`: mapped
    since the account began, by code that is not known; None: what was mapped when it began is not known."""

    bytes: int
    sites: int
    unknown_bytes: int | None


class Account:
    """Of one address space. `begin` once booking has begun: what is mapped then is not looked for."""

    def __init__(self, space: MmapSpace, process: Process) -> None:
        self._space, self._process = space, process
        self._began: list[Span] | None = None
        self._read: tuple[int, Mapped] | None = None  # when, and what was mapped then
        self.next_ns = 0

    def begin(self) -> None:
        """TargetGone, PermissionNeeded."""
        self._began = mapped(self._process.read_text("maps")).anonymous

    def reconcile(self, programs: MmapPrograms, take_in: Callable[[], bool]) -> Repaired | None:
        """`take_in` handles all events so far, or says that it could not: then nothing can be found (None).
        TargetGone, PermissionNeeded."""
        with programs.exact_births():
            return self._reconcile(programs, take_in)

    def _reconcile(self, programs: MmapPrograms, take_in: Callable[[], bool]) -> Repaired | None:
        before_ns = time.monotonic_ns()  # the clock of bpf_ktime_get_ns()
        first = mapped(self._process.read_text("maps"))
        if not take_in():
            return None
        if programs.dropped():
            self._space.allocations.take_over_overlapping(self._live(programs))
        live = self._live(programs)
        gone = self._find_gone(first, live, before_ns)
        missing = self._not_known(first.anonymous, live)
        if missing:
            again = mapped(self._process.read_text("maps")).anonymous
            if not take_in():
                return Repaired(gone)
            missing = self._not_known(subtract(missing, subtract(missing, again)), self._live(programs))
            for start, end in missing:
                self._space.allocations.adopt(start, end, before_ns)
        return Repaired(gone, len(missing))

    def read(self) -> None:
        """Notes what is mapped, for `correct`: just before the programs are detached, with exact births. TargetGone,
        PermissionNeeded."""
        self._read = time.monotonic_ns(), mapped(self._process.read_text("maps"))

    def hold(self, live: list[LiveRange]) -> None:
        """After events were dropped, and the programs detached: holds the ranges against what was mapped just before.
        `live`: the kernel's table of this space."""
        live = self._space.resolve_unmaps(live)
        found = self._space.allocations.take_over_overlapping(live)
        if self._read is not None:
            before_ns, first = self._read
            self._find_gone(first, [entry for entry in live if entry not in found], before_ns)

    def correct(self, kernel: list[tuple[int, Counts]], live: list[LiveRange]) -> Corrected | None:
        """After `hold`: holds the counters (`kernel`: the kernel's) against the ranges. What was mapped just before the
        end and still is, and is in no range, is of unknown origin; that it was unmapped and mapped again just between
        is possible. None: nothing was read. TargetGone, PermissionNeeded."""
        if self._read is None:
            return None
        before_ns, first = self._read
        after = mapped(self._process.read_text("maps")).anonymous
        table = self._space.allocations
        had = table.outstanding(kernel)
        table.correct(kernel, live)
        changes = [size - had.get(site, (0, 0))[0] for site, (size, _) in table.outstanding(kernel).items()]
        missing = self._not_known(subtract(first.anonymous, subtract(first.anonymous, after)), live)
        for start, end in missing:
            table.adopt(start, end, before_ns)
        unknown = sum(end - start for start, end in missing) if self._began is not None else None
        return Corrected(sum(map(abs, changes)), sum(map(bool, changes)), unknown)

    def _live(self, programs: MmapPrograms) -> list[LiveRange]:
        return self._space.resolve_unmaps(programs.live().get(self._space.number, []))

    def _find_gone(self, now: Mapped, live: list[LiveRange], before_ns: int) -> int:
        table = self._space.allocations
        spans = sorted((entry.start, entry.end) for entry in live if entry.born_ns < before_ns)
        holes = subtract(union(spans), now.all)
        if holes:
            for entry in live:
                if entry.born_ns < before_ns and any(entry.start < end and entry.end > start for start, end in holes):
                    table.take_over(entry)
        holes += subtract([(p.start, p.end) for p in table.ledger if p.block.born_ns < before_ns], now.all)
        return sum(table.repair(start, end, before_ns) for start, end in union(holes))

    def _not_known(self, spans: list[Span], live: list[LiveRange]) -> list[Span]:
        if self._began is None:
            return []
        known = [*((e.start, e.end) for e in live), *((p.start, p.end) for p in self._space.allocations.ledger)]
        return subtract(subtract(spans, self._began), union(known))
