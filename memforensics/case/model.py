"""The data model: probes produce values of this module, and reports are rendered from them.

Conventions:

- bytes are ints; times are CLOCK_MONOTONIC nanoseconds (`_ns`); `Anchor` relates them to the wall clock;
- None means *not read* (absent is not zero); an empty tuple means that it was read and is empty;
- stacks are leaf first;
- *outstanding* memory is not yet freed; *leak* is a verdict, not a synonym;
- evidence (first part) is stored; conclusions (second part) are computed from it by pure code each time.

The types are flat and documented, because other programs read them from the case file.
"""

from collections.abc import Mapping as MappingOf
from dataclasses import dataclass, field
from typing import Literal

import msgspec

Layer = Literal[
    "anon-mmap",  # anonymous mappings, including the shared anonymous ones of Python's mmap.mmap(-1, n)
    "native-heap",  # malloc: [heap], glibc arenas, blocks with their own mapping, other allocators
    "python-object",  # CPython's object arenas and what lives in them
    "allocator-retention",  # freed by the program, kept by the allocator; subtracted from the heaps if readable
    "thread-stack",
    "shmem",  # memory shared between processes: memfd, SysV, /dev/shm
    "file",  # resident pages of mapped files: weights, libraries
    "jvm-heap",
    "jvm-native",
    "gpu",
    "device",
    "unattributed",
]
LAYERS: tuple[Layer, ...] = Layer.__args__  # type: ignore[attr-defined]

Verdict = Literal["steady", "bounded", "retention", "leak", "growing", "insufficient-data"]
EXIT_CODES: dict[Verdict, int] = {
    "steady": 0,
    "bounded": 0,
    "retention": 0,
    "leak": 1,
    "growing": 4,
    "insufficient-data": 4,
}

Shape = Literal["flat", "linear", "plateau", "saw-tooth", "step", "falling", "irregular", "too-short"]
FrameKind = Literal["native", "python", "hook"]
HookMechanism = Literal["got", "inline", "preload"]
ProbeState = Literal["ok", "partial", "unavailable"]
RemedyKind = Literal["env", "flag", "setting", "upgrade", "code"]


# --- evidence: identity -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """One instant on both clocks."""

    monotonic_ns: int
    wall_ns: int  # Unix epoch

    def wall_at(self, monotonic_ns: int) -> int:
        return self.wall_ns + monotonic_ns - self.monotonic_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseMeta:
    """How this case was made."""

    memforensics_version: str
    command: str  # diagnose, watch, trace-mmap, ...
    anchor: Anchor
    root_pid: int | None  # the PID the user named; None for an experiment
    seed: int  # of random choices during the observation
    hostname: str = ""
    kernel: str = ""
    machine: str = "x86_64"
    python: str = ""
    program: str = "memforensics"  # how it was started, for printed commands: "sudo /opt/venv/bin/memforensics"


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """A language runtime or C library of the process: cpython 3.11.7, glibc 2.36, jvm 17.0.15."""

    name: str
    version: str | None = None
    path: str | None = None  # of the mapped file


