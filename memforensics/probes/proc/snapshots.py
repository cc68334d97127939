"""All mappings of the target at one time, with their resident bytes.

The readers give the same result, with None for what they cannot know:

- pagemap: maps and PAGEMAP_SCAN (kernel 6.7+): rss, anonymous and huge pages, in calls of less than half a millisecond;
- entries: maps and the entries of pagemap, on any kernel: rss and anonymous. 2 ms a GiB of address space, used or not;
- smaps: every field. It holds the target's mmap lock while the kernel walks the page tables of a mapping, 9 ms a
  resident GiB. `auto` takes it for small processes, and where neither pagemap nor entries will do;
- rollup: sizes and names, and the sums of smaps_rollup, PSS among them. It stalls the target as smaps does;
- maps, procmap (PROCMAP_QUERY, kernel 6.11+): sizes and names only.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from operator import le
from typing import Literal

from memforensics.case.model import Loss, Mapping, OwnerMark, Rollup, Snapshot
from memforensics.errors import MemforensicsError, PermissionNeeded, ProbeFailed, TargetGone
from memforensics.probes.base import Availability, Budget, Evidence
from memforensics.probes.proc.owners import find_owners
from memforensics.probes.proc.snapshot_cache import SnapshotCache
from memforensics.target import Process
from memforensics.target.pagemap import Pagemap
from memforensics.target.parse import parse_rollup
from memforensics.target.procmap import ProcMap
from memforensics.target.smaps import parse_smaps
from memforensics.units import GIB, MIB, NS_PER_S

Reader = Literal["auto", "smaps", "pagemap", "entries", "rollup", "maps", "procmap"]
READERS: tuple[Reader, ...] = Reader.__args__  # type: ignore[attr-defined]

SMAPS_UP_TO_RSS = 64 * MIB  # smaps stalls the target for 0.6 ms then
SMAPS_UP_TO_MAPPINGS = 1000
ENTRIES_UP_TO = 16 * GIB  # of address space, plus four times RSS: beyond it smaps is faster
_SLACK_BYTES, _SLACK_SHARE = MIB, 128  # between the sum of entries and the kernel's figure


def take_snapshot(
    process: Process,
    reader: Reader = "auto",
    *,
    marks: bool = True,
    known: Sequence[OwnerMark] = (),
    cache: SnapshotCache | None = None,
    clock: Callable[[], int] = time.monotonic_ns,
) -> tuple[Snapshot, tuple[Loss, ...]]:
    """One Snapshot with the kernel's own sums and, with `marks`, the owners of its mappings.

    `cache` carries figures and marks from one snapshot to the next: figures of unchanged mappings are kept for a while,
    and owners are first looked for where they were (a block that was merged with other mappings is hard to find anew).
    `known`: such marks without a cache.

    TargetGone, PermissionNeeded; ProbeFailed if the named reader does not work here.
    """
    began = clock()
    if cache is not None:
        cache.use_for(process)
    used, mappings, unparsed = _read(process, reader, cache, began)
    if not mappings:
        raise TargetGone(process.pid, "it has no mappings left (it is exiting)")
    mappings = newest_only(mappings)
    snapshot = Snapshot(
        pid=process.pid,
        t_ns=began,
        reader=used,
        mappings=mappings,
        rollup=_rollup(process, reader),  # after the walk: pages added meanwhile make a positive difference
        unparsed_lines=unparsed,
        read_ms=(clock() - began) / 1e6,
    )
    losses = [
        Loss(
            probe="snapshots", what=f"lines of {used} not understood", count=unparsed, reduce="please report the kernel"
        )
    ]
    if marks:
        negative = cache.negative if cache else None
        found, lost = find_owners(process, snapshot, known=known or (cache.marks if cache else ()), cache=negative)
        snapshot = replace(snapshot, marks=found)
        losses += lost
        if cache is not None:
            cache.marks = found
            cache.negative.next_snapshot()
    return snapshot, tuple(loss for loss in losses if loss.count)


def _read(
    process: Process, reader: Reader, cache: SnapshotCache | None, now_ns: int
) -> tuple[str, tuple[Mapping, ...], int]:
    if reader == "auto" and not _is_small(process):
        with contextlib.suppress(ProbeFailed, PermissionNeeded):  # then smaps
            return _by_pages(process, cache, now_ns)
    if reader in ("pagemap", "entries"):
        return _by_pages(process, cache, now_ns, reader)
    if reader == "procmap":
        with ProcMap(process.pid, process.proc) as procmap:
            return "procmap-query", tuple(procmap.all()), 0
    if reader in ("maps", "rollup"):
        maps = process.maps()
        return reader, maps.mappings, maps.unparsed_lines
    smaps = process.smaps()
    return "smaps", smaps.mappings, smaps.unparsed_lines


def newest_only(mappings: tuple[Mapping, ...]) -> tuple[Mapping, ...]:
    """Of mappings that overlap, the last. The kernel prints maps and smaps a page at a time and continues where the
    last mapping ended (fs/proc/task_mmu.c, m_start()): one that merged with it meanwhile is printed again, whole."""
    if all(map(le, [mapping.end for mapping in mappings], [mapping.start for mapping in mappings[1:]])):
        return mappings
    kept: list[Mapping] = []
    for mapping in mappings:
        while kept and kept[-1].end > mapping.start:
            kept.pop()
        kept.append(mapping)
    return tuple(kept)


def _is_small(process: Process) -> bool:
    """Whether reading smaps is cheap for the target and for us."""
    return (
        process.resident_bytes() <= SMAPS_UP_TO_RSS and process.read_bytes("maps").count(b"\n") <= SMAPS_UP_TO_MAPPINGS
    )


def _rollup(process: Process, reader: Reader) -> Rollup | None:
    rollup = parse_rollup(process.read_text("status"))
    if reader != "rollup" or rollup is None:
        return rollup
    for sums in parse_smaps(process.read_text("smaps_rollup")).mappings[-1:]:
        huge = {name: getattr(sums, name) for name in ("anon_huge", "shmem_huge", "file_huge")}
        rollup = replace(rollup, pss=sums.pss, **huge)
    return rollup


def _by_pages(
    process: Process, cache: SnapshotCache | None, now_ns: int, reader: Reader = "auto"
) -> tuple[str, tuple[Mapping, ...], int]:
    read_ns = None if cache is None else now_ns
    cache = cache or SnapshotCache()
    with Pagemap(process.pid, process.proc, may_scan=reader != "entries") as pagemap:
        if pagemap.can_scan():
            return "pagemap-scan", *cache.read(process, pagemap, read_ns)
        if reader == "pagemap":
            raise ProbeFailed(
                "this kernel has no PAGEMAP_SCAN", why="it came with Linux 6.7", enable="--reader entries (or auto)"
            )
        before = process.sample()
        if reader == "auto" and (before.vm_size or 0) > ENTRIES_UP_TO + 4 * before.rss:
            raise ProbeFailed("its address space is too large to read by entries")
        mappings, unparsed = cache.read(process, pagemap, read_ns)
    surplus = sum(mapping.rss or 0 for mapping in mappings) - process.resident_bytes()
    if reader == "auto" and surplus > max(_SLACK_BYTES, before.rss // _SLACK_SHARE):
        raise ProbeFailed("the zero page cannot be distinguished from memory without CAP_SYS_ADMIN")
    return "pagemap-entries", mappings, unparsed


# --- the probe ----------------------------------------------------------------------------------------------------


class Snapshots:
    """A probe: a Snapshot at the start, one every `interval_s`, and one at the end."""

    name = "snapshots"

    def __init__(
        self, interval_s: float = 10.0, reader: Reader = "auto", *, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._interval_ns, self._reader, self._clock = int(interval_s * NS_PER_S), reader, clock
        self._process: Process | None = None
        self._last_ns: int | None = None
        self._cache = SnapshotCache()
        self._losses: dict[str, Loss] = {}

    def availability(self, target: Process) -> Availability:
        try:
            target.read_bytes("maps")
        except PermissionNeeded as error:
            return Availability("unavailable", error.why, error.enable)
        try:
            with Pagemap(target.pid, target.proc) as pagemap:
                if pagemap.can_scan():
                    return Availability("ok")
                return Availability("ok", "by entries or smaps: this kernel has no PAGEMAP_SCAN (6.7+)")
        except MemforensicsError as error:
            return Availability("partial", f"no pagemap: {error}", "CAP_SYS_PTRACE; see: memforensics doctor")

    def open(self, target: Process, budget: Budget) -> None:
        self._process, self._last_ns, self._cache = target, None, SnapshotCache()

    def poll(self) -> Iterable[Evidence]:
        if self._process is None:
            return []
        if self._last_ns is not None and self._clock() - self._last_ns < self._interval_ns:
            return []
        return [self._take(self._process)]

    def close(self) -> Iterable[Evidence]:
        process, self._process = self._process, None
        if process is None:
            return []
        out: list[Evidence] = []
        with contextlib.suppress(MemforensicsError):  # it left: the snapshots before remain
            out.append(self._take(process))
        return [*out, *self._losses.values()]

    def _take(self, process: Process) -> Snapshot:
        snapshot, losses = take_snapshot(process, self._reader, cache=self._cache, clock=self._clock)
        self._last_ns = snapshot.t_ns
        for loss in losses:
            before = self._losses.get(loss.what)
            self._losses[loss.what] = replace(loss, count=loss.count + (before.count if before else 0))
        return snapshot
