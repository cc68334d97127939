"""The report of a case as one JSON object: what the other renderings show, and the figures behind it."""

from typing import Annotated, Literal

from memforensics.case import model
from memforensics.case.model import Case, Diagnosis, RemedyKind
from memforensics.report.json import shapes
from memforensics.report.json.shapes import BuildId, Layer, Pid, Rate, Verdict, doc, json_bytes, shaped
from memforensics.report.sentences import iso_time, observed, runtimes


class MadeBy(shapes.Shape):
    """What made the case."""

    memforensics: Annotated[str, doc("Its version.")]
    command: Annotated[str, doc("diagnose, watch, ...")]
    kernel: Annotated[str, doc("Kernel release.")]
    seed: Annotated[int, doc("Seed of everything random in the analysis.")]


class Runtime(shapes.Shape):
    """Something that runs inside the process."""

    name: Annotated[str, doc("cpython, glibc, jvm, ...")]
    version: Annotated[str | None, doc("Its version.")]


class Cgroup(shapes.Shape):
    """The memory controller of the process."""

    version: Annotated[Literal[1, 2], doc("cgroup v1 or v2.")]
    path: Annotated[str, doc("Path of the memory controller.")]
    limit_bytes: Annotated[int | None, doc("null: no limit.")]
    usage_bytes: Annotated[int | None, doc("Bytes charged.")]
    anon_bytes: Annotated[int | None, doc("Anonymous bytes of them.")]
    file_bytes: Annotated[int | None, doc("Page cache of them.")]


class Variable(shapes.Shape):
    """An environment variable of the allow-list."""

    name: Annotated[str, doc("Name.")]
    value: Annotated[str, doc("Value.")]
    source: Annotated[
        Literal["exec", "live"],
        doc("exec: from the block at exec time, where unset proves nothing; live: read from memory."),
    ]


class Process(shapes.Shape):
    """One process of the tree."""

    pid: Annotated[int, doc("Process id, as seen by memforensics.", minimum=1)]
    ppid: Annotated[int | None, doc("Its parent.")]
    start_time: Annotated[str | None, doc("ISO 8601, UTC.")]
    comm: Annotated[str, doc("Its name in the kernel.")]
    cmdline: Annotated[tuple[str, ...], doc("The words of the command line.")]
    exe: Annotated[str | None, doc("Path of its program.")]
    role: Annotated[str | None, doc("vLLM engine, llama-server, ...; null when the command line does not say.")]
    runtimes: Annotated[tuple[Runtime, ...], doc("What runs inside.")]
    cgroup: Cgroup | None
    environment: Annotated[tuple[Variable, ...], doc("Variables of the allow-list only.")]
    left: Annotated[str | None, doc("How it exited while observed.")]
    change_bytes: Annotated[int | None, doc("Growth of this process over the observation.")]
    bytes_per_minute: Rate


class RootProcess(Process):
    """The process that was named, with the other processes of its tree."""

    children: Annotated[tuple[Process, ...], doc("The other processes of the tree, all in one list.")]


class Coverage(shapes.Shape):
    """How much of the growth one trace explains."""

    pid: Pid
    engine: Annotated[str, doc("bcc or bpftrace.")]
    events: Annotated[int, doc("Events seen.")]
    coverage: Annotated[float | None, doc("Resident bytes of the outstanding ranges over the growth of RSS, uncapped.")]
    dropped_events: Annotated[
        int, doc("Events of the whole trace, all its processes together, that were dropped.", minimum=0)
    ]
    unknown_bytes: Annotated[
        int | None, doc("Mapped by unknown code, because events were dropped; null: not compared.", minimum=0)
    ]


class Observed(shapes.Shape):
    """The extent of the observation, and what it cost."""

    began: Annotated[str | None, doc("ISO 8601, UTC.")]
    seconds: Annotated[float, doc("Length of the observation.", minimum=0)]
    samples: Annotated[int, doc("Readings of /proc/PID/status of the process read most often.", minimum=0)]
    probes: Annotated[tuple[shapes.Probe, ...], doc("The probes that ran, or could not.")]
    overhead: shapes.OverheadByProbe
    longest_pause_ms: Annotated[
        float, doc("Longest stop of the target that memforensics caused; 0: never stopped.", minimum=0)
    ]
    losses: shapes.Losses
    coverage: Annotated[tuple[Coverage, ...], doc("How much of the growth each trace explains.")]