@dataclass(frozen=True, slots=True, kw_only=True)
class Cgroup:
    """The memory cgroup of one process. `limit_bytes` None: no limit is set."""

    version: Literal[1, 2]
    path: str
    limit_bytes: int | None = None
    usage_bytes: int | None = None
    anon_bytes: int | None = None  # anonymous and shared memory, which stays until it is freed
    file_bytes: int | None = None  # page cache, which the kernel reclaims before it kills


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvVar:
    """An allow-listed environment variable. `source`: exec (the environment at exec; a variable that is missing there
    may be set later by the program) or live (the present environment, read from memory)."""

    name: str
    value: str
    source: Literal["exec", "live"] = "exec"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One process of the observed tree. Identity is (pid, start_ticks)."""

    pid: int
    start_ticks: int  # field 22 of /proc/PID/stat: clock ticks since boot
    start_wall_ns: int  # the same on the wall clock
    ppid: int | None = None
    comm: str = ""
    exe: str | None = None
    cmdline: tuple[str, ...] = ()
    role: str | None = None  # "vLLM engine", "llama-server", ... from the command line
    runtimes: tuple[Runtime, ...] = ()
    cgroup: Cgroup | None = None
    environment: tuple[EnvVar, ...] = ()
    exited_ns: int | None = None  # it ended during the observation
    left_how: str | None = None  # "it exited", "it was replaced by exec", ...
    began_ns: int | None = None  # since when this program is observed; earlier samples of the PID are of another one


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A mapped file of one process. All facts are from the file itself, not from a package manager."""

    pid: int
    path: str  # as in /proc/PID/maps
    start: int  # lowest mapped address
    build_id: str | None = None
    version: str | None = None  # as the mapped file itself has it
    version_how: str | None = None  # where it was read: "ucp_get_version_string", ".gnu.version_d", ...


# --- evidence: sizes ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One reading of /proc/PID/status: cheap, frequent, and the basis of trends."""

    pid: int
    t_ns: int
    rss_anon: int
    rss_file: int
    rss_shmem: int
    swap: int | None = None
    hugetlb: int | None = None
    vm_size: int | None = None
    threads: int | None = None
    state: str | None = (
        None  # of the main thread, as the kernel's letter: R, S, D, T (stopped), t (stopped by a tracer)
    )

    @property
    def is_stopped(self) -> bool:
        return self.state in ("T", "t")

    @property
    def rss(self) -> int:
        """The kernel's VmRSS."""
        return self.rss_anon + self.rss_file + self.rss_shmem

    @property
    def growth_metric(self) -> int:
        """The bytes that growth is computed from: anonymous, shared and swapped. File pages are left out."""
        return self.rss_anon + self.rss_shmem + (self.swap or 0)


class Mapping(msgspec.Struct, frozen=True, gc=False):
    """One line of /proc/PID/maps, with the figures that the reader added. None: not read.

    A Struct, because a process may have 65,530 mappings: it is created eight times faster than a frozen dataclass,
    changed fifteen times faster (`msgspec.structs.replace`), and not tracked by the garbage collector. target/maps.py
    reads whole columns and passes positional arguments, which is five times faster than keywords."""

    start: int
    end: int
    perms: str  # "rw-p"
    offset: int
    device: str  # "fd:01"
    inode: int
    path: str  # "" for anonymous, "[heap]", "/usr/lib/...", with " (deleted)" kept
    rss: int | None = None
    pss: int | None = None
    anonymous: int | None = None  # smaps Anonymous:
    private_dirty: int | None = None
    swap: int | None = None
    locked: int | None = None
    anon_huge: int | None = None
    shmem_huge: int | None = None  # ShmemPmdMapped
    file_huge: int | None = None  # FilePmdMapped
    flags: str | None = None  # VmFlags
    read_ns: int | None = None  # when its figures were read; None: at the time of the snapshot

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def shared(self) -> bool:
        return self.perms[3:4] == "s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollup:
    """The kernel's totals at the time of a snapshot, from status and smaps_rollup."""

    rss_anon: int
    rss_file: int
    rss_shmem: int
    swap: int | None = None
    hugetlb: int | None = None
    locked: int | None = None
    pss: int | None = None  # this and the following from smaps_rollup
    anon_huge: int | None = None
    shmem_huge: int | None = None
    file_huge: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerMark:
    """A range that a probe recognized by its content or place."""

    start: int
    end: int
    kind: (
        str  # "heap", "glibc-arena", "thread-stack", "pymalloc-arena", "jvm-heap", ... analysis/ownership.py lists them
    )
    detail: str = ""  # "arena header at 0x7f...", "stack pointer of thread 123"
    resident_bytes: int | None = None  # of the range, from pagemap; None: not counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All mappings of one process at one time."""

    pid: int
    t_ns: int
    reader: str  # "smaps", "maps", "pagemap-scan", ...
    mappings: tuple[Mapping, ...]
    rollup: Rollup | None = None
    marks: tuple[OwnerMark, ...] = ()
    unparsed_lines: int = 0
    read_ms: float | None = None  # how long reading took


