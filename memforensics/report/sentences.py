"""Figures and sentences that every rendering shares. Plain text: each renderer escapes it."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from memforensics.case.model import (
    Case,
    Cost,
    Culprit,
    Diagnosis,
    Finding,
    FindingSite,
    Frame,
    Growth,
    Hook,
    KernelTotals,
    Loss,
    Remedy,
    Target,
)
from memforensics.text import basename
from memforensics.units import change_text, counted_text, duration_text, rate_text, size_text

_MECHANISMS = {
    "inline": "inline patch of {where}'s code",
    "got": "changed GOT entries of {objects}",
    "preload": "preloaded, found first by the dynamic linker",
}


_YEAR_10000_NS = 253_402_300_800 * 10**9

RESIDENT_SHARE = 0.9  # of a site's memory: below it the resident bytes are shown too


def iso_time(wall_ns: int | None) -> str | None:
    """Unix nanoseconds to ISO 8601 in UTC, to the millisecond. None where no calendar has it."""
    if wall_ns is None or not 0 <= wall_ns < _YEAR_10000_NS:
        return None
    moment = datetime.fromtimestamp(wall_ns / 1e9, tz=timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Observed:
    """How long and how often a case observed. `root`: the process that the user named, or the first one."""

    root: Target | None
    began_wall_ns: int
    seconds: float
    samples: int  # readings of the process read most often


def observed(case: Case) -> Observed:
    times = [sample.t_ns for sample in case.samples] or [snapshot.t_ns for snapshot in case.snapshots]
    for trace in case.traces:
        times += [trace.began_ns, trace.ended_ns]
    began = min(times, default=case.meta.anchor.monotonic_ns)
    root = case.target(case.meta.root_pid) if case.meta.root_pid is not None else None
    return Observed(
        root=root or next(iter(case.targets), None),
        began_wall_ns=case.meta.anchor.wall_at(began),
        seconds=(max(times, default=began) - began) / 1e9,
        samples=max(Counter(sample.pid for sample in case.samples).values(), default=0),
    )


def growth_sentence(growth: Growth | None) -> str:
    """+402 MiB/min (95% interval: +398 MiB to +406 MiB), linear."""
    if growth is None or growth.rate is None:
        return "rate not known yet"
    rate = growth.rate
    low, high = (change_text(edge) for edge in (rate.low, rate.high))
    return f"{rate_text(rate.estimate)} ({rate.confidence:.0%} interval: {low} to {high}), {growth.trend.shape}"


def limit_sentence(growth: Growth | None) -> str | None:
    """When the memory limit is reached. None without a limit, or without growth towards it."""
    if growth is None or growth.limit_bytes is None or growth.seconds_to_limit is None:
        return None
    return f"the limit of {size_text(growth.limit_bytes)} is reached in {duration_text(growth.seconds_to_limit)}"


def kernel_total_facts(kernel_totals: KernelTotals) -> list[tuple[str, int]]:
    """(what, bytes) of each sum of the kernel that is not a row of the waterfall and not zero."""
    named = (
        ("swapped out, not in RSS", kernel_totals.swap),
        ("part of RSS in huge pages", kernel_totals.anon_huge),
        ("part of RSS in huge pages, shared", kernel_totals.shmem_huge),
        ("part of RSS in huge pages, files", kernel_totals.file_huge),
        ("locked address space", kernel_totals.locked),
    )
    return [(name, size) for name, size in named if size]


def kernel_totals_sentence(kernel_totals: KernelTotals) -> str | None:
    """The same in one line. None if all are zero or were not read."""
    return "; ".join(f"{name}: {size_text(size)}" for name, size in kernel_total_facts(kernel_totals)) or None


def runtimes(case: Case, target: Target) -> list[tuple[str, str | None]]:
    """(name, version) of what runs inside. The version is read from the mapped file if possible."""
    read = {module.path: module.version for module in case.modules if module.pid == target.pid and module.version}
    return [(runtime.name, read.get(runtime.path or "", runtime.version)) for runtime in target.runtimes]


def target_sentence(case: Case, target: Target) -> str:
    """1234 (vLLM engine, cpython 3.11.7, glibc 2.36)."""
    about = [target.role] if target.role else []
    about += [f"{name} {version}" if version else name for name, version in runtimes(case, target)]
    return f"{target.pid} ({', '.join(about)})" if about else str(target.pid)


def culprit_sentence(culprit: Culprit) -> str:
    """libucs.so.0.0.0 1.19.0, in ucs_mpool_grow."""
    version = f" {culprit.version}" if culprit.version else ""
    function = f", in {culprit.function}" if culprit.function else ""
    return f"{culprit.library}{version}{function}"


def culprit_label(finding: Finding) -> str:
    """How the culprit is connected with the memory: it holds it, or it made a heap grow and the holder is unknown."""
    if finding.culprit is None or not finding.culprit.extends:
        return "held by"
    return "touched by" if any(site.kind == "fault" for site in finding.sites) else "requested by"


def caller_sentence(culprit: Culprit) -> str | None:
    """serve_request, server.py:88. If it belongs to a library: no application code on this stack; nearest: ..."""
    caller = culprit.caller
    if caller is None:
        return None
    where = f"{caller.function}, {source_place(caller.file, caller.line)}"
    return where if caller.application else f"no application code on this stack; nearest: {where}"


def finding_sentence(finding: Finding) -> str:
    """Its rate, share, layer and confidence."""
    parts = [finding.verdict, f"layer {finding.layer}"]
    if finding.rate is not None:
        parts.append(rate_text(finding.rate.estimate))
    if finding.share is not None:
        parts.append(f"{finding.share:.0%} of the growth")
    parts.append(f"confidence {finding.confidence:.0%}")
    return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Evidence:
    """The evidence of a finding, by the place where a report shows it."""

    why: tuple[str, ...]  # why a known cause grows
    facts: tuple[str, ...]
    no_help: tuple[str, ...]  # settings that seem to help and do not


def evidence_of(finding: Finding) -> Evidence:
    def of(*kinds: str) -> tuple[str, ...]:
        return tuple(item.text for item in finding.evidence if item.kind in kinds)

    facts = tuple(item.text for item in finding.evidence if item.kind not in ("cause", "does-not-help", "next"))
    return Evidence(of("cause"), facts, of("does-not-help"))


def same_remedies_as(diagnosis: Diagnosis, index: int) -> int | None:
    """Index of an earlier finding with the same cause and remedies, as several workers have. None if there is none."""
    finding = diagnosis.findings[index]
    if finding.cause is None:
        return None
    for earlier, other in enumerate(diagnosis.findings[:index]):
        if (other.cause, other.remedies) == (finding.cause, finding.remedies):
            return earlier
    return None


def hook_sentence(hooks: Sequence[Hook]) -> str:
    """How hooks of one owner and mechanism work: inline patch of libc.so.6's code; the calls go to ucm_override_mmap,
    ucm_override_munmap in libucm.so.0.0.0 1.19.0."""
    first = hooks[0]
    where = basename(first.patched_in) if first.patched_in else "the library"
    names = list(dict.fromkeys(basename(name) for hook in hooks for name in hook.objects))
    objects = _listed(names) if names else "loaded objects"
    owner = basename(first.owner_path) if first.owner_path else "memory without a file"
    version = f" {first.owner_version}" if first.owner_version else ""
    functions = list(dict.fromkeys(hook.target_function for hook in hooks if hook.target_function))
    calls = "the calls go" if len(hooks) > 1 else "the call goes"
    inside = f"{_listed(functions)} in " if functions else ""
    return f"{_MECHANISMS[first.mechanism].format(where=where, objects=objects)}; {calls} to {inside}{owner}{version}"


def hook_summary(hooks: Sequence[Hook]) -> str:
    """mmap, munmap: inline, by libucm.so.0.0.0 1.19.0."""
    first = hooks[0]
    owner = basename(first.owner_path) if first.owner_path else "memory without a file"
    version = f" {first.owner_version}" if first.owner_version else ""
    return f"{_listed([hook.function for hook in hooks])}: {first.mechanism}, by {owner}{version}"


def same_hooks(diagnosis: Diagnosis) -> list[tuple[list[Hook], list[str]]]:
    """The hooks of each process, owner and mechanism, and what they mean."""
    groups: dict[tuple[object, ...], list[Hook]] = {}
    for hook in diagnosis.hooks:
        groups.setdefault((hook.pid, hook.owner_path, hook.mechanism, hook.patched_in), []).append(hook)
    return [(hooks, _meanings(hooks, diagnosis)) for hooks in groups.values()]


def _meanings(hooks: Sequence[Hook], diagnosis: Diagnosis) -> list[str]:
    """What the hooks mean. Sentences that differ only in the name of the function become one."""
    sentences: dict[str, list[str]] = {}
    for hook in hooks:
        meaning = diagnosis.hook_meanings.get(hook.function)
        if meaning:
            functions = sentences.setdefault(re.sub(rf"\b{re.escape(hook.function)}\b", "\0", meaning), [])
            if hook.function not in functions:
                functions.append(hook.function)
    return [sentence.replace("\0", _listed(functions)) for sentence, functions in sentences.items()]


def remedy_setting(remedy: Remedy) -> str:
    """What to write: UCX_RCACHE_MAX_UNRELEASED=1024, UCX >= 1.21.0."""
    if not remedy.value:
        return remedy.name
    return f"{remedy.name}={remedy.value}" if remedy.kind == "env" else f"{remedy.name} {remedy.value}"


def scope_sentence(remedy: Remedy) -> str:
    return "takes effect after a restart" if remedy.scope == "restart" else "takes effect at once"


def _listed(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def source_place(file: str, line: int | None) -> str:
    return f"{file}:{line}" if line is not None else file


def frame_place(frame: Frame) -> str:
    """file:line for Python; for native code the file name of the object, and the source line if known."""
    if frame.kind == "python":
        return source_place(frame.file or "?", frame.line)
    module = basename(frame.module) if frame.module else "no file"
    return f"{module} ({source_place(basename(frame.file), frame.line)})" if frame.file else module


def frame_name(frame: Frame) -> str:
    if frame.function:
        return frame.function
    return f"+{frame.offset:#x}" if frame.offset is not None else "?"


def is_caller(frame: Frame, culprit: Culprit | None) -> bool:
    """Whether this is the caller that the finding names."""
    caller = culprit.caller if culprit else None
    return (
        caller is not None
        and frame.kind == "python"
        and frame.function == caller.function
        and frame.file == caller.file
        and frame.line == caller.line
    )


def not_seen_sentences(diagnosis: Diagnosis) -> list[str]:
    """What could not be observed, why, and what enables it."""
    return [
        f"{item.what}: {item.why}" + (f". To enable it: {item.enable}" if item.enable else "")
        for item in diagnosis.not_seen
    ]


def cost_sentences(case: Case) -> list[str]:
    """What the traces saw and what the observation cost."""
    return [*coverage_sentences(case), *overhead_sentences(case)]


def losses_sentences(case: Case) -> list[str]:
    """Every loss, with what reduces it."""
    return [f"{loss.probe}: {loss_text(loss)}" for loss in case.losses if loss.count]


def loss_text(loss: Loss) -> str:
    """3 events dropped: ring buffer full (reduce with: --overhead 5%)."""
    return f"{loss.count:,} {loss.what}" + (f" (reduce with: {loss.reduce})" if loss.reduce else "")


def overhead_sentences(case: Case) -> list[str]:
    """What the observation cost the target and memforensics itself."""
    seconds = observed(case).seconds
    out = []
    for cost in case.costs:
        parts = kernel_cost(cost, seconds)
        if cost.observer_cpu_s is not None:
            parts.append(f"memforensics used {duration_text(cost.observer_cpu_s)} of CPU time")
        if parts:
            name = f"{cost.probe}: " if cost.probe != "memforensics" else ""
            out.append(name + "; ".join(parts))
    longest = max((pause.ms for pause in case.pauses), default=0.0)
    out.append(
        f"the target was stopped {counted_text(len(case.pauses), 'time')}, for {longest:.1f} ms at most"
        if case.pauses
        else "the target was never stopped"
    )
    return out


def kernel_cost(cost: Cost, seconds: float) -> list[str]:
    """What the BPF programs cost the target, and the other processes of the host."""
    if cost.bpf_run_ns is None or cost.bpf_runs is None:
        return []
    if cost.target_run_ns is None or cost.target_runs is None:  # an old case
        return [_kernel_time(cost.bpf_run_ns, cost.bpf_runs, seconds)]
    share = f", {cost.target_share:.2%} of the CPU time of what is traced" if cost.target_share is not None else ""
    out = [_kernel_time(cost.target_run_ns, cost.target_runs, seconds) + share]
    host_runs = cost.bpf_runs - cost.target_runs
    if host_runs > 0:
        host = _kernel_time(cost.bpf_run_ns - cost.target_run_ns, host_runs, seconds)
        out.append(f"events of other processes, which are not traced: {host}")
    return out


def _kernel_time(ns: int, runs: int, seconds: float) -> str:
    share = f" ({ns / (seconds * 1e9):.2%} of one CPU)" if seconds else ""
    return f"{duration_text(ns / 1e9)} in the kernel in {runs:,} runs{share}"


def coverage_sentences(case: Case) -> list[str]:
    """How much of the growth each trace explains, and what it did not see in full."""
    sentences = []
    for trace in case.traces:
        text = f"{trace.engine} saw {trace.events:,} events of process {trace.pid}"
        if trace.coverage is not None:
            text += f"; the traced mappings explain {trace.coverage:.0%} of the growth of RSS"
        if trace.unwalked:
            text += f"; {trace.unwalked:,} mappings have sizes that come and go: their stacks were sampled"
        if trace.dropped_events:
            unknown = "an unknown part" if trace.unknown_bytes is None else size_text(trace.unknown_bytes)
            text += f"; {trace.dropped_events:,} events were dropped, and {unknown} is mapped by unknown code"
        sentences.append(text)
    return sentences


def hook_entry(site: FindingSite) -> int | None:
    """Index of the frame where the hook begins: its outermost frame that has the name of the intercepted function. None
    if the call was not made inside a hook."""
    if site.inside is None:
        return None
    hooks = [index for index, frame in enumerate(site.stack.frames) if frame.kind == "hook"]
    named = [index for index in hooks if site.inside in (site.stack.frames[index].function or "")]
    return max(named or hooks, default=None)


def shown_frames(site: FindingSite, culprit: Culprit | None, limit: int) -> tuple[int, int]:
    """How many frames to show, from the leaf, and how many to leave out: at most `limit`, and not far beyond the
    application's function."""
    frames = site.stack.frames
    marked = next((n for n, frame in enumerate(frames) if is_caller(frame, culprit)), None)
    enough = len(frames) if marked is None else max(marked + 4, 8)
    shown = min(enough, limit, len(frames))
    if len(frames) - shown <= 2:
        shown = len(frames)
    return shown, len(frames) - shown