class Growth(shapes.Shape):
    """The series that was judged, of the whole tree."""

    metric: Annotated[str | None, doc("What growth is judged on; null when nothing could be judged.")]
    shape: Annotated[model.Shape | None, doc("Shape of the series.")]
    bytes_per_minute: Rate
    limit_bytes: Annotated[int | None, doc("The lowest memory limit; null: none.")]
    seconds_to_limit: Annotated[float | None, doc("At this rate.")]
    p: Annotated[float | None, doc("Mann-Kendall, one-sided: no upward trend.")]
    bound_bytes: Annotated[int | None, doc("Where a plateau levels off.")]


class Caller(shapes.Shape):
    """The application's innermost Python function on the stack."""

    function: Annotated[str, doc("Qualified name.")]
    file: Annotated[str, doc("Source file.")]
    line: Annotated[int | None, doc("Source line.")]
    application: Annotated[
        bool, doc("False: no application code is on the stack, and this is the innermost function of a library.")
    ]


class Culprit(shapes.Shape):
    """Whose code holds the memory."""

    library: Annotated[str, doc("File name of the mapped object or, for memory held by Python code, the Python file.")]
    path: Annotated[str | None, doc("Its path.")]
    version: Annotated[str | None, doc("Its version.")]
    build_id: BuildId
    function: Annotated[str | None, doc("The function to name.")]
    caller: Caller | None
    extends: Annotated[
        bool, doc("True: this code made a heap grow when it was full; who keeps the memory in it is not known.")
    ]


class Evidence(shapes.Shape):
    """One fact."""

    kind: Annotated[str, doc("rate, hook, stack, version, cause, ...")]
    text: Annotated[str, doc("The fact.")]
    ref: Annotated[str, doc("The record of the case that says so; may be empty.")]


class Remedy(shapes.Shape):
    """One rung of the ladder."""

    kind: Annotated[RemedyKind, doc("What has to be changed.")]
    name: Annotated[str, doc("Variable, flag, setting or product.")]
    value: Annotated[str, doc("Its value, exactly.")]
    text: Annotated[str, doc("What to do.")]
    scope: Annotated[Literal["restart", "live"], doc("When it takes effect.")]
    caveats: Annotated[tuple[str, ...], doc("What speaks against it, or needs care.")]
    source: Annotated[str, doc("Where this is documented.")]


class Finding(shapes.Shape):
    """One thing that grows: through whose code, why, and what to do."""

    cause: Annotated[str | None, doc("Id of the catalogue's entry; null: no known cause matches.")]
    title: Annotated[str, doc("One line.")]
    layer: Layer
    verdict: Verdict
    confidence: Annotated[float, doc("0 to 1.", minimum=0, maximum=1)]
    share: Annotated[float | None, doc("Of the growth of the tree. Can pass 1 where another part shrank.")]
    pid: Annotated[int, doc("The process; of several with an equal finding, the one that grows most.")]
    members: Annotated[tuple[int, ...], doc("All processes with an equal finding; rate and share are their sums.")]
    bytes_per_minute: Rate
    culprit: Culprit | None
    sites: Annotated[tuple[shapes.Site, ...], doc("Where the memory is allocated, largest first.")]
    evidence: Annotated[tuple[Evidence, ...], doc("What speaks for it.")]
    against: Annotated[tuple[str, ...], doc("What speaks against it, or lowers the confidence.")]
    remedies: Annotated[tuple[Remedy, ...], doc("In the order to try them.")]
    next_step: Annotated[str | None, doc("What to do next, with the command to run.")]


class NotSeen(shapes.Shape):
    """One limit of the report."""

    what: Annotated[str, doc("What could not be observed.")]
    why: Annotated[str, doc("Why.")]
    enable: Annotated[str, doc("What would make it visible.")]


