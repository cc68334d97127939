"""The JSON shapes that several commands share: a stack, a site, a hook, a layer, a capture, a mapping.

`schema/report-1.schema.json` documents each under the same name. `trace-mmap`, `hooks`, `stacks`, `snapshot`, `diff`
and `diagnose` print exactly these, so a script that reads one reads all.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any

from memforensics.case.model import (
    AllocationSite,
    CapturedStack,
    Cost,
    FindingSite,
    Frame,
    Hook,
    KernelTotals,
    LayerRow,
    Loss,
    Mapping,
    MappingGroup,
    Pause,
    ProbeStatus,
    Rate,
    Stack,
)
from memforensics.text import basename, utf8

Json = dict[str, Any]


def frame_json(frame: Frame) -> Json:
    """{kind, function, module, build_id, file, line, offset, inlined, guessed}; null where unknown."""
    return {
        "kind": frame.kind,
        "function": _text(frame.function),
        "module": _text(frame.module),
        "build_id": frame.build_id,
        "file": _text(frame.file),
        "line": frame.line,
        "offset": frame.offset,
        "inlined": frame.inlined,
        "guessed": frame.guessed,
    }


def stack_json(stack: Stack) -> list[Json]:
    """Frames, leaf first."""
    return [frame_json(frame) for frame in stack.frames]


def site_json(
    site: AllocationSite | FindingSite, *, inside: str | None = None, bytes_per_minute: float | None = None
) -> Json:
    """One allocation site. `inside` and `bytes_per_minute` are conclusions: a FindingSite carries its own, for an
    AllocationSite the caller gives them. A site of the trace also tells its traffic, times and residency."""
    out: Json = {
        "pid": site.pid,
        "kind": site.kind,
        "outstanding_bytes": site.outstanding_bytes,
        "bytes_per_minute": site.bytes_per_minute if isinstance(site, FindingSite) else bytes_per_minute,
        "count": site.count if isinstance(site, FindingSite) else site.outstanding_count,
        "inside": site.inside if isinstance(site, FindingSite) else inside,
        "complete": site.stack.complete,
        "doubtful": site.stack.doubtful,
        "stack": stack_json(site.stack),
        "site_id": site.site_id,
        "cohorts": [asdict(cohort) for cohort in site.cohorts] or None,
    }
    if isinstance(site, AllocationSite):
        out |= {
            "allocated_bytes": site.allocated_bytes,
            "allocated_count": site.allocated_count,
            "freed_bytes": site.freed_bytes,
            "freed_count": site.freed_count,
            "first_ns": site.first_ns,
            "last_ns": site.last_ns,
            "resident_bytes": site.resident_bytes,
            "shared": site.shared,
            "file_backed": site.file_backed,
            "tmpfs": site.tmpfs,
            "placed": site.placed,
            "effective_births": site.effective_births,
            "age_quantiles_s": list(site.age_quantiles_s) if site.age_quantiles_s is not None else None,
        }
    return out


def hook_json(hook: Hook, meaning: str | None = None) -> Json:
    """{pid, function, mechanism, owner: {library, path, version, build_id}, chain, objects, meaning}."""
    return {
        "pid": hook.pid,
        "function": hook.function,
        "mechanism": hook.mechanism,
        "owner": {
            "library": utf8(basename(hook.owner_path)) if hook.owner_path else None,
            "path": _text(hook.owner_path),
            "version": _text(hook.owner_version),
            "version_how": _text(hook.owner_version_how),
            "build_id": hook.owner_build_id,
            "function": _text(hook.target_function),
        },
        "patched_in": _text(hook.patched_in),
        "chain": [utf8(step) for step in hook.chain],
        "objects": [utf8(name) for name in hook.objects],
        "original_bytes": hook.original_bytes,
        "live_bytes": hook.live_bytes,
        "meaning": meaning,
    }


def capture_json(capture: CapturedStack) -> Json:
    """{pid, tid, function, stack, arguments: {name: value}, returned, pause_ms}: one stop in the debugger."""
    return {
        "pid": capture.pid,
        "tid": capture.tid,
        "t_ns": capture.t_ns,
        "function": capture.function,
        "arguments": dict(capture.arguments),
        "returned": capture.returned,
        "pause_ms": capture.pause_ms,
        "complete": capture.stack.complete,
        "doubtful": capture.stack.doubtful,
        "stack": stack_json(capture.stack),
    }


def rate_json(rate: Rate | None) -> Json:
    """{estimate, low, high, confidence}; each null when no rate could be judged."""
    if rate is None:
        return {"estimate": None, "low": None, "high": None, "confidence": None}
    return {
        "estimate": _finite(rate.estimate),
        "low": _finite(rate.low),
        "high": _finite(rate.high),
        "confidence": rate.confidence,
    }


def layer_json(row: LayerRow) -> Json:
    """{layer, in_rss, bytes, change_bytes, bytes_per_minute, verdict}: one row of the waterfall."""
    return {
        "layer": row.layer,
        "in_rss": row.in_rss,
        "bytes": row.bytes,
        "change_bytes": row.change_bytes,
        "bytes_per_minute": rate_json(row.rate),
        "verdict": row.verdict,
    }


def kernel_totals_json(kernel_totals: KernelTotals) -> Json:
    """{swap, hugetlb, locked, anon_huge, shmem_huge, file_huge}: sums that are no rows of layers; null: not read."""
    return {field.name: getattr(kernel_totals, field.name) for field in fields(kernel_totals)}


def group_json(group: MappingGroup) -> Json:
    """{group, layer, before_bytes, after_bytes, change_bytes, what, ...}: what `diff` prints."""
    return {
        "group": utf8(group.name),
        "layer": group.layer,
        "before_bytes": group.before_bytes,
        "after_bytes": group.after_bytes,
        "change_bytes": group.change_bytes,
        "what": group.what,
        "count_before": group.count_before,
        "count_after": group.count_after,
        "moved": group.moved,
        "summed": group.summed,
        "examples": [utf8(example) for example in group.examples],
    }


def mapping_json(mapping: Mapping, *, layer: str | None = None, group: str | None = None) -> Json:
    """One line of /proc/PID/maps; addresses as hexadecimal text, sizes in bytes, null = this reader cannot know.
    `read_ns`: when its figures were read, on the clock of the snapshot's `t_ns`; null: with the snapshot."""
    return {
        "start": f"{mapping.start:#x}",
        "end": f"{mapping.end:#x}",
        "size": mapping.size,
        "perms": mapping.perms,
        "path": utf8(mapping.path),
        "layer": layer,
        "group": _text(group),
        "rss": mapping.rss,
        "pss": mapping.pss,
        "anonymous": mapping.anonymous,
        "private_dirty": mapping.private_dirty,
        "swap": mapping.swap,
        "locked": mapping.locked,
        "anon_huge": mapping.anon_huge,
        "shmem_huge": mapping.shmem_huge,
        "file_huge": mapping.file_huge,
        "read_ns": mapping.read_ns,
    }


