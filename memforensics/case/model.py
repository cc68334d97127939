"""The vocabulary: everything a probe learns is a value of this module, everything a person sees is rendered from one.

Conventions, everywhere:

- bytes are ints; times are CLOCK_MONOTONIC nanoseconds (`_ns`), tied to the wall clock by `Anchor`;
- None means *not read* (absent is not zero); an empty tuple means read, and nothing there;
- stacks are leaf first;
- *outstanding* is memory that is not yet freed; *leak* is a verdict, never a synonym;
- evidence (first part) is stored; conclusions (second part) are computed from it by pure code, again each time.

Flat, typed and documented on purpose: other programs read these shapes from the case file.
"""

from collections.abc import Mapping as MappingOf
from dataclasses import dataclass, field
from typing import Literal

import msgspec

Layer = Literal[
    "anon-mmap",  # private-use anonymous mappings, shared anonymous ones of Python's mmap.mmap(-1, n) included
    "native-heap",  # malloc: [heap], glibc arenas, blocks with their own mapping, other allocators
    "python-object",  # CPython's object arenas and what lives in them
    "allocator-retention",  # freed by the program, kept by the allocator; carved out of the heaps where readable
    "thread-stack",
    "shmem",  # memory that is shared for a purpose: memfd, SysV, /dev/shm
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
    """What made this case. One a case."""

    memforensics_version: str
    command: str  # diagnose, watch, trace-mmap, ...
    anchor: Anchor
    root_pid: int | None  # the PID the user named; None for an experiment
    seed: int  # of everything random in the analysis
    hostname: str = ""
    kernel: str = ""
    machine: str = "x86_64"
    python: str = ""
    program: str = "memforensics"  # how it was started, for commands to print: "sudo /opt/venv/bin/memforensics"


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """Something that runs inside: cpython 3.11.7, glibc 2.36, jvm 17.0.15."""

    name: str
    version: str | None = None
    path: str | None = None  # the mapped file that says so


@dataclass(frozen=True, slots=True, kw_only=True)
class Cgroup:
    """The memory controller of one process. A limit of None with a version means: no limit set."""

    version: Literal[1, 2]
    path: str
    limit_bytes: int | None = None
    usage_bytes: int | None = None
    anon_bytes: int | None = None  # anonymous and shared memory: what stays until it is freed
    file_bytes: int | None = None  # page cache: what the kernel takes back before it kills


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvVar:
    """An allow-listed environment variable. `source`: exec (the block at exec time; *unset* there proves nothing,
    programs set variables later) or live (the process's present environ, read from memory)."""

    name: str
    value: str
    source: Literal["exec", "live"] = "exec"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One process of the observed tree. Identity is (pid, start_ticks)."""

    pid: int
    start_ticks: int  # field 22 of /proc/PID/stat: clock ticks after boot
    start_wall_ns: int  # the same, on the wall clock
    ppid: int | None = None
    comm: str = ""
    exe: str | None = None
    cmdline: tuple[str, ...] = ()
    role: str | None = None  # "vLLM engine", "llama-server", ... where the command line tells it
    runtimes: tuple[Runtime, ...] = ()
    cgroup: Cgroup | None = None
    environment: tuple[EnvVar, ...] = ()
    exited_ns: int | None = None  # it left while observed
    left_how: str | None = None  # "it exited", "it was replaced by exec", ...
    began_ns: int | None = None  # since when we look at this program: samples of the PID before are another's


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A mapped file of one process, by what is in the file (never by a package manager's word)."""

    pid: int
    path: str  # as in /proc/PID/maps
    start: int  # lowest mapped address
    build_id: str | None = None
    version: str | None = None  # the library's own word, read from the mapped file
    version_how: str | None = None  # where that stood: "ucp_get_version_string", ".gnu.version_d", ...


# --- evidence: sizes ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One reading of /proc/PID/status of one process: the cheap, frequent figure that trends are judged on."""

    pid: int
    t_ns: int
    rss_anon: int
    rss_file: int
    rss_shmem: int
    swap: int | None = None
    hugetlb: int | None = None
    vm_size: int | None = None
    threads: int | None = None
    state: str | None = None  # of the main thread, as the kernel's letter: R, S, D, T (stopped), t (by a tracer)

    @property
    def is_stopped(self) -> bool:
        return self.state in ("T", "t")

    @property
    def rss(self) -> int:
        """The kernel's VmRSS."""
        return self.rss_anon + self.rss_file + self.rss_shmem

    @property
    def growth_metric(self) -> int:
        """What growth is judged on: anonymous, shared and swapped bytes; file pages are judged apart."""
        return self.rss_anon + self.rss_shmem + (self.swap or 0)


class Mapping(msgspec.Struct, frozen=True, gc=False):
    """One line of /proc/PID/maps, with what the reader could add. None: this reader cannot know, or did not ask.

    A Struct, as a process may have 65,530 of them: made eight times, and by `msgspec.structs.replace` changed fifteen
    times faster than a frozen dataclass, and no work for the garbage collector. Made by keyword, but for whole columns
    of them (target/maps.py): by place that is five times faster."""

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
    read_ns: int | None = None  # when its figures were read; None: with the snapshot

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def shared(self) -> bool:
        return self.perms[3:4] == "s"

    @property
    def is_shared_anonymous(self) -> bool:
        """mmap(MAP_SHARED|MAP_ANONYMOUS): what Python's mmap.mmap(-1, n) makes. Private in use, RssShmem in count."""
        return self.shared and self.path.startswith("/dev/zero")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollup:
    """The kernel's own sums at the time of a snapshot (status and smaps_rollup)."""

    rss_anon: int
    rss_file: int
    rss_shmem: int
    swap: int | None = None
    hugetlb: int | None = None
    locked: int | None = None
    pss: int | None = None  # smaps_rollup's from here on
    anon_huge: int | None = None
    shmem_huge: int | None = None
    file_huge: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerMark:
    """A probe's recognition of a range by its content or place: what it is, and what told so."""

    start: int
    end: int
    kind: (
        str  # "heap", "glibc-arena", "thread-stack", "pymalloc-arena", "jvm-heap", ... analysis/ownership.py lists them
    )
    detail: str = ""  # "arena header at 0x7f...", "stack pointer of thread 123"
    resident_bytes: int | None = None  # of the range, by pagemap; None: not counted


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
    read_ms: float | None = None  # how long reading took us


# --- evidence: code -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One frame. For python frames `module` is None and `file`, `line` are the source's; a hook frame is a native one
    inside an interposer. `offset` is the virtual address in the module's file, good for later symbolization."""

    kind: FrameKind
    function: str | None  # demangled symbol, or the qualified name
    module: str | None = None  # path of the mapped file
    build_id: str | None = None
    file: str | None = None
    line: int | None = None
    offset: int | None = None
    inlined: bool = False
    guessed: bool = False  # found without CFI: may be wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Frames, leaf first. `complete`: the walk reached the thread's first frame. `doubtful`: Python and native
    frames did not splice one to one."""

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
    """The blocks of one site that were born in [born_from_ns, born_to_ns), and what of them is outstanding at the end
    of the trace. Sampled blocks count by their weight."""

    born_from_ns: int
    born_to_ns: int
    born_bytes: int
    born_count: int
    left_bytes: int
    left_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationSite:
    """All memory obtained through one stack by one process, since the trace began."""

    pid: int
    site_id: int  # unique a process and trace
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
    file_backed: bool = False  # of a file that lives on a disk: page cache
    tmpfs: bool = False  # of a file that lives in memory: memfd, /dev/shm
    placed: bool = False  # the program named the address, and may compute it again without a pointer
    timeline: tuple[SitePoint, ...] = ()
    cohorts: tuple[Cohort, ...] = ()  # by rising time, from the begin of the trace to its end; empty: not read
    effective_births: int | None = None  # of sampled births: so many exact ones tell as much; None: all are exact

    @property
    def age_quantiles_s(self) -> tuple[float, float, float] | None:
        """The ages at the end of the trace that 10%, 50% and 90% of the outstanding blocks do not exceed, in seconds,
        to the width of a cohort. None: not read, or nothing is outstanding."""
        total = sum(cohort.left_count for cohort in self.cohorts)
        if not total:
            return None
        low, middle, high = (self._age_of(share * total) for share in (0.1, 0.5, 0.9))
        return low, middle, high

    def _age_of(self, rank: float) -> float:
        """The age in seconds of the outstanding block of that rank, youngest first. Births are spread evenly over
        their cohort."""
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
    """Calls of munmap by one process in one slot of time."""

    from_ns: int
    to_ns: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSummary:
    """What one trace saw of one process in sum. `coverage`: resident bytes of the outstanding ranges over the growth
    of RSS in the same time, uncapped; None where RSS did not grow enough for a ratio to mean anything."""

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
    bpf_run_ns: int | None = None  # total time in the BPF programs, for this process
    unwalked: int | None = None  # mappings of busy, balanced sizes whose stacks were sampled, not each taken
    sampled_one_in: int | None = None  # ... one of so many, whose figures count so many times
    releases: tuple[Releases, ...] = ()  # in the slots of the sites' cohorts; empty: not counted
    dropped_events: int = 0  # of the whole trace, in all its processes: the sums may be wrong
    unknown_bytes: int | None = None  # mapped by code that is not known, as events were dropped; None: not compared


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceCheck:
    """Two searches of a process's memory for pointers to sampled blocks of one site. `lost`: blocks that are still
    mapped and that neither search found a pointer to. `complete`: both searches read all memory that is present; else
    `lost` proves nothing."""

    pid: int
    site_id: int
    first_ns: int
    second_ns: int
    tested: int
    lost: int
    bytes_read: int  # by the larger of the two searches
    complete: bool
    why: str = ""  # what makes it incomplete


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """A watched function that does not run its own library's code first."""

    pid: int
    function: str  # "mmap", "munmap", "malloc", ...
    mechanism: HookMechanism
    owner_path: str | None  # the mapped file that gets the call; None: it goes to memory of no file
    owner_version: str | None = None
    owner_version_how: str | None = None
    owner_build_id: str | None = None
    target_function: str | None = None  # "ucm_override_munmap"
    target_address: int | None = None
    patched_in: str | None = None  # inline: the library whose code was changed
    chain: tuple[str, ...] = ()  # each jump: "libc.so.6!munmap", "libucm.so.0.0.0!ucm_override_munmap"
    objects: tuple[str, ...] = ()  # got: the objects whose slots were changed
    original_bytes: str | None = None  # hex, from the file
    live_bytes: str | None = None  # hex, from memory


@dataclass(frozen=True, slots=True, kw_only=True)
class HookAudit:
    """That the audit ran, and what it looked at: no hooks found is only worth what was looked at."""

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
    function: str  # what it stopped on
    arguments: tuple[tuple[str, int], ...]
    returned: int | None
    stack: Stack
    pause_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HeapState:
    """What an allocator holds, from outside. None: not read."""

    pid: int
    t_ns: int
    allocator: str  # "glibc", "pymalloc", "jemalloc", ...
    in_use_bytes: int | None = None
    retained_bytes: int | None = None  # free, resident, and whole pages of it
    system_bytes: int | None = None  # obtained from the kernel
    arenas: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeapProfile:
    """What a profiler that was attached by name reported (memray). Sites are AllocationSites of kind "malloc"."""

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
    """One probe on one process (pid 0: on the host)."""

    name: str
    pid: int = 0
    status: ProbeState
    why: str = ""
    enable: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Something that was not seen, counted. `reduce`: the option or act that makes it less."""

    probe: str
    what: str  # "events dropped: ring buffer full"
    count: int
    reduce: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """A stop of the target that memforensics caused, measured."""

    pid: int
    t_ns: int
    probe: str
    ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What observing cost. BPF programs run in the processes that make the events: those that are traced, and all
    others of the host, where they return at once. Observer time is ours."""

    probe: str
    bpf_run_ns: int | None = None  # of all runs
    bpf_runs: int | None = None
    target_run_ns: int | None = None  # of those for what is traced; the rest is what the host pays
    target_runs: int | None = None
    observer_cpu_s: float | None = None
    target_share: float | None = None  # target_run_ns over the CPU time that what is traced used meanwhile
    asked_share: float | None = None  # its bound; None: none was asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantRun:
    """One run of the command of an experiment under one variant."""

    variant: str  # "plain", "UCX_MEM_MMAP_HOOK_MODE=none"
    env: tuple[tuple[str, str], ...]
    order: int  # position in the interleaved sequence
    root_pid: int
    exit_code: int | None = None  # None: we ended it
    units_done: float | None = None  # throughput: work units the command reported, where it does
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """All evidence of one observation. Assembled by jobs, kept by case.store, concluded upon by analysis."""

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
    """Bytes a minute with an interval of the given confidence (0 to 1)."""

    estimate: float
    low: float
    high: float
    confidence: float = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """The shape of one series. `rate` is of the series after the warm-up that was cut."""

    shape: Shape
    rate: Rate | None
    p: float | None  # Mann-Kendall, one-sided: no upward trend
    samples: int
    seconds: float
    cut_seconds: float = 0.0  # warm-up not judged
    bound_bytes: int | None = None  # plateau: where it levels off, when that can be told
    seconds_to_decide: float | None = None  # how much longer to look to tell the shape


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingGroup:
    """Mappings that are one thing to a person: "glibc arenas", "thread stacks", "anonymous, 144 KiB each"."""

    name: str
    layer: Layer
    before_bytes: int | None
    after_bytes: int | None
    count_before: int
    count_after: int
    what: Literal["grew", "shrank", "appeared", "went", "same"]
    moved: bool = False  # the start moved while the end stayed: mappings merged below; of "same": addresses changed
    summed: int = 0  # so many smaller groups as one, of several layers perhaps
    examples: tuple[str, ...] = ()  # "7f31c0000000-7f31d0000000 rw-p"

    @property
    def change_bytes(self) -> int:
        return (self.after_bytes or 0) - (self.before_bytes or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One row of the waterfall. Rows with in_rss sum to the kernel's figure. bytes None: not read."""

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
    """The application's innermost Python function on the stack; `application` False: no application code is on the
    stack, and this is the innermost function of a library."""

    function: str
    file: str
    line: int | None
    application: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Culprit:
    """Whose code holds the memory. `library` is the file name of the mapped object, or the Python file."""

    library: str
    path: str | None = None
    version: str | None = None
    build_id: str | None = None
    function: str | None = None
    caller: Caller | None = None
    extends: bool = (
        False  # it asked when a heap was full, and so made it larger: who keeps what lies in it is not known
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceItem:
    """One fact, as data: `ref` names the record of the case it was read from, "sites/1234/7"."""

    kind: str  # "rate", "hook", "stack", "inside", "version", "heap-flat", "mapping-moves", ...
    text: str
    ref: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """One rung of the ladder."""

    kind: RemedyKind
    name: str  # "UCX_RCACHE_MAX_UNRELEASED", "libucx"
    value: str  # "1024", ">= 1.21.0"
    text: str  # what to do, one sentence
    scope: Literal["restart", "live"]
    caveats: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingSite:
    """A site as a finding cites it."""

    pid: int
    outstanding_bytes: int
    bytes_per_minute: float | None
    count: int
    inside: str | None  # the hooked function in whose replacement the call was made: "munmap"
    stack: Stack
    kind: str = "mmap"
    resident_bytes: int | None = None
    site_id: int | None = None  # of the AllocationSite it was read from
    placed: bool = False
    cohorts: tuple[Cohort, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that grows, by whom, why, and what to do."""

    title: str
    layer: Layer
    verdict: Verdict
    confidence: float  # 0 to 1
    share: float | None  # of the growth of the tree, 0 to 1
    pid: int
    cause: str | None = None  # id of the catalogue's entry
    culprit: Culprit | None = None
    sites: tuple[FindingSite, ...] = ()
    evidence: tuple[EvidenceItem, ...] = ()
    against: tuple[str, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    rate: Rate | None = None
    trend: Trend | None = None  # of the finding's own outstanding memory
    members: tuple[int, ...] = ()  # the processes with an equal finding, `pid` first; empty: `pid` alone
    next_step: str | None = None  # what to do next, with the command to run

    @property
    def pids(self) -> tuple[int, ...]:
        """All processes that have it."""
        return self.members or (self.pid,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """The line that was judged: RssAnon + RssShmem + swap of the tree."""

    metric: str
    trend: Trend
    rate: Rate | None
    limit_bytes: int | None = None
    seconds_to_limit: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NotSeen:
    """What could not be looked at, and what would make it visible."""

    what: str
    why: str
    enable: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberGrowth:
    """One process of the tree: its share of the growth."""

    pid: int
    change_bytes: int
    rate: Rate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The conclusion of a case: what every renderer shows, and the JSON report carries."""

    verdict: Verdict
    headline: str  # one sentence
    growth: Growth | None
    layers: tuple[LayerRow, ...]
    groups: tuple[MappingGroup, ...]
    members: tuple[MemberGrowth, ...]
    findings: tuple[Finding, ...]
    hooks: tuple[Hook, ...]
    kernel_totals: KernelTotals = KernelTotals()  # of the tree, at its members' last snapshots
    hook_meanings: MappingOf[str, str] = field(default_factory=dict)  # function -> what that hook means
    not_seen: tuple[NotSeen, ...] = ()
    next_step: str | None = None  # what to do next: that of the first finding, else what would decide

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantResult:
    """One variant of an experiment, all its runs together."""

    name: str
    env: tuple[tuple[str, str], ...]
    runs: int
    growth: Rate | None
    throughput: float | None  # units a second, or None
    effect: Literal["baseline", "works", "partly", "none", "worse", "not-shown"]
    why: str = ""
