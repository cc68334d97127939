"""Loaded programs that walk stacks (stacks.bpf.h): what mmap.bpf.c and faults.bpf.c have in common, as values."""

import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace

from memforensics.probes.ebpf.loader import layout
from memforensics.probes.ebpf.loader.engine import Engine, RunStats, event_field_offset, hash_flags, pid_namespace
from memforensics.probes.ebpf.loader.layout import RangeEvent, StackEvent
from memforensics.probes.ebpf.loader.target_table import SLOTS, Targets
from memforensics.runtimes.cpython.kernel import PROCESS as PYTHON_PROCESS
from memforensics.runtimes.cpython.kernel import THREADS

COPIES_AT_ONCE = 16  # each is 16 KiB, and is unwound
_SPACE = struct.Struct("<Q")  # a target begins with it


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much the kernel keeps, at most. Ring buffers in pages; `rules` and what a program keeps of its own is less
    on kernels where a table costs all its memory at once."""

    sites: int = 1 << 14
    rules: int = 1 << 18
    rules_preallocated: int = 1 << 15
    misses: int = 1 << 14
    targets: int = 8192
    event_pages: int = 1024
    miss_pages: int = 2048


@dataclass(frozen=True, slots=True)
class Settings:
    """struct settings of stacks.bpf.h."""

    recording: int = 0
    window_budget: int = 0
    sample_period: int = 1
    byte_sample_period: int = 0
    exact: int = 0


class StackPrograms:
    """Armed from `arm` on, booking from `begin` on, gone after `close`. ToolMissing, PermissionNeeded, ProbeFailed."""

    LOSSES: Sequence[tuple[str, str]]  # LOSS_* of the source, in its order: what, and what reduces it

    def __init__(
        self, source: str, defines: Mapping[str, int], target: struct.Struct, *, python: bool, sizes: Sizes
    ) -> None:
        device, inode = pid_namespace()
        flags = hash_flags()
        self.python = python
        self.namespaced = inode != 0  # the kernel's fork events then do not give our PIDs
        self.unreadable_events = 0
        self._settings = Settings()
        self.engine = Engine(
            source,
            {
                "PAGE_BYTES": mmap.PAGESIZE,
                "HASH_FLAGS": flags,
                "MAX_SITES": sizes.sites,
                "MAX_RULES": sizes.rules if flags else sizes.rules_preallocated,
                "MAX_MISSES": sizes.misses,
                "SLOTS": SLOTS,
                "MAX_TARGETS": sizes.targets,
                "EVENT_PAGES": sizes.event_pages,
                "MISS_PAGES": sizes.miss_pages,
                "FORK_CHILD_PID": event_field_offset("sched/sched_process_fork", "child_pid"),
                "PIDNS_DEVICE": device,
                "PIDNS_INODE": inode,
                "WITH_PYTHON": int(python),
                **defines,
            },
        )
        try:
            for index, function in enumerate(
                ("on_walk", "on_python" if python else "on_record", "on_record", "on_miss")
            ):
                self.engine.tail_call("programs", index, function)
            self.engine.open_ring("events")
            self.engine.open_ring("copies", COPIES_AT_ONCE)
            self._targets = Targets(self.engine, target)
            self._rules = self.engine.table("rules", layout.RULE_KEY, layout.RULE)
            self._run_times = self.engine.table("run_times", layout.INDEX, layout.RUN_TIME)
            self._settings_table = self.engine.table("settings", layout.INDEX, layout.SETTINGS)
            self._pythons = (
                self.engine.raw_table("py_processes", layout.TARGET_KEY.size, PYTHON_PROCESS.size) if python else None
            )
            self._python_threads = (
                self.engine.table("py_thread_states", layout.PYTHON_THREAD_KEY, THREADS) if python else None
            )
        except BaseException:
            self.engine.close()
            raise

    def arm(self, tracepoints: Mapping[str, str]) -> None:
        try:
            self.engine.attach(tracepoints)
        except BaseException:
            self.engine.close()
            raise

    def begin(self) -> None:
        self.set(recording=1)

    def set(self, **changes: int) -> None:
        """Changes fields of `Settings`."""
        self._settings = replace(self._settings, **changes)
        self._settings_table.put(layout.INDEX.pack(0), layout.SETTINGS.pack(*astuple(self._settings)))

    @property
    def settings(self) -> Settings:
        return self._settings

    def events(self, timeout_s: float = 0.0) -> Iterator[StackEvent | RangeEvent]:
        """What was told since the last call; it need not be all (Engine.has_read)."""
        for data in self.engine.events(timeout_s):
            try:
                yield layout.parse_event(data, self.python)
            except (ValueError, struct.error):
                self.unreadable_events += 1

    # --- targets

    def remove_target(self, pid: int) -> None:
        self._targets.remove(pid)

    def space_of(self, pid: int) -> int | None:
        """The number of its address space, which an exec changes. None: it is no target (any more)."""
        value = self._targets.get(pid)
        return int(_SPACE.unpack_from(value)[0]) if value is not None else None

    def add_python(self, pid: int, packed: bytes) -> None:
        if self._pythons is not None:
            self._pythons.put(layout.TARGET_KEY.pack(pid), packed)

    def add_python_thread(self, pid: int, tid: int, packed: bytes) -> None:
        if self._python_threads is not None:
            self._python_threads.put(layout.PYTHON_THREAD_KEY.pack(pid << 32 | tid), packed)

    def remove_python(self, pid: int) -> None:
        if self._pythons is not None:
            self._pythons.remove(layout.TARGET_KEY.pack(pid))

    # --- rules

    def put_rule(self, space: int, pc: int, packed: bytes) -> bool:
        return self._rules.put(layout.RULE_KEY.pack(space, pc), packed)

    def drop_rule(self, space: int, pc: int) -> None:
        self._rules.remove(layout.RULE_KEY.pack(space, pc))

    # --- how it went

    def losses(self) -> list[tuple[str, str, int]]:
        """(what, what reduces it, count), of the kernel's side."""
        counts = self.engine.per_cpu_sums("losses", len(self.LOSSES))
        out = [(what, reduce, count) for (what, reduce), count in zip(self.LOSSES, counts, strict=True)]
        return [*out, ("events that could not be parsed", "", self.unreadable_events)]

    def dropped(self) -> int:
        """Events for which the ring buffer had no room. Each of them may be one that the account needs."""
        return self.engine.per_cpu_sums("losses", 1)[0]

    def run_stats(self) -> RunStats | None:
        """All runs, and those of them for what is traced."""
        stats = self.engine.run_stats()
        if stats is None:
            return None
        each = self._run_times.get(layout.INDEX.pack(0)) or b""
        counted = [layout.RUN_TIME.unpack_from(each, at)[:2] for at in range(0, len(each), layout.RUN_TIME.size)]
        runs, run_ns = (sum(column) for column in zip(*counted, strict=True)) if counted else (0, 0)
        return replace(stats, traced_runs=runs, traced_ns=run_ns)

    def close(self) -> None:
        self.engine.close()