class Report(shapes.Shape):
    """Bytes are integers, rates are bytes a minute, shares 0 to 1. null: not read, or not known; absent is not zero."""

    schema: Literal["memforensics/report/1"]
    verdict: Verdict
    exit_code: Annotated[Literal[0, 1, 4], doc("The exit code of diagnose.")]
    headline: Annotated[str, doc("The answer in one sentence.")]
    next_step: Annotated[
        str | None, doc("What to do next: the step of the first finding, or what would decide the verdict.")
    ]
    made_by: MadeBy
    target: Annotated[
        RootProcess | None, doc("The process that was named, or the first seen; null when there was none.")
    ]
    observed: Observed
    growth: Growth
    layers: Annotated[tuple[shapes.LayerRow, ...], doc("The waterfall: rows with in_rss sum to the kernel's figure.")]
    beside: shapes.KernelTotals
    groups: Annotated[tuple[shapes.Group, ...], doc("Groups of mappings, by growth.")]
    hooks: Annotated[tuple[shapes.Hook, ...], doc("Watched functions that do not run their own library's code first.")]
    findings: Annotated[
        tuple[Finding, ...], doc("What grows, through whose code, why, and what to do; the most important first.")
    ]
    not_seen: Annotated[tuple[NotSeen, ...], doc("The limits of this report.")]


def report(case: Case, diagnosis: Diagnosis) -> Report:
    seen = observed(case)
    root = seen.root
    return Report(
        schema="memforensics/report/1",
        verdict=diagnosis.verdict,
        exit_code=diagnosis.exit_code,  # type: ignore[arg-type]  # one of EXIT_CODES
        headline=diagnosis.headline,
        next_step=diagnosis.next_step or None,
        made_by=shaped(MadeBy, case.meta, memforensics=case.meta.memforensics_version),
        target=_root(case, diagnosis, root) if root is not None else None,
        observed=Observed(
            began=iso_time(seen.began_wall_ns),
            seconds=seen.seconds,
            samples=seen.samples,
            probes=tuple(shaped(shapes.Probe, status) for status in case.probes),
            overhead=shapes.overhead(case.costs, seen.seconds),
            longest_pause_ms=max((pause.ms for pause in case.pauses), default=0.0),
            losses=shapes.losses(case.losses),
            coverage=tuple(shaped(Coverage, trace) for trace in case.traces),
        ),
        growth=growth(diagnosis.growth),
        layers=shapes.layer_rows(diagnosis.layers),
        beside=shaped(shapes.KernelTotals, diagnosis.kernel_totals),
        groups=shapes.mapping_groups(diagnosis.groups),
        hooks=tuple(shapes.hook(hook, diagnosis.hook_meanings.get(hook.function)) for hook in diagnosis.hooks),
        findings=tuple(map(_finding, diagnosis.findings)),
        not_seen=tuple(shaped(NotSeen, item) for item in diagnosis.not_seen),
    )


def report_text(case: Case, diagnosis: Diagnosis) -> str:
    """The object as indented JSON text."""
    return json_bytes(report(case, diagnosis)).decode()


def growth(found: model.Growth | None) -> Growth:
    if found is None:
        unknown = dict.fromkeys(("metric", "shape", "limit_bytes", "seconds_to_limit", "p", "bound_bytes"))
        return Growth(bytes_per_minute=shapes.rate(None), **unknown)
    return shaped(
        Growth,
        found,
        shape=found.trend.shape,
        bytes_per_minute=shapes.rate(found.rate),
        p=found.trend.p,
        bound_bytes=found.trend.bound_bytes,
    )


def _root(case: Case, diagnosis: Diagnosis, root: model.Target) -> RootProcess:
    others = tuple(_process(Process, case, diagnosis, child) for child in case.targets if child.pid != root.pid)
    return _process(RootProcess, case, diagnosis, root, children=others)


def _process(shape: type[shapes.T], case: Case, diagnosis: Diagnosis, target: model.Target, **more: object) -> shapes.T:
    member = next((member for member in reversed(diagnosis.members) if member.pid == target.pid), None)
    return shaped(
        shape,
        target,
        start_time=iso_time(target.start_wall_ns),
        exe=target.exe or None,
        runtimes=tuple(Runtime(name=name, version=version) for name, version in runtimes(case, target)),
        left=target.left_how or None,
        change_bytes=member.change_bytes if member else None,
        bytes_per_minute=shapes.rate(member.rate if member else None),
        **more,
    )


def _finding(finding: model.Finding) -> Finding:
    return shaped(
        Finding,
        finding,
        members=finding.pids,
        bytes_per_minute=shapes.rate(finding.rate),
        sites=tuple(map(shapes.finding_site, finding.sites)),
        next_step=finding.next_step or None,
    )
