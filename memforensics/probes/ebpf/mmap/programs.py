"""The loaded programs of mmap.bpf.c, with their tables as values."""

import contextlib
from collections.abc import Iterator

from memforensics.probes.ebpf.loader import layout
from memforensics.probes.ebpf.loader.btf import filesystem_offsets
from memforensics.probes.ebpf.loader.engine import hash_flags
from memforensics.probes.ebpf.loader.layout import LiveRange
from memforensics.probes.ebpf.loader.program_set import Sizes, Source, StackPrograms
from memforensics.probes.ebpf.mmap.allocation_table import Counts

MAX_LIVE = 1 << 20
MAX_LIVE_PREALLOCATED = 1 << 17  # where the whole table costs its memory at once

WALKS_PER_WINDOW = 4  # stacks of one size class that are walked in 16 ms, even when it is balanced
SAMPLE_PERIOD = 256  # beyond these, one of so many is walked: a power of two
ALL_SAMPLED_LEVEL = 8  # from this level on, those are sampled too
SWEEP_AT = 1 << 15  # closed entries in the table of live mappings

FILESYSTEM_DEFINES = ("TASK_FILES", "FILES_FDT", "FDT_FD", "FILE_INODE", "INODE_SB", "SB_MAGIC")  # of FILESYSTEM_PATH
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


SOURCE = Source("mmap.bpf.c", layout.TARGET, layout.SITE, Counts, layout.LOSSES, skipped_field=3)


class MmapPrograms(StackPrograms):
    """Armed from the constructor on, recording from `start_recording` on, gone after `close`. ToolMissing,
    PermissionNeeded, ProbeFailed."""

    def __init__(self, *, files: bool, python: bool, sizes: Sizes | None = None, max_live: int | None = None) -> None:
        live = max_live or (MAX_LIVE if hash_flags() else MAX_LIVE_PREALLOCATED)
        defines = {"MAX_LIVE": live, "TRACK_FILES": int(files), "KNOWS_FILESYSTEMS": 0}
        known = filesystem_offsets()
        if known is not None:
            defines |= dict(zip(FILESYSTEM_DEFINES, known, strict=True), KNOWS_FILESYSTEMS=1)
        super().__init__(SOURCE, defines, python=python, sizes=sizes or Sizes())
        self._swept = 0
        try:
            self._live = self.engine.table("live", layout.LIVE_KEY, layout.LIVE)
            self.set_sampling_level(0)
            self.arm(TRACEPOINTS)
        except BaseException:
            self.close()
            raise

    def set_sampling_level(self, level: int) -> None:
        """At level 0 the stacks of a size class that grows or is rare are all walked; of a balanced class,
        WALKS_PER_WINDOW in 16 ms and then one of SAMPLE_PERIOD. At level n, one of 2**n pages at the most."""
        budget = WALKS_PER_WINDOW if level < ALL_SAMPLED_LEVEL else 0
        self.update_settings(
            window_budget=budget,
            sample_period=max(SAMPLE_PERIOD, 1 << level),
            byte_sample_period=(1 << level) if level else 0,
        )

    @property
    def sample_period(self) -> int:
        return self.settings.sample_period

    @contextlib.contextmanager
    def exact_births(self) -> Iterator[None]:
        """Without this, the birth time of a mapping whose stack is not walked may be up to a jiffy early."""
        self.update_settings(exact=1)
        try:
            yield
        finally:
            self.update_settings(exact=0)

    # --- the account

    def live(self) -> dict[int, list[LiveRange]]:
        """Whole mappings by space, in no order."""
        found: dict[int, list[LiveRange]] = {}
        for keys, values in self._live.batches():
            for (space, start), (length, site, born_ns, weight, gone) in zip(
                layout.LIVE_KEY.iter_unpack(keys), layout.LIVE.iter_unpack(values), strict=True
            ):
                if not gone:
                    found.setdefault(space, []).append(LiveRange(start, start + length, site, born_ns, weight))
        return found

    def take_live(self, space: int, start: int) -> LiveRange | None:
        """Removes the mapping that starts there from the kernel's table and returns it. None: there is none."""
        value = self._live.take(layout.LIVE_KEY.pack(space, start))
        if value is None:
            return None
        length, site, born_ns, weight, gone = layout.LIVE.unpack(value)
        if gone:
            self._swept += 1
            return None
        return LiveRange(start, start + length, site, born_ns, weight)

    def sweep(self) -> None:
        """Frees the closed entries, whose addresses were not used again, when there are many."""
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

    def releases(self, pid: int) -> int | None:
        """Calls of munmap by a process since recording started. None: it is no target."""
        return self.target_field(pid, 5)

    def drop_space(self, space: int) -> None:
        """An address space ended."""
        for mapping in self.live().get(space, []):
            self.take_live(space, mapping.start)
        for site, _ in self.counts().get(space, []):
            self._sites.remove(layout.SITE_KEY.pack(space, site))