# --- evidence: code -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One frame. A python frame has no `module`; its `file` and `line` are of the source. A hook frame is a native
    frame of an interposer. `offset` is the virtual address in the module's file, for later symbolization."""

    kind: FrameKind
    function: str | None  # demangled symbol, or qualified name
    module: str | None = None  # path of the mapped file
    build_id: str | None = None
    file: str | None = None
    line: int | None = None
    offset: int | None = None
    inlined: bool = False
    guessed: bool = False  # found without CFI, may be wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Frames, leaf first. `complete`: the walk reached the thread's first frame. `doubtful`: Python and native frames
    did not match one to one."""

    frames: tuple[Frame, ...]
    complete: bool = True
    doubtful: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePoint:
    """Outstanding memory of one site at one time."""

    t_ns: int
    outstanding_bytes: int
    outstanding_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """The blocks of one site that were allocated in [born_from_ns, born_to_ns), and those of them that are outstanding
    at the end of the trace. Sampled blocks count with their weight."""

    born_from_ns: int
    born_to_ns: int
    born_bytes: int
    born_count: int
    left_bytes: int
    left_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationSite:
    """All memory that one process allocated through one stack since the trace began."""

    pid: int
    site_id: int  # unique within a process and a trace
    kind: str  # "mmap", "brk", "mremap", "fault", "malloc"
    stack: Stack
    outstanding_bytes: int
    outstanding_count: int
    allocated_bytes: int
    allocated_count: int
    freed_bytes: int
    freed_count: int
    first_ns: int
    last_ns: int
    resident_bytes: int | None = None  # of the outstanding ranges, at the end
    shared: bool = False  # MAP_SHARED
    file_backed: bool = False  # of a file on a disk: page cache
    tmpfs: bool = False  # of a file in memory: memfd, /dev/shm
    placed: bool = False  # the program chose the address and can compute it again without a pointer
    timeline: tuple[SitePoint, ...] = ()
    cohorts: tuple[Cohort, ...] = ()  # by time, from the start of the trace to its end; empty: not read
    effective_births: int | None = None  # effective sample size of sampled births; None: all births are counted

    @property
    def age_quantiles_s(self) -> tuple[float, float, float] | None:
        """The 10%, 50% and 90% quantiles of the age of the outstanding blocks at the end of the trace, in seconds, with
        the resolution of a cohort. None: not read, or nothing is outstanding."""
        total = sum(cohort.left_count for cohort in self.cohorts)
        if not total:
            return None
        low, middle, high = (self._age_of(share * total) for share in (0.1, 0.5, 0.9))
        return low, middle, high

    def _age_of(self, rank: float) -> float:
        """The age in seconds of the outstanding block of that rank, youngest first. Births are spread evenly over their
        cohort."""
        ended, seen, age = self.cohorts[-1].born_to_ns, 0, 0.0
        for cohort in reversed(self.cohorts):
            if not cohort.left_count:
                continue
            share = min(1.0, max(0.0, (rank - seen) / cohort.left_count))
            age = (ended - cohort.born_to_ns + share * (cohort.born_to_ns - cohort.born_from_ns)) / 1e9
            seen += cohort.left_count
            if seen >= rank:
                break
        return age


@dataclass(frozen=True, slots=True, kw_only=True)
class Releases:
    """Calls of munmap by one process in one time slot."""

    from_ns: int
    to_ns: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSummary:
    """Totals of one process in one trace. `coverage`: resident bytes of the outstanding ranges over the growth of RSS
    in the same time, uncapped; None if RSS grew too little for a meaningful ratio."""

    pid: int
    engine: str  # "bcc", "bpftrace"
    began_ns: int
    ended_ns: int
    events: int
    outstanding_bytes: int
    resident_bytes: int | None = None
    rss_growth_bytes: int | None = None
    coverage: float | None = None
    bpf_runs: int | None = None
    bpf_run_ns: int | None = None  # total run time of the BPF programs for this process
    unwalked: int | None = None  # mappings of frequent, balanced sizes without a stack: stacks are sampled
    sampled_one_in: int | None = None  # the sample period; a sampled mapping has this weight
    releases: tuple[Releases, ...] = ()  # in the time slots of the sites' cohorts; empty: not counted
    dropped_events: int = 0  # of the whole trace, all processes; the totals may be wrong
    unknown_bytes: int | None = None  # mapped by code that is not known, as events were dropped; None: not compared


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceCheck:
    """Two searches of a process's memory for pointers to sampled blocks of one site. `lost`: blocks that are still
    mapped and to which neither search found a pointer. `complete`: both searches read all present memory; otherwise
    `lost` proves nothing."""

    pid: int
    site_id: int
    first_ns: int
    second_ns: int
    tested: int
    lost: int
    bytes_read: int  # in the larger of the two searches
    complete: bool
    why: str = ""  # it is incomplete


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """A watched function whose calls do not go to the code of its own library first."""

    pid: int
    function: str  # "mmap", "munmap", "malloc", ...
    mechanism: HookMechanism
    owner_path: str | None  # the mapped file that receives the call; None: memory of no file
    owner_version: str | None = None
    owner_version_how: str | None = None
    owner_build_id: str | None = None
    target_function: str | None = None  # "ucm_override_munmap"
    target_address: int | None = None
    patched_in: str | None = None  # inline: the library whose code is patched
    chain: tuple[str, ...] = ()  # each jump: "libc.so.6!munmap", "libucm.so.0.0.0!ucm_override_munmap"
    objects: tuple[str, ...] = ()  # got: the objects whose slots are changed
    original_bytes: str | None = None  # hex, from the file
    live_bytes: str | None = None  # hex, from memory


@dataclass(frozen=True, slots=True, kw_only=True)
class HookAudit:
    """The extent of a hook audit, which limits what "no hooks found" means."""

    pid: int
    t_ns: int
    functions: tuple[str, ...]
    objects_read: int
    objects_unread: int
    got_slots: int  # GOT slots of watched functions that were compared
    entries_compared: int  # function entries whose code was compared with the file


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedStack:
    """One stop in the debugger."""

    pid: int
    tid: int
    t_ns: int
    function: str  # on which it stopped
    arguments: tuple[tuple[str, int], ...]
    returned: int | None
    stack: Stack
    pause_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HeapState:
    """The memory of one allocator, read from outside. None: not read."""

    pid: int
    t_ns: int
    allocator: str  # "glibc", "pymalloc", "jemalloc", ...
    in_use_bytes: int | None = None
    retained_bytes: int | None = None  # free and resident whole pages
    system_bytes: int | None = None  # obtained from the kernel
    arenas: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeapProfile:
    """The report of an attached profiler (memray). Its sites are AllocationSites of kind "malloc"."""

    pid: int
    t_ns: int
    tool: str
    seconds: float
    allocated_bytes: int
    allocated_count: int
    outstanding_bytes: int
    peak_bytes: int | None = None
    file: str | None = None


# --- evidence: how the observation went ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeStatus:
    """One probe on one process, or on the host (pid 0)."""

    name: str
    pid: int = 0
    status: ProbeState
    why: str = ""
    enable: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Lost evidence, counted. `reduce`: the option or action that reduces the loss."""

    probe: str
    what: str  # "events dropped: ring buffer full"
    count: int
    reduce: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """A pause of the target that memforensics caused, measured."""

    pid: int
    t_ns: int
    probe: str
    ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The cost of observation. BPF programs run in the processes that cause the events: the traced ones, and all others
    of the host, for which they return at once. Observer time is that of memforensics."""

    probe: str
    bpf_run_ns: int | None = None  # of all runs
    bpf_runs: int | None = None
    target_run_ns: int | None = None  # of runs for traced processes; the rest is the cost for the host
    target_runs: int | None = None
    observer_cpu_s: float | None = None
    target_share: float | None = None  # target_run_ns over the CPU time of the traced processes
    asked_share: float | None = None  # the limit of --overhead; None: no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantRun:
    """One run of the command of an experiment under one variant."""

    variant: str  # "plain", "UCX_MEM_MMAP_HOOK_MODE=none"
    env: tuple[tuple[str, str], ...]
    order: int  # position in the interleaved sequence
    root_pid: int
    exit_code: int | None = None  # None: memforensics ended it
    units_done: float | None = None  # work units that the command reported; None: it reports none
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """All evidence of one observation. Jobs assemble it, case.store stores it, analysis evaluates it."""

    meta: CaseMeta
    targets: tuple[Target, ...] = ()
    modules: tuple[Module, ...] = ()
    samples: tuple[Sample, ...] = ()
    snapshots: tuple[Snapshot, ...] = ()
    sites: tuple[AllocationSite, ...] = ()
    traces: tuple[TraceSummary, ...] = ()
    hooks: tuple[Hook, ...] = ()
    hook_audits: tuple[HookAudit, ...] = ()
    captures: tuple[CapturedStack, ...] = ()
    heaps: tuple[HeapState, ...] = ()
    heap_profiles: tuple[HeapProfile, ...] = ()
    reference_checks: tuple[ReferenceCheck, ...] = ()
    probes: tuple[ProbeStatus, ...] = ()
    losses: tuple[Loss, ...] = ()
    pauses: tuple[Pause, ...] = ()
    costs: tuple[Cost, ...] = ()
    runs: tuple[VariantRun, ...] = ()

    def target(self, pid: int) -> Target | None:
        return next((t for t in self.targets if t.pid == pid), None)


# --- conclusions --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Bytes a minute, with an interval of the given confidence (0 to 1)."""

    estimate: float
    low: float
    high: float
    confidence: float = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """The shape of one series. `rate` is that of the series without the warm-up (`cut_seconds`)."""

    shape: Shape
    rate: Rate | None
    p: float | None  # Mann-Kendall, one-sided; null hypothesis: no upward trend
    samples: int
    seconds: float
    cut_seconds: float = 0.0  # start of the series that is left out
    bound_bytes: int | None = None  # of a plateau: the level at which it ends, if known
    seconds_to_decide: float | None = None  # how much longer to observe for a decision


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingGroup:
    """Mappings with a common name: "glibc arenas", "thread stacks", "anonymous, 144 KiB each"."""

    name: str
    layer: Layer
    before_bytes: int | None
    after_bytes: int | None
    count_before: int
    count_after: int
    what: Literal["grew", "shrank", "appeared", "went", "same"]
    moved: bool = False  # its start moved and its end stayed (mappings merged below); if "same": addresses changed
    summed: int = 0  # number of smaller groups that this one sums, possibly of several layers
    examples: tuple[str, ...] = ()  # "7f31c0000000-7f31d0000000 rw-p"

    @property
    def change_bytes(self) -> int:
        return (self.after_bytes or 0) - (self.before_bytes or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One layer. Layers with in_rss sum to the kernel's RSS. `bytes` None: not read."""

    layer: Layer
    in_rss: bool
    bytes: int | None
    change_bytes: int | None = None
    rate: Rate | None = None
    verdict: Verdict = "insufficient-data"


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTotals:
    """Totals of the kernel that are not rows of the layer table, in bytes; None: not read. `swap` (private memory) and
    `hugetlb` are outside RSS. The others are part of RSS in any layer: transparent huge pages of anonymous memory, of
    shared memory and of files. `locked` counts address space (VmLck)."""

    swap: int | None = None
    hugetlb: int | None = None
    locked: int | None = None
    anon_huge: int | None = None
    shmem_huge: int | None = None
    file_huge: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The application's innermost Python function on the stack. `application` False: the stack has no application code,
    and this is the innermost function of a library."""

    function: str
    file: str
    line: int | None
    application: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Culprit:
    """The code that holds the memory. `library` is the file name of the mapped object, or the Python file."""

    library: str
    path: str | None = None
    version: str | None = None
    build_id: str | None = None
    function: str | None = None
    caller: Caller | None = None
    extends: bool = False  # it made a heap grow; which code keeps the memory of the heap is not known


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceItem:
    """One fact. `ref` names the record of the case that has it: "sites/1234/7"."""

    kind: str  # "rate", "hook", "stack", "inside", "version", "heap-flat", "mapping-moves", ...
    text: str
    ref: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """One remedy of a finding."""

    kind: RemedyKind
    name: str  # "UCX_RCACHE_MAX_UNRELEASED", "libucx"
    value: str  # "1024", ">= 1.21.0"
    text: str  # what to do, in one sentence
    scope: Literal["restart", "live"]
    caveats: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingSite:
    """A site that a finding cites."""

    pid: int
    outstanding_bytes: int
    bytes_per_minute: float | None
    count: int
    inside: str | None  # the hooked function inside whose replacement the call was made: "munmap"
    stack: Stack
    kind: str = "mmap"
    resident_bytes: int | None = None
    site_id: int | None = None  # of the AllocationSite
    placed: bool = False
    cohorts: tuple[Cohort, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Memory that grows: its layer, code, cause and remedies."""

    title: str
    layer: Layer
    verdict: Verdict
    confidence: float  # 0 to 1
    share: float | None  # of the growth of the tree, 0 to 1
    pid: int
    cause: str | None = None  # ID of the catalogue entry
    culprit: Culprit | None = None
    sites: tuple[FindingSite, ...] = ()
    evidence: tuple[EvidenceItem, ...] = ()
    against: tuple[str, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    rate: Rate | None = None
    trend: Trend | None = None  # of the finding's own outstanding memory
    members: tuple[int, ...] = ()  # the processes with an equal finding, `pid` first; empty: `pid` alone
    next_step: str | None = None  # what to do next, with a command

    @property
    def pids(self) -> tuple[int, ...]:
        """All processes with this finding."""
        return self.members or (self.pid,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Growth of the tree: RssAnon + RssShmem + swap."""

    metric: str
    trend: Trend
    rate: Rate | None
    limit_bytes: int | None = None
    seconds_to_limit: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NotSeen:
    """What was not observed, why, and how to enable it."""

    what: str
    why: str
    enable: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberGrowth:
    """Growth of one process of the tree."""

    pid: int
    change_bytes: int
    rate: Rate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The conclusion of a case, which all reports render."""

    verdict: Verdict
    headline: str  # one sentence
    growth: Growth | None
    layers: tuple[LayerRow, ...]
    groups: tuple[MappingGroup, ...]
    members: tuple[MemberGrowth, ...]
    findings: tuple[Finding, ...]
    hooks: tuple[Hook, ...]
    kernel_totals: KernelTotals = KernelTotals()  # of the tree, at its members' last snapshots
    hook_meanings: MappingOf[str, str] = field(default_factory=dict)  # hooked function -> sentence
    not_seen: tuple[NotSeen, ...] = ()
    next_step: str | None = None  # of the first finding, or a step towards a verdict

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantResult:
    """One variant of an experiment: the result of all its runs."""

    name: str
    env: tuple[tuple[str, str], ...]
    runs: int
    growth: Rate | None
    throughput: float | None  # work units a second; None: not reported
    effect: Literal["baseline", "works", "partly", "none", "worse", "not-shown"]
    why: str = ""