def site_sentence(site: FindingSite) -> str:
    """397 MiB outstanding in 2,753 blocks, +402 MiB/min: mmap inside munmap."""
    rate = f", {rate_text(site.bytes_per_minute)}" if site.bytes_per_minute is not None else ""
    inside = f": {site.kind} inside {site.inside}" if site.inside else f", by {site.kind}"
    size, there = site.outstanding_bytes, site.resident_bytes
    if site.kind == "fault":
        return f"{size_text(size)} became resident in {counted_text(site.count, 'page fault')}"
    resident = f" ({size_text(there)} of it resident)" if there is not None and there < RESIDENT_SHARE * size else ""
    return f"{size_text(size)} outstanding{resident} in {counted_text(site.count, 'block')}{rate}{inside}"


def members_sentence(diagnosis: Diagnosis, case: Case) -> str | None:
    """Which process of the tree grows most. None if there is one process only."""
    if len(case.targets) < 2 or not diagnosis.members:
        return None
    most = max(diagnosis.members, key=lambda member: member.change_bytes)
    target = case.target(most.pid)
    who = target_sentence(case, target) if target else str(most.pid)
    name = f" {target.comm}" if target and target.comm else ""
    return f"{len(case.targets)} processes; most of the growth is in {who}{name}: {change_text(most.change_bytes)}"
