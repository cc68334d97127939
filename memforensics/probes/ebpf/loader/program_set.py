"""A loaded set of programs that walk stacks: what mmap.bpf.c and faults.bpf.c share through stacks.bpf.h."""

import mmap
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

from memforensics.probes.ebpf.loader import layout
from memforensics.probes.ebpf.loader.engine import Engine, RunStats, event_field_offset, hash_flags, pid_namespace
from memforensics.probes.ebpf.loader.layout import RangeEvent, StackEvent
from memforensics.probes.ebpf.loader.target_table import SLOTS, TargetTable
from memforensics.runtimes.cpython.kernel import PROCESS as PYTHON_PROCESS
from memforensics.runtimes.cpython.kernel import THREADS

COPIES_PER_READ = 16  # each has 16 KiB and is unwound

LossRow = tuple[str, str, int]  # what, what reduces it, how often


@dataclass(frozen=True, slots=True)
class Sizes:
    """The most that the kernel keeps. Ring buffers in pages. `rules_preallocated`: on kernels where a table takes all
    its memory at once."""

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


@dataclass(frozen=True, slots=True)
class Source:
    """One of our C sources and the shapes of its tables. `target`: struct target; its first word is the number of the
    address space. `count`: makes a value of a site's counters, struct site. `losses`: what each LOSS_* of the source
    counts, in its order, and what reduces it. `skipped_field`: of struct target, the field `stacks_skipped`."""

    name: str
    target: struct.Struct
    site: struct.Struct
    count: Callable[..., Any]
    losses: Sequence[tuple[str, str]]
    skipped_field: int


class StackPrograms:
    """Armed from `arm` on, recording from `start_recording` on, gone after `close`. ToolMissing, PermissionNeeded,
    ProbeFailed."""

    def __init__(self, source: Source, defines: Mapping[str, int], *, python: bool, sizes: Sizes) -> None:
        device, inode = pid_namespace()
        flags = hash_flags()
        self.source, self.python = source, python
        self.namespaced = inode != 0  # fork events then have PIDs of another namespace than ours
        self.unreadable_events = 0
        self.settings = Settings()
        self.engine = Engine(
            source.name,
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
            after_walk = "on_python" if python else "on_record"
            for index, function in enumerate(("on_walk", after_walk, "on_record", "on_miss")):
                self.engine.tail_call("programs", index, function)
            self.engine.open_ring("events")
            self.engine.open_ring("copies", COPIES_PER_READ)
            self.targets = TargetTable(self.engine, source.target)
            self._sites = self.engine.table("sites", layout.SITE_KEY, source.site)
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

    def start_recording(self) -> None:
        self.update_settings(recording=1)

    def update_settings(self, **changes: int) -> None:
        """Changes fields of `Settings`."""
        self.settings = replace(self.settings, **changes)
        self._settings_table.put(layout.INDEX.pack(0), layout.SETTINGS.pack(*astuple(self.settings)))

    def set_sampling_level(self, level: int) -> None:
        """Samples stacks to keep the overhead bound (overhead.py). At level n, one of 2**n pages at the most."""
        raise NotImplementedError

    @property
    def sample_period(self) -> int:
        """Where stacks are sampled the most, one of so many is walked."""
        raise NotImplementedError

    def events(self, timeout_s: float = 0.0) -> Iterator[StackEvent | RangeEvent]:
        """The next events, oldest first; these need not be all (Engine.has_read)."""
        for data in self.engine.events(timeout_s):
            try:
                yield layout.parse_event(data, self.python)
            except (ValueError, struct.error):
                self.unreadable_events += 1

    def counts(self) -> dict[int, list[tuple[int, Any]]]:
        """(site, its counters) by address space."""
        found: dict[int, list[tuple[int, Any]]] = {}
        for key, value in self._sites.items():
            space, site = layout.SITE_KEY.unpack(key)
            found.setdefault(space, []).append((site, self.source.count(*self.source.site.unpack(value))))
        return found

    # --- targets

    def add_target(self, pid: int, target: bytes) -> bool:
        """False: the table is full."""
        return self.targets.add(pid, target)

    def remove_target(self, pid: int) -> None:
        self.targets.remove(pid)

    def space_of(self, pid: int) -> int | None:
        """The number of its address space, which an exec changes. None: it is no target."""
        return self.target_field(pid, 0)

    def stacks_skipped(self, pid: int) -> int | None:
        """Mappings or faults of a process whose stack was not walked. None: it is no target."""
        return self.target_field(pid, self.source.skipped_field)

    def target_field(self, pid: int, field: int) -> int | None:
        value = self.targets.get(pid)
        return int(self.source.target.unpack(value)[field]) if value is not None else None

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

    # --- losses and cost

    def losses(self) -> list[LossRow]:
        """What the kernel's side lost."""
        counts = self.engine.per_cpu_sums("losses", len(self.source.losses))
        out = [(what, reduce, count) for (what, reduce), count in zip(self.source.losses, counts, strict=True)]
        return [*out, ("events that could not be parsed", "", self.unreadable_events)]

    def dropped(self) -> int:
        """Events for which the ring buffer had no room. The accounting may have needed any of them."""
        return self.engine.per_cpu_sums("losses", 1)[0]

    def run_stats(self) -> RunStats | None:
        """All runs of the programs, and those for what is traced."""
        stats = self.engine.run_stats()
        if stats is None:
            return None
        each = self._run_times.get(layout.INDEX.pack(0)) or b""
        counted = [layout.RUN_TIME.unpack_from(each, at)[:2] for at in range(0, len(each), layout.RUN_TIME.size)]
        runs, run_ns = (sum(column) for column in zip(*counted, strict=True)) if counted else (0, 0)
        return replace(stats, traced_runs=runs, traced_ns=run_ns)

    def close(self) -> None:
        self.engine.close()
