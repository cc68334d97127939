"""Growth that no traced site explains: its layer, and for heaps the code that requested memory. Pure."""

from collections.abc import Sequence
from dataclasses import replace

from memforensics.analysis.blame import HEAPS, MINIMUM_BYTES_PER_MINUTE
from memforensics.analysis.first_touch import FIRST_TOUCH_LAYERS, with_first_touch
from memforensics.analysis.next_steps import COMMANDS, STEP_EVIDENCE
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
UNEXPLAINED_SHARE = 0.3  # of the growth: a larger unexplained part is a finding of its own
MOSTLY_SEEN = 0.5  # of the growth of a heap: with a smaller captured part no code is named


def with_unexplained_growth(
    case: Case,
    growth: Growth,
    members: tuple[MemberGrowth, ...],
    rows: tuple[LayerRow, ...],
    findings: list[Finding],
    traced_bytes: int,
) -> list[Finding]:
    """The findings and one for the growth that no site explains. If a finding names code that extends the same heap,
    the two are joined. Growth always has at least one finding."""
    explained = sum(f.share or 0.0 for f in findings)
    if growth.rate is None or explained >= 1.0 - UNEXPLAINED_SHARE:
        return findings
    left = growth.rate.estimate * (1.0 - explained)
    if left < MINIMUM_BYTES_PER_MINUTE and findings:
        return findings
    layer = _most_unseen(rows, findings, traced_bytes)
    pid = members[0].pid if members else (case.meta.root_pid or 0)
    if layer == "jvm-heap":
        why = "the JVM allocates objects in memory it reserved earlier and moves them, so no stack shows who allocates"
    elif not case.traces:
        why = "mappings were not traced"
    elif layer in HEAPS:
        why = "a heap can grow inside memory it reserved earlier, without a system call to trace"
    else:
        why = "its pages belong to mappings made before the trace began, or no traced system call mapped them"
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
    """Whether this is a heap that grows without a captured stack for most of its growth."""
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
    """One finding of a heap that grew partly under captured stacks (`seen`) and partly without (`rest`)."""
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
    "Java heap": COMMANDS["jvm-heap"],
    "Go heap": "show which code holds memory, if the program serves net/http/pprof: go tool pprof "
    "http://localhost:6060/debug/pprof/heap",
    "V8 heap (JavaScript)": "take two heap snapshots with the node inspector, which this opens: kill -USR1 {pid}",
}


def with_objects(finding: Finding, grown: Sequence[MappingGroup]) -> Finding:
    """The finding with the command that lists the objects of a heap which a runtime manages; stacks do not show those.
    `grown`: the mapping groups of its layer that grew, largest first."""
    text = _OBJECTS.get(grown[0].name) if grown else None
    if text is None:
        return finding
    item = EvidenceItem(kind=STEP_EVIDENCE, text=text.format(pid=finding.pid))
    return replace(finding, evidence=(*finding.evidence, item))
