"""Growth that no traced site explains, and heaps: where it is, and which code requested it. Pure."""

from collections.abc import Sequence
from dataclasses import replace

from memforensics.analysis.blame import HEAPS, MINIMUM_BYTES_PER_MINUTE
from memforensics.analysis.first_touch import FIRST_TOUCH_LAYERS, with_first_touch
from memforensics.analysis.next_steps import STEP_EVIDENCE
from memforensics.analysis.ownership import LAYER_NAMES
from memforensics.case.model import (
    Case,
    EvidenceItem,
    Finding,
    Growth,
    Layer,
    LayerRow,
    MappingGroup,
    MemberGrowth,
)
from memforensics.units import size_text

UNEXPLAINED = "residue"  # kind of evidence
UNEXPLAINED_SHARE = 0.3  # growth that no finding explains, beyond which it is a finding of its own
MOSTLY_SEEN = 0.5  # of what a heap grew by, seen to be asked for: else nobody is named


def with_unexplained_growth(
    case: Case,
    growth: Growth,
    members: tuple[MemberGrowth, ...],
    rows: tuple[LayerRow, ...],
    findings: list[Finding],
    traced_bytes: int,
) -> list[Finding]:
    """The findings, and one for the growth that no site explains. Where code was seen that extends the same heap, both
    become one finding. Growth always has a finding."""
    explained = sum(f.share or 0.0 for f in findings)
    if growth.rate is None or explained >= 1.0 - UNEXPLAINED_SHARE:
        return findings
    left = growth.rate.estimate * (1.0 - explained)
    if left < MINIMUM_BYTES_PER_MINUTE and findings:
        return findings
    layer = _most_unseen(rows, findings, traced_bytes)
    pid = members[0].pid if members else (case.meta.root_pid or 0)
    if layer == "jvm-heap":
        why = "Java objects fill what the JVM reserved for them, and its collector moves them: no stack tells which"
    elif not case.traces:
        why = "mappings were not traced"
    elif layer in HEAPS:
        why = "a heap can grow within memory that was reserved before; no traced system call shows that"
    else:
        why = "its pages lie in mappings made before the trace began, or no system call of their own mapped them"
    rest = Finding(
        title=f"{LAYER_NAMES[layer]} grows about {size_text(left)}/min; no stack was captured",
        layer=layer,
        verdict="growing",
        confidence=0.0,
        share=1.0 - explained,
        pid=pid,
        evidence=(EvidenceItem(kind=UNEXPLAINED, text=f"no traced site explains this growth: {why}"),),
    )
    seen = next((f for f in findings if f.layer == layer and f.culprit is not None and f.culprit.extends), None)
    if seen is None:
        return [*findings, with_first_touch(case, rest)]
    return [with_first_touch(case, _one_heap(seen, rest, growth.rate.estimate)) if f is seen else f for f in findings]


def is_heap_without_stack(finding: Finding) -> bool:
    """Whether a heap grows here and nobody was seen to ask for most of it."""
    unseen = any(item.kind == UNEXPLAINED for item in finding.evidence)
    return unseen and finding.layer in FIRST_TOUCH_LAYERS and finding.culprit is None


def _most_unseen(rows: Sequence[LayerRow], findings: Sequence[Finding], traced_bytes: int) -> Layer:
    """The layer with the most growth that no finding explains."""
    unseen: dict[Layer, float] = {"unattributed": 0.0}
    for row in rows:
        if row.in_rss and row.layer != "file":
            explained = sum((f.share or 0.0) * traced_bytes for f in findings if f.layer == row.layer)
            unseen[row.layer] = (row.change_bytes or 0) - explained
    return max(unseen, key=lambda layer: unseen[layer]) if max(unseen.values()) > 0 else "unattributed"


def _one_heap(seen: Finding, rest: Finding, bytes_per_minute: float) -> Finding:
    """A heap that was extended in part by who was seen, in part by others."""
    share = (seen.share or 0.0) + (rest.share or 0.0)
    part = (seen.share or 0.0) / share
    mostly = part >= MOSTLY_SEEN
    about = f"{size_text(bytes_per_minute * share)}/min"
    return replace(
        seen,
        title=seen.title
        if mostly
        else f"{LAYER_NAMES[seen.layer]} grows about {about}; stacks were captured for {part:.0%} of it",
        culprit=seen.culprit if mostly else None,
        share=min(share, 1.0),
        rate=None,
        evidence=(*seen.evidence, *rest.evidence),
    )


_OBJECTS = {
    "Java heap": "count its objects twice, and compare (it runs inside the JVM, and stops it meanwhile): jcmd {pid} "
    "GC.class_histogram",
    "Go heap": "see which code holds memory, if the program serves net/http/pprof: go tool pprof "
    "http://localhost:6060/debug/pprof/heap",
    "V8 heap (JavaScript)": "take two heap snapshots with the inspector, which this opens in node: kill -USR1 {pid}",
}


def with_objects(finding: Finding, grown: Sequence[MappingGroup]) -> Finding:
    """How to see what lies in a heap that a runtime manages: no stack tells that. `grown`: the groups of mappings of
    its layer that grew, the most first."""
    text = _OBJECTS.get(grown[0].name) if grown else None
    if text is None:
        return finding
    item = EvidenceItem(kind=STEP_EVIDENCE, text=text.format(pid=finding.pid))
    return replace(finding, evidence=(*finding.evidence, item))
