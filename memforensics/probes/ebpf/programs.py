"""The loaded programs of mmap.bpf.c, and their tables as values."""

import struct
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

from memforensics.probes.ebpf import layout
from memforensics.probes.ebpf.book import Counts
from memforensics.probes.ebpf.engine import Engine, RunStats, event_field_offset, hash_flags, pid_namespace
from memforensics.probes.ebpf.layout import RangeEvent, StackEvent
from memforensics.runtimes.cpython.kernel import PROCESS as PYTHON_PROCESS

MAX_LIVE = 1 << 20
MAX_LIVE_PREALLOCATED = 1 << 17  # where the whole table costs its memory at once
MAX_SITES = 1 << 14
MAX_RULES = 1 << 18
MAX_TARGETS = 8192
EVENT_PAGES, MISS_PAGES = 1024, 2048  # ring buffers of 4 and 8 MiB

TRACEPOINTS = {
    "syscalls:sys_exit_mmap": "on_mmap_exit",
    "syscalls:sys_enter_munmap": "on_munmap_enter",
    "syscalls:sys_exit_munmap": "on_munmap_exit",
    "syscalls:sys_enter_mremap": "on_mremap_enter",
    "syscalls:sys_exit_mremap": "on_mremap_exit",
    "syscalls:sys_exit_brk": "on_brk_exit",
    "sched:sched_process_fork": "on_fork",
    "sched:sched_process_exec": "on_exec",
    "sched:sched_process_exit": "on_exit",
}


class LiveRange(NamedTuple):
    """One whole mapping in the kernel's table."""

    start: int
    end: int
    site: int
    born_ns: int


class _Overlaps:
    """Ranges by rising start, that may overlap: what replaced a part of an older one lies in it."""

    def __init__(self, ranges: list[LiveRange]) -> None:
        self._ranges = ranges
        self._furthest = list(accumulate((r.end for r in ranges), max))  # end of any range so far

    def find(self, start: int, end: int) -> Iterator[LiveRange]:
        at = bisect_right(self._furthest, start)
        for found in self._ranges[at:]:
            if found.start >= end:
                return
            if found.end > start:
                yield found


