"""The report as one JSON object. `schema/report-1.schema.json` documents every field, with its unit."""

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from memforensics.case.model import (
    Caller,
    Case,
    Culprit,
    Diagnosis,
    EvidenceItem,
    Finding,
    Growth,
    MemberGrowth,
    NotSeen,
    Remedy,
    Target,
)
from memforensics.report.json.shapes import (
    Json,
    group_json,
    hook_json,
    kernel_totals_json,
    layer_json,
    losses_json,
    overhead_json,
    probe_json,
    rate_json,
    site_json,
)
from memforensics.report.sentences import observed, runtimes
from memforensics.text import utf8

SCHEMA = "memforensics/report/1"
_YEAR_10000_NS = 253_402_300_800 * 10**9


def report_object(case: Case, diagnosis: Diagnosis) -> Json:
    """The whole report: everything that the other renderings show, and the numbers behind it."""
    seen = observed(case)
    members = {member.pid: member for member in diagnosis.members}
    root = seen.root
    return {
        "schema": SCHEMA,
        "verdict": diagnosis.verdict,
        "exit_code": diagnosis.exit_code,
        "headline": utf8(diagnosis.headline),
        "next_step": utf8(diagnosis.next_step) if diagnosis.next_step else None,
        "made_by": {
            "memforensics": case.meta.memforensics_version,
            "command": case.meta.command,
            "kernel": utf8(case.meta.kernel),
            "seed": case.meta.seed,
        },
        "target": None
        if root is None
        else {
            **_target(case, root, members),
            "children": [_target(case, child, members) for child in case.targets if child.pid != root.pid],
        },
        "observed": {
            "began": iso_time(seen.began_wall_ns),
            "seconds": seen.seconds,
            "samples": seen.samples,
            "probes": [probe_json(status) for status in case.probes],
            "overhead": overhead_json(case.costs, seen.seconds),
            "longest_pause_ms": max((pause.ms for pause in case.pauses), default=0.0),
            "losses": losses_json(case.losses),
            "coverage": [
                {
                    "pid": t.pid,
                    "engine": t.engine,
                    "events": t.events,
                    "coverage": t.coverage,
                    "dropped_events": t.dropped_events,
                    "unknown_bytes": t.unknown_bytes,
                }
                for t in case.traces
            ],
        },
        "growth": growth_json(diagnosis.growth),
        "layers": [layer_json(row) for row in diagnosis.layers],
        "beside": kernel_totals_json(diagnosis.kernel_totals),
        "groups": [group_json(group) for group in diagnosis.groups],
        "hooks": [hook_json(hook, diagnosis.hook_meanings.get(hook.function)) for hook in diagnosis.hooks],
        "findings": [_finding(finding) for finding in diagnosis.findings],
        "not_seen": [_not_seen(item) for item in diagnosis.not_seen],
    }


def report_text(case: Case, diagnosis: Diagnosis) -> str:
    """The object as indented JSON text."""
    return json.dumps(report_object(case, diagnosis), indent=2, ensure_ascii=False, allow_nan=False)


def schema() -> Json:
    """The JSON Schema (2020-12) of the report."""
    text = Path(__file__).with_name("schema").joinpath("report-1.schema.json").read_text(encoding="utf-8")
    loaded: Json = json.loads(text)
    return loaded


def iso_time(wall_ns: int | None) -> str | None:
    """Unix nanoseconds to ISO 8601 in UTC, to the millisecond. None where no calendar has it."""
    if wall_ns is None or not 0 <= wall_ns < _YEAR_10000_NS:
        return None
    moment = datetime.fromtimestamp(wall_ns / 1e9, tz=timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _target(case: Case, target: Target, members: dict[int, MemberGrowth]) -> Json:
    cgroup, member = target.cgroup, members.get(target.pid)
    return {
        "pid": target.pid,
        "ppid": target.ppid,
        "start_time": iso_time(target.start_wall_ns),
        "comm": utf8(target.comm),
        "cmdline": [utf8(word) for word in target.cmdline],
        "exe": utf8(target.exe) if target.exe else None,
        "role": target.role,
        "runtimes": [{"name": name, "version": version} for name, version in runtimes(case, target)],
        "cgroup": None
        if cgroup is None
        else {
            "version": cgroup.version,
            "path": utf8(cgroup.path),
            "limit_bytes": cgroup.limit_bytes,
            "usage_bytes": cgroup.usage_bytes,
            "anon_bytes": cgroup.anon_bytes,
            "file_bytes": cgroup.file_bytes,
        },
        "environment": [{"name": utf8(v.name), "value": utf8(v.value), "source": v.source} for v in target.environment],
        "left": utf8(target.left_how) if target.left_how else None,
        "change_bytes": member.change_bytes if member else None,
        "bytes_per_minute": rate_json(member.rate if member else None),
    }


def growth_json(growth: Growth | None) -> Json:
    """{metric, shape, bytes_per_minute, limit_bytes, seconds_to_limit, p, bound_bytes}: the line that was judged."""
    if growth is None:
        return {
            "metric": None,
            "shape": None,
            "bytes_per_minute": rate_json(None),
            "limit_bytes": None,
            "seconds_to_limit": None,
            "p": None,
            "bound_bytes": None,
        }
    return {
        "metric": growth.metric,
        "shape": growth.trend.shape,
        "bytes_per_minute": rate_json(growth.rate),
        "limit_bytes": growth.limit_bytes,
        "seconds_to_limit": growth.seconds_to_limit,
        "p": growth.trend.p,
        "bound_bytes": growth.trend.bound_bytes,
    }


def _finding(finding: Finding) -> Json:
    return {
        "cause": finding.cause,
        "title": utf8(finding.title),
        "layer": finding.layer,
        "verdict": finding.verdict,
        "confidence": finding.confidence,
        "share": finding.share,
        "pid": finding.pid,
        "members": list(finding.pids),
        "bytes_per_minute": rate_json(finding.rate),
        "culprit": _culprit(finding.culprit),
        "sites": [site_json(site) for site in finding.sites],
        "evidence": [_evidence(item) for item in finding.evidence],
        "against": [utf8(text) for text in finding.against],
        "remedies": [_remedy(remedy) for remedy in finding.remedies],
        "next_step": utf8(finding.next_step) if finding.next_step else None,
    }


def _culprit(culprit: Culprit | None) -> Json | None:
    if culprit is None:
        return None
    return {
        "library": utf8(culprit.library),
        "path": utf8(culprit.path) if culprit.path else None,
        "version": utf8(culprit.version) if culprit.version else None,
        "build_id": culprit.build_id,
        "function": utf8(culprit.function) if culprit.function else None,
        "caller": _caller(culprit.caller),
        "extends": culprit.extends,
    }


def _caller(caller: Caller | None) -> Json | None:
    if caller is None:
        return None
    return {
        "function": utf8(caller.function),
        "file": utf8(caller.file),
        "line": caller.line,
        "application": caller.application,
    }


def _evidence(item: EvidenceItem) -> Json:
    return {"kind": item.kind, "text": utf8(item.text), "ref": utf8(item.ref)}


def _remedy(remedy: Remedy) -> dict[str, Any]:
    return {
        "kind": remedy.kind,
        "name": remedy.name,
        "value": remedy.value,
        "text": remedy.text,
        "scope": remedy.scope,
        "caveats": list(remedy.caveats),
        "source": remedy.source,
    }


def _not_seen(item: NotSeen) -> Json:
    return {"what": utf8(item.what), "why": utf8(item.why), "enable": utf8(item.enable)}
