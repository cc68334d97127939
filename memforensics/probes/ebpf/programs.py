"""The loaded programs of mmap.bpf.c, and their tables as values."""

import struct
from collections.abc import Iterator

from memforensics.probes.ebpf import layout
from memforensics.probes.ebpf.book import Counts
from memforensics.probes.ebpf.engine import Engine, RunStats, event_field_offset, hash_flags, pid_namespace
from memforensics.probes.ebpf.layout import LiveRange, RangeEvent, Setting, StackEvent
from memforensics.runtimes.cpython.kernel import PROCESS as PYTHON_PROCESS

MAX_LIVE = 1 << 20
MAX_LIVE_PREALLOCATED = 1 << 17  # where the whole table costs its memory at once
MAX_SITES = 1 << 14
MAX_RULES = 1 << 18
MAX_TARGETS = 8192
EVENT_PAGES, MISS_PAGES = 1024, 2048  # ring buffers of 4 and 8 MiB

FREE_WALKS = 4  # stacks of one class of mappings that are walked in 16 ms, be it as balanced as it may
RARITY = 128  # ... and beyond, one of so many: a power of two
SWEEP_AT = 1 << 15  # closed entries in the table of live mappings

TRACEPOINTS = {
    "syscalls:sys_exit_mmap": "on_mmap_exit",
    "syscalls:sys_enter_munmap": "on_munmap_enter",
    "syscalls:sys_exit_munmap": "on_munmap_exit",
    "syscalls:sys_enter_mremap": "on_mremap_enter",
    "syscalls:sys_exit_mremap": "on_mremap_exit",
    "syscalls:sys_exit_brk": "on_brk_exit",
    "syscalls:sys_exit_shmat": "on_shmat_exit",
    "syscalls:sys_enter_shmdt": "on_shmdt_enter",
    "sched:sched_process_fork": "on_fork",
    "sched:sched_process_exec": "on_exec",
    "sched:sched_process_exit": "on_exit",
}


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
        self._swept = 0
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
            self.sample(FREE_WALKS, RARITY)
            self.engine.attach(TRACEPOINTS)
        except BaseException:
            self.engine.close()
            raise

    def begin(self) -> None:
        self.engine.set_array("settings", Setting.BOOKING, 1)

    def sample(self, free: int, rarity: int) -> None:
        """In a balanced class of mappings, `free` stacks a window of 16 ms are walked, then one of `rarity`."""
        self.engine.set_array("settings", Setting.FREE, free)
        self.engine.set_array("settings", Setting.RARITY, rarity)

    def events(self, timeout_s: float = 0.0) -> Iterator[StackEvent | RangeEvent]:
        """What was told since the last call."""
        for data in self.engine.events(timeout_s):
            try:
                yield layout.parse_event(data, self.python)
            except (ValueError, struct.error):
                self.unreadable_events += 1

    # --- targets

    def add_target(self, pid: int, space: int, brk: int) -> bool:
        return self._targets.put(layout.TARGET_KEY.pack(pid), layout.TARGET.pack(space, brk, 0, 0, 0))

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
        """Whole mappings that stand, by space; in no order."""
        found: dict[int, list[LiveRange]] = {}
        for keys, values in self._live.batches():
            for (space, start), (length, site, born_ns, weight, gone) in zip(
                layout.LIVE_KEY.iter_unpack(keys), layout.LIVE.iter_unpack(values), strict=True
            ):
                if not gone:
                    found.setdefault(space, []).append(LiveRange(start, start + length, site, born_ns, weight))
        return found

    def take_live(self, space: int, start: int) -> LiveRange | None:
        """Takes the mapping that stands there now out of the kernel's hands. None: there is none (any more)."""
        value = self._live.take(layout.LIVE_KEY.pack(space, start))
        if value is None:
            return None
        length, site, born_ns, weight, gone = layout.LIVE.unpack(value)
        if gone:
            self._swept += 1
            return None
        return LiveRange(start, start + length, site, born_ns, weight)

    def sweep(self) -> None:
        """Frees the entries of mappings that are gone and whose addresses were not used again, when they are many."""
        if self.engine.per_cpu_sums("closed", 1)[0] - self._swept < SWEEP_AT:
            return
        for keys, values in list(self._live.batches()):
            for i, (*_, gone) in enumerate(layout.LIVE.iter_unpack(values)):
                if not gone:
                    continue
                key = keys[i * layout.LIVE_KEY.size : (i + 1) * layout.LIVE_KEY.size]
                value = self._live.take(key)
                if value is None:
                    continue
                if layout.LIVE.unpack(value)[-1]:
                    self._swept += 1
                else:
                    self._live.put(key, value, new=True)  # used again just now

    def unwalked(self, pid: int) -> int | None:
        """Mappings of a process whose stack was not looked at. None: it is no target (any more)."""
        value = self._targets.get(layout.TARGET_KEY.pack(pid))
        return layout.TARGET.unpack(value)[3] if value is not None else None

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