class MmapPrograms:
    """Armed from the constructor on, booking from `begin` on, gone after `close`.

    ToolMissing, PermissionNeeded, ProbeFailed.
    """

    def __init__(self, *, files: bool, python: bool) -> None:
        device, inode = pid_namespace()
        flags = hash_flags()
        self.python = python
        self.namespaced = inode != 0  # the kernel's fork events then do not give our PIDs
        self.unreadable_events = 0
        self._snapshot: dict[int, _Overlaps] | None = None
        self.engine = Engine(
            "mmap.bpf.c",
            {
                "HASH_FLAGS": flags,
                "MAX_LIVE": MAX_LIVE if flags else MAX_LIVE_PREALLOCATED,
                "MAX_SITES": MAX_SITES,
                "MAX_RULES": MAX_RULES if flags else MAX_RULES // 8,
                "MAX_TARGETS": MAX_TARGETS,
                "EVENT_PAGES": EVENT_PAGES,
                "MISS_PAGES": MISS_PAGES,
                "FORK_CHILD_PID": event_field_offset("sched/sched_process_fork", "child_pid"),
                "TRACK_FILES": int(files),
                "PIDNS_DEVICE": device,
                "PIDNS_INODE": inode,
                "WITH_PYTHON": int(python),
            },
        )
        try:
            self.engine.tail_call("programs", 0, "on_walk")
            self.engine.tail_call("programs", 1, "on_python" if python else "on_book")
            self.engine.tail_call("programs", 2, "on_book")
            self.engine.open_ring("events")
            self.engine.open_ring("copies")
            self._targets = self.engine.table("targets", layout.TARGET_KEY, layout.TARGET)
            self._live = self.engine.table("live", layout.LIVE_KEY, layout.LIVE)
            self._sites = self.engine.table("sites", layout.SITE_KEY, layout.SITE)
            self._rules = self.engine.table("rules", layout.RULE_KEY, layout.RULE)
            self._pythons = (
                self.engine.raw_table("py_processes", layout.TARGET_KEY.size, PYTHON_PROCESS.size) if python else None
            )
            self.engine.attach(TRACEPOINTS)
        except BaseException:
            self.engine.close()
            raise

    def begin(self) -> None:
        self.engine.set_array("booking", 0, 1)

    def events(self, timeout_s: float = 0.0) -> Iterator[StackEvent | RangeEvent]:
        """What was told since the last call."""
        self._snapshot = None
        for data in self.engine.events(timeout_s):
            try:
                yield layout.parse_event(data, self.python)
            except (ValueError, struct.error):
                self.unreadable_events += 1

    # --- targets

    def add_target(self, pid: int, space: int, brk: int) -> bool:
        return self._targets.put(layout.TARGET_KEY.pack(pid), layout.TARGET.pack(space, brk, 0))

    def remove_target(self, pid: int) -> None:
        self._targets.remove(layout.TARGET_KEY.pack(pid))

    def add_python(self, pid: int, packed: bytes) -> None:
        if self._pythons is not None:
            self._pythons.put(layout.TARGET_KEY.pack(pid), packed)

    def remove_python(self, pid: int) -> None:
        if self._pythons is not None:
            self._pythons.remove(layout.TARGET_KEY.pack(pid))

    # --- rules

    def put_rule(self, space: int, pc: int, packed: bytes) -> bool:
        return self._rules.put(layout.RULE_KEY.pack(space, pc), packed)

    def drop_rule(self, space: int, pc: int) -> None:
        self._rules.remove(layout.RULE_KEY.pack(space, pc))

    # --- the account

    def live(self) -> dict[int, list[LiveRange]]:
        """Whole mappings that stand, by space and rising start."""
        found: dict[int, list[LiveRange]] = {}
        for key, value in self._live.items():
            space, start = layout.LIVE_KEY.unpack(key)
            length, site, born_ns = layout.LIVE.unpack(value)
            found.setdefault(space, []).append(LiveRange(start, start + length, site, born_ns))
        for ranges in found.values():
            ranges.sort()
        return found

    def take_overlapping(self, space: int, start: int, end: int, before_ns: int) -> Iterator[LiveRange]:
        """The kernel's whole mappings in a range that was cut, taken out of its hands. The table is read once for all
        the events that came with one call of `events`: what stood at the time of any of them and still stands is in
        it."""
        if self._snapshot is None:
            self._snapshot = {number: _Overlaps(ranges) for number, ranges in self.live().items()}
        known = self._snapshot.get(space)
        for found in known.find(start, end) if known is not None else ():
            if found.born_ns < before_ns and self.take_live(space, found.start):
                yield found

    def take_live(self, space: int, start: int) -> bool:
        """Takes one mapping out of the kernel's hands. False when it went by itself meanwhile."""
        return self._live.remove(layout.LIVE_KEY.pack(space, start))

    def counts(self) -> Iterator[tuple[int, int, Counts]]:
        """(space, site, counts)."""
        for key, value in self._sites.items():
            space, site = layout.SITE_KEY.unpack(key)
            yield space, site, Counts(*layout.SITE.unpack(value))

    def forget(self, space: int) -> None:
        """An address space ended."""
        for found in self.live().get(space, []):
            self.take_live(space, found.start)
        for number, site, _ in list(self.counts()):
            if number == space:
                self._sites.remove(layout.SITE_KEY.pack(space, site))

    # --- how it went

    def losses(self) -> list[tuple[str, str, int]]:
        """(what, what reduces it, count), of the kernel's side."""
        counts = self.engine.per_cpu_sums("losses", len(layout.LOSSES))
        out = [(what, reduce, count) for (what, reduce), count in zip(layout.LOSSES, counts, strict=True)]
        return [*out, ("events that could not be parsed", "", self.unreadable_events)]

    def run_stats(self) -> RunStats | None:
        return self.engine.run_stats()

    def close(self) -> None:
        self.engine.close()
