"""The loaded programs of faults.bpf.c, with their tables as values."""

import platform
import re
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from memforensics.case.model import Sample
from memforensics.errors import ProbeFailed
from memforensics.probes.ebpf.faults.pages import PAGE, Touched, touched
from memforensics.probes.ebpf.loader.engine import event_field_offset, hash_flags
from memforensics.probes.ebpf.loader.program_set import Sizes, Source, StackPrograms

MAX_PAGES = 1 << 20
MAX_PAGES_PREALLOCATED = 1 << 17  # where the whole table costs its memory at once
EXACT_SINCE = (6, 2)  # "mm: convert mm's rss stats into percpu_counter"; before, rss_stat fires for each 64th page only
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")

TRACEPOINTS = {
    "exceptions:page_fault_user": "on_user_fault",
    "exceptions:page_fault_kernel": "on_kernel_fault",
    "kmem:rss_stat": "on_rss",
    "syscalls:sys_exit_mmap": "on_mmap_exit",
    "sched:sched_process_fork": "on_fork",
    "sched:sched_process_exec": "on_exec",
    "sched:sched_process_exit": "on_exit",
}

WALKS_PER_WINDOW = 128  # faults on pages never touched before, in 16 ms, that are not sampled; of others an eighth
SAMPLE_PERIOD = 64  # beyond these, one of so many faults on pages touched before is walked; of others eight times more

_TARGET = struct.Struct("<QQ4qQ4qQ")  # address space, parent, resident pages by member, faults not walked, ...
_PAGE_KEY = struct.Struct("<QQ")
_PAGE = struct.Struct("<QQIIQ")  # site, t_ns, count, member, window
_PAGE_KEYS = np.dtype([("space", "<u8"), ("page", "<u8")])
_PAGES = np.dtype([("site", "<u8"), ("t_ns", "<u8"), ("count", "<u4"), ("member", "<u4"), ("window", "<u8")])
_SITE = struct.Struct("<QQQQQ")
_ANONYMOUS = 1  # MM_ANONPAGES

# LOSS_* of faults.bpf.c, in its order: what, and what reduces it
LOSSES: tuple[tuple[str, str], ...] = (
    ("events dropped: the ring buffer was full", "a shorter trace"),
    ("pages dropped: the table of touched pages is full", "a shorter trace"),
    ("faults dropped: the stack table is full", "a shorter trace"),
    ("stacks cut short: more than 128 native frames", ""),
    ("stacks cut short: the stack could not be read or followed", ""),
    ("stacks cut short: no copy of the stack could be made", ""),
    ("children not followed: too many processes", "trace a smaller tree"),
    (
        "pages that became resident at an unknown address (mostly by a system call without a fault): never counted as "
        "still resident",
        "trace-mmap shows pinned and populated mappings",
    ),
)


class FaultCounts(NamedTuple):
    """What one stack brought, whether it is still resident or not."""

    bytes: int
    faults: int
    first_ns: int
    last_ns: int
    weight: int = 1  # how many faults each walked one counts for


SOURCE = Source("faults.bpf.c", _TARGET, _SITE, FaultCounts, LOSSES, skipped_field=6)