def losses_json(losses: Iterable[Loss]) -> Json:
    """Probe -> what it lost: {"trace-mmap": [{what, count, reduce}]}. Counts of nothing are left out."""
    out: Json = {}
    for loss in losses:
        if loss.count:
            out.setdefault(loss.probe, []).append({"what": utf8(loss.what), "count": loss.count, "reduce": loss.reduce})
    return out


def overhead_json(costs: Iterable[Cost], seconds: float | None) -> Json:
    """Probe -> what it cost: {"trace-mmap": {bpf_run_ns, bpf_runs, bpf_share, observer_cpu_s, target_share,
    asked_share, target_run_ns, target_runs, host_run_ns, host_runs}}. `target_*`: of runs for what is traced; `host_*`:
    for other processes. `bpf_share` is all of that time over the observed time (of one CPU), `target_share` the
    target's over the CPU time that what is traced used, `asked_share` its bound."""
    return {
        cost.probe: {
            "bpf_run_ns": cost.bpf_run_ns,
            "bpf_runs": cost.bpf_runs,
            "bpf_share": cost.bpf_run_ns / (seconds * 1e9) if cost.bpf_run_ns is not None and seconds else None,
            "observer_cpu_s": cost.observer_cpu_s,
            "target_share": cost.target_share,
            "asked_share": cost.asked_share,
            "target_run_ns": cost.target_run_ns,
            "target_runs": cost.target_runs,
            "host_run_ns": _less(cost.bpf_run_ns, cost.target_run_ns),
            "host_runs": _less(cost.bpf_runs, cost.target_runs),
        }
        for cost in costs
    }


def pauses_json(pauses: Iterable[Pause]) -> Json:
    """{total, longest} in milliseconds: how long the target was stopped."""
    each = [pause.ms for pause in pauses]
    return {"total": sum(each), "longest": max(each, default=0.0)}


def probe_json(status: ProbeStatus) -> Json:
    """{name, pid, status, why, enable}; pid 0 is the host."""
    return {
        "name": status.name,
        "pid": status.pid,
        "status": status.status,
        "why": utf8(status.why),
        "enable": utf8(status.enable),
    }


def _less(total: int | None, part: int | None) -> int | None:
    return total - part if total is not None and part is not None else None


def _finite(value: float) -> float | None:
    """JSON has no infinity: an open end of an interval is null."""
    return value if math.isfinite(value) else None


def _text(value: str | None) -> str | None:
    return utf8(value) if value is not None else None
