"""The JSON shapes that several commands share: a stack, a site, a hook, a layer, a mapping, a loss.

Each shape is a msgspec Struct; its annotations are the documentation, from which `schema.py` makes the JSON Schema.
`trace-mmap`, `hooks`, `stacks`, `snapshot`, `diff` and `diagnose` print these same shapes, so a script that reads one
of them reads all.
"""

from collections.abc import Iterable
from typing import Annotated, Literal, TypeVar

import msgspec

from memforensics.case import model
from memforensics.case.model import FrameKind, HookMechanism, ProbeState
from memforensics.text import basename, utf8_all

T = TypeVar("T", bound=msgspec.Struct)


class Shape(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One JSON object."""


def doc(description: str, **schema: object) -> msgspec.Meta:
    """The description of a field, and other words of its JSON Schema (`minimum`). They document and check nothing
    here: a figure out of range is shown as it was read."""
    return msgspec.Meta(description=description, extra_json_schema=dict(schema) or None)


def shaped(shape: type[T], source: object, /, **more: object) -> T:
    """The shape, with the attributes of `source` that have the names of its fields, and with `more`."""
    names = zip(shape.__struct_fields__, shape.__struct_encode_fields__, strict=True)
    fields = {key: more[name] if name in more else getattr(source, name) for name, key in names}
    return msgspec.convert(fields, shape, from_attributes=True)


def json_bytes(value: object, indent: int = 2) -> bytes:
    """JSON, as UTF-8: one line with `indent` 0. An open end of an interval is null; bytes of the target that are no
    UTF-8 become \\udcXX."""
    try:
        encoded = msgspec.json.encode(value)
    except UnicodeEncodeError:
        encoded = msgspec.json.encode(utf8_all(msgspec.to_builtins(value)))
    return msgspec.json.format(encoded, indent=indent) if indent else encoded


Verdict = Annotated[
    model.Verdict, doc("leak: exit code 1; growing and insufficient-data: 4; the others: 0. Growth alone is growing.")
]
Layer = Annotated[model.Layer, doc("What the memory belongs to. Bytes whose owner is not known are unattributed.")]
Pid = Annotated[int, doc("The process.")]
BuildId = Annotated[str | None, doc("GNU build id of that file, hexadecimal.")]


class Rate(Shape):
    """A slope with its interval."""

    estimate: Annotated[float | None, doc("Bytes a minute; null when no rate could be judged.")]
    low: Annotated[float | None, doc("Lower end of the interval, bytes a minute.")]
    high: Annotated[float | None, doc("Upper end of the interval, bytes a minute.")]
    confidence: Annotated[float | None, doc("Of the interval, 0 to 1.", minimum=0, maximum=1)]


def rate(found: model.Rate | None) -> Rate:
    return shaped(Rate, found) if found is not None else Rate(estimate=None, low=None, high=None, confidence=None)


# --- code ----------------------------------------------------------------------------------------------------------


class Frame(Shape):
    """One frame of a stack."""

    kind: Annotated[FrameKind, doc("hook: a native frame inside a library that intercepts the function called.")]
    function: Annotated[str | None, doc("Demangled symbol or qualified name; null when unknown.")]
    module: Annotated[str | None, doc("Path of the mapped file; null for Python frames and code without a file.")]
    build_id: BuildId
    file: Annotated[str | None, doc("Source file.")]
    line: Annotated[int | None, doc("Source line.")]
    offset: Annotated[int | None, doc("Virtual address in the module's file, for symbolizing later.")]
    inlined: Annotated[bool, doc("The compiler put this function into its caller.")]
    guessed: Annotated[bool, doc("Found without unwind tables: may be wrong.")]


Stack = Annotated[tuple[Frame, ...], doc("Frames, leaf first.")]


class Cohort(Shape):
    """The blocks of one site that were allocated in one slot of time."""

    born_from_ns: Annotated[int, doc("Start of the slot, CLOCK_MONOTONIC nanoseconds.")]
    born_to_ns: Annotated[int, doc("End of the slot.")]
    born_bytes: Annotated[int, doc("Bytes allocated in the slot.")]
    born_count: Annotated[int, doc("Blocks allocated in the slot.")]
    left_bytes: Annotated[int, doc("Bytes of them that are outstanding at the end.")]
    left_count: Annotated[int, doc("Blocks of them that are outstanding at the end.")]


class Site(Shape):
    """Memory allocated through one stack."""

    pid: Pid
    kind: Annotated[str, doc("mmap, brk, mremap, malloc, fault.")]
    outstanding_bytes: Annotated[int, doc("Bytes allocated here and not freed.", minimum=0)]
    bytes_per_minute: Annotated[float | None, doc("Growth of the outstanding bytes.")]
    count: Annotated[int, doc("Outstanding blocks.", minimum=0)]
    inside: Annotated[str | None, doc("The hooked function in whose replacement the call was made, such as munmap.")]
    complete: Annotated[bool, doc("The walk reached the thread's first frame.")]
    doubtful: Annotated[bool, doc("Python and native frames did not match one to one.")]
    stack: Stack
    site_id: Annotated[int | None, doc("Number of the site in the trace.")]
    cohorts: Annotated[
        tuple[Cohort, ...] | None,
        doc("Allocations by time and what of them is outstanding, in order of time; null where not read.", maxItems=16),
    ]


class TracedSite(Site):
    """A site as the tracing commands print it: with its traffic, times and residency."""

    allocated_bytes: Annotated[int, doc("Bytes allocated here since the trace began.")]
    allocated_count: Annotated[int, doc("Blocks allocated here since the trace began.")]
    freed_bytes: Annotated[int, doc("Bytes of them that were freed.")]
    freed_count: Annotated[int, doc("Blocks of them that were freed.")]
    first_ns: Annotated[int, doc("First event, CLOCK_MONOTONIC nanoseconds.")]
    last_ns: Annotated[int, doc("Last event, CLOCK_MONOTONIC nanoseconds.")]
    resident_bytes: Annotated[int | None, doc("Resident bytes of the outstanding ranges, at the end.")]
    shared: Annotated[bool, doc("Mapped shared (MAP_SHARED).")]
    file_backed: Annotated[bool, doc("A mapping of a file on a disk: page cache.")]
    tmpfs: Annotated[bool, doc("A mapping of a file that lives in memory: memfd, /dev/shm, a tmpfs.")]
    placed: Annotated[bool, doc("The program chose the addresses (a hint or MAP_FIXED).")]
    effective_births: Annotated[
        int | None, doc("For sampled allocations: the number of exact ones that say as much; null when all were seen.")
    ]
    age_quantiles_s: Annotated[
        tuple[float, float, float] | None, doc("Age of the outstanding blocks in seconds: 10 %, 50 %, 90 %.")
    ]


def finding_site(site: model.FindingSite) -> Site:
    return shaped(
        Site,
        site,
        complete=site.stack.complete,
        doubtful=site.stack.doubtful,
        stack=site.stack.frames,
        cohorts=site.cohorts or None,
    )


def traced_site(site: model.AllocationSite, bytes_per_minute: float | None = None) -> TracedSite:
    return shaped(
        TracedSite,
        site,
        bytes_per_minute=bytes_per_minute,
        count=site.outstanding_count,
        inside=None,
        complete=site.stack.complete,
        doubtful=site.stack.doubtful,
        stack=site.stack.frames,
        cohorts=site.cohorts or None,
    )


class HookOwner(Shape):
    """The mapped file that gets the call."""

    library: Annotated[str | None, doc("Its file name; null when the call goes to memory without a file.")]
    path: Annotated[str | None, doc("Its path.")]
    version: Annotated[str | None, doc("Its version, read from the file.")]
    version_how: Annotated[str | None, doc("Where the version was read.")]
    build_id: BuildId
    function: Annotated[str | None, doc("The function that gets the call.")]


class Hook(Shape):
    """A watched function that does not run its own library's code first."""

    pid: Pid
    function: Annotated[str, doc("The intercepted function.")]
    mechanism: Annotated[
        HookMechanism,
        doc("got: changed GOT entries; inline: changed code at the function's entry; preload: an earlier definition."),
    ]
    owner: HookOwner
    patched_in: Annotated[str | None, doc("inline: the library whose code was changed.")]
    chain: Annotated[tuple[str, ...], doc("Each jump, object!function.")]
    objects: Annotated[tuple[str, ...], doc("got: the objects whose slots were changed.")]
    original_bytes: Annotated[str | None, doc("The entry's code in the file, hexadecimal.")]
    live_bytes: Annotated[str | None, doc("The entry's code in memory, hexadecimal.")]
    meaning: Annotated[str | None, doc("What this hook means, as a sentence.")]


def hook(found: model.Hook, meaning: str | None = None) -> Hook:
    owner = HookOwner(
        library=basename(found.owner_path) if found.owner_path else None,
        path=found.owner_path,
        version=found.owner_version,
        version_how=found.owner_version_how,
        build_id=found.owner_build_id,
        function=found.target_function,
    )
    return shaped(Hook, found, owner=owner, meaning=meaning)


# --- sizes ---------------------------------------------------------------------------------------------------------


class LayerRow(Shape):
    """One row of the waterfall."""

    layer: Layer
    in_rss: Annotated[bool, doc("Rows with true sum to the kernel's figure.")]
    bytes: Annotated[int | None, doc("Bytes at the end; null when not read.")]
    change_bytes: Annotated[int | None, doc("Change over the observation.")]
    bytes_per_minute: Rate
    verdict: Verdict


def layer_rows(rows: Iterable[model.LayerRow]) -> tuple[LayerRow, ...]:
    return tuple(shaped(LayerRow, row, bytes_per_minute=rate(row.rate)) for row in rows)


class KernelTotals(Shape):
    """Sums that the kernel keeps across the layers, of the whole tree at its last snapshots, in bytes; null: not
    read."""

    swap: Annotated[int | None, doc("Private memory that is swapped out; not in RSS.", minimum=0)]
    hugetlb: Annotated[int | None, doc("Pages of hugetlbfs; not in RSS.", minimum=0)]
    locked: Annotated[int | None, doc("Address space that mlock holds (VmLck).", minimum=0)]
    anon_huge: Annotated[int | None, doc("Part of RSS: anonymous memory in transparent huge pages.", minimum=0)]
    shmem_huge: Annotated[int | None, doc("Part of RSS: shared memory mapped by huge pages.", minimum=0)]
    file_huge: Annotated[int | None, doc("Part of RSS: files mapped by huge pages.", minimum=0)]


class Group(Shape):
    """Mappings that are one thing to a person, at two times."""

    group: Annotated[str, doc("Its name.")]
    layer: Layer
    before_bytes: Annotated[int | None, doc("Resident bytes before; null when not read.")]
    after_bytes: Annotated[int | None, doc("Resident bytes after.")]
    change_bytes: Annotated[int, doc("The difference.")]
    what: Annotated[Literal["grew", "shrank", "appeared", "went", "same"], doc("How it changed.")]
    count_before: Annotated[int, doc("Mappings before.")]
    count_after: Annotated[int, doc("Mappings after.")]
    moved: Annotated[
        bool,
        doc("The start moved while the end stayed: new memory was merged below. With same: its addresses changed."),
    ]
    summed: Annotated[
        int, doc("The number of smaller groups that this row sums; their layer is unattributed if they have several.")
    ]
    examples: Annotated[tuple[str, ...], doc("Some of the address ranges.")]


def mapping_groups(groups: Iterable[model.MappingGroup]) -> tuple[Group, ...]:
    return tuple(shaped(Group, group, group=group.name) for group in groups)


# --- how the observation went --------------------------------------------------------------------------------------


class Probe(Shape):
    """One probe on one process."""

    name: Annotated[str, doc("Name of the probe.")]
    pid: Annotated[int, doc("The process; 0: the host.", minimum=0)]
    status: Annotated[ProbeState, doc("How it went.")]
    why: Annotated[str, doc("What prevented it.")]
    enable: Annotated[str, doc("The command or setting that enables it.")]


class Loss(Shape):
    """Something that was not seen, counted."""

    what: Annotated[str, doc("What was lost.")]
    count: Annotated[int, doc("How many.", minimum=1)]
    reduce: Annotated[str, doc("The option or act that makes it less.")]


Losses = Annotated[dict[str, tuple[Loss, ...]], doc("Probe -> what it did not see, counted.")]


def losses(found: Iterable[model.Loss]) -> Losses:
    """By probe, without those that count nothing."""
    out: dict[str, tuple[Loss, ...]] = {}
    for loss in found:
        if loss.count:
            out[loss.probe] = (*out.get(loss.probe, ()), shaped(Loss, loss))
    return out


class Overhead(Shape):
    """What one probe cost. BPF programs run for what is traced and for the host's other processes."""

    bpf_run_ns: Annotated[int | None, doc("Time in the BPF programs, all runs, nanoseconds.")]
    bpf_runs: Annotated[int | None, doc("Runs of the BPF programs.")]
    bpf_share: Annotated[float | None, doc("That time over the observed time, of one CPU.")]
    observer_cpu_s: Annotated[float | None, doc("CPU time of memforensics itself, seconds.")]
    target_share: Annotated[float | None, doc("BPF time for what is traced over the CPU time that it used.")]
    asked_share: Annotated[float | None, doc("The requested bound of target_share; null: none.")]
    target_run_ns: Annotated[int | None, doc("Time in the BPF programs for what is traced, nanoseconds.")]
    target_runs: Annotated[int | None, doc("Runs for what is traced.")]
    host_run_ns: Annotated[int | None, doc("Time in the BPF programs for other processes, nanoseconds.")]
    host_runs: Annotated[int | None, doc("Runs for other processes, which are not traced.")]


OverheadByProbe = Annotated[dict[str, Overhead], doc("Probe -> what it cost.")]


def overhead(costs: Iterable[model.Cost], seconds: float | None) -> OverheadByProbe:
    return {
        cost.probe: shaped(
            Overhead,
            cost,
            bpf_share=cost.bpf_run_ns / (seconds * 1e9) if cost.bpf_run_ns is not None and seconds else None,
            host_run_ns=_less(cost.bpf_run_ns, cost.target_run_ns),
            host_runs=_less(cost.bpf_runs, cost.target_runs),
        )
        for cost in costs
    }


class PauseMs(Shape):
    """How long the target was stopped, in milliseconds."""

    total: Annotated[float, doc("All pauses together.")]
    longest: Annotated[float | None, doc("The longest pause; null where only the total is known.")]


def _less(total: int | None, part: int | None) -> int | None:
    return total - part if total is not None and part is not None else None