class FaultPrograms(StackPrograms):
    """Armed from the constructor on, recording from `start_recording` on, gone after `close`.

    `sampled`: of very many faults a sample is walked. ToolMissing, PermissionNeeded, ProbeFailed.
    """

    def __init__(
        self, *, python: bool, sampled: bool = True, sizes: Sizes | None = None, max_pages: int | None = None
    ) -> None:
        why = why_not_exact(platform.release())
        if why is not None:
            raise ProbeFailed("trace-faults cannot weigh faults here", why=why, enable="memforensics trace-mmap PID")
        self.capacity = max_pages or (MAX_PAGES if hash_flags() else MAX_PAGES_PREALLOCATED)
        defines = {
            "MAX_PAGES": self.capacity,
            "FAULT_ADDRESS": event_field_offset("exceptions/page_fault_user", "address"),
            "FAULT_CODE": event_field_offset("exceptions/page_fault_user", "error_code"),
            "RSS_MM_ID": event_field_offset("kmem/rss_stat", "mm_id"),
            "RSS_CURR": event_field_offset("kmem/rss_stat", "curr"),
            "RSS_MEMBER": event_field_offset("kmem/rss_stat", "member"),
            "RSS_SIZE": event_field_offset("kmem/rss_stat", "size"),
            "ANON_ORDERS": anonymous_orders(HUGE_PAGES),
        }
        super().__init__(SOURCE, defines, python=python, sizes=sizes or Sizes())
        try:
            self._pages = self.engine.table("pages", _PAGE_KEY, _PAGE)
            if sampled:
                self.update_settings(window_budget=WALKS_PER_WINDOW, sample_period=SAMPLE_PERIOD)
            self.arm(TRACEPOINTS)
        except BaseException:
            self.close()
            raise

    def set_sampling_level(self, level: int) -> None:
        """At level n, one of 2**n pages at the most."""
        self.update_settings(byte_sample_period=(1 << level) if level else 0)

    @property
    def sample_period(self) -> int:
        return max(self.settings.sample_period, self.settings.byte_sample_period)

    # --- the account

    def touched(self) -> dict[int, Touched]:
        """What was touched, by space, whether it is still resident or not."""
        keys, values = [], []
        for some_keys, some_values in self._pages.batches():
            keys.append(np.frombuffer(some_keys, dtype=_PAGE_KEYS))
            values.append(np.frombuffer(some_values, dtype=_PAGES))
        key, value = np.concatenate(keys), np.concatenate(values)
        found = {}
        for space in np.unique(key["space"]).tolist():
            mine = key["space"] == space
            page, some = key["page"][mine], value[mine]
            anonymous = some["member"] == _ANONYMOUS
            found[space] = touched(page, some["count"], some["window"], anonymous, some["site"], some["t_ns"])
        return found

    def forget_pages(self, space: int, gone: Touched) -> None:
        """Removes pages that are not resident any more, except those touched again meanwhile."""
        for at, t_ns in zip(gone["at"].tolist(), gone["t_ns"].tolist(), strict=True):
            key = _PAGE_KEY.pack(space, at)
            value = self._pages.take(key)
            if value is not None and _PAGE.unpack(value)[1] != t_ns:
                self._pages.put(key, value, new=True)


def fault_target(space: int, now: Sample | None) -> bytes:
    """struct target of a process. `now`: its counters, so that the first change is known too."""
    first = (-1, -1, -1, -1)
    if now is not None:
        first = (now.rss_file // PAGE, now.rss_anon // PAGE, (now.swap or 0) // PAGE, now.rss_shmem // PAGE)
    return _TARGET.pack(space, 0, *first, *[0] * 6)


def why_not_exact(release: str) -> str | None:
    """Why kmem:rss_stat does not show each change on a kernel of that release; None when it does."""
    found = re.match(r"(\d+)\.(\d+)", release)
    if found and (int(found[1]), int(found[2])) < EXACT_SINCE:
        return f"Linux {found[0]} reports changes of the resident size in batches of 64 pages; since 6.2 each change"
    return None


def anonymous_orders(huge_pages: Path) -> int:
    """Bit n: one fault may bring a folio of 2**n anonymous pages, by the settings of now."""
    orders = 0
    whole = _chosen(huge_pages / "enabled")
    for path in huge_pages.glob("hugepages-*kB"):
        mode = _chosen(path / "enabled")
        mode = whole if mode == "inherit" else mode
        pages = int(path.name[len("hugepages-") : -2]) * 1024 // PAGE
        if mode not in (None, "never"):
            orders |= 1 << (pages.bit_length() - 1)
    if not orders and whole not in (None, "never"):
        orders = 1 << 9  # before sizes had their own switches (Linux 6.8)
    return orders


def _chosen(path: Path) -> str | None:
    """`always [madvise] never` -> madvise."""
    try:
        found = re.search(r"\[(\w+)\]", path.read_text())
    except OSError:
        return None
    return found[1] if found else None
