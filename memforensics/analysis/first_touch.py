"""Names the code that first touches the new pages of a growing heap when no request for the memory was captured.
Pure."""

from collections import defaultdict
from dataclasses import dataclass, replace

from memforensics.analysis.blame import HEAP_REQUEST_ONLY, SITES_CITED, place_of, stack_and_culprit
from memforensics.analysis.next_steps import STEP_EVIDENCE
from memforensics.analysis.ownership import LAYER_NAMES
from memforensics.case.model import AllocationSite, Case, Culprit, EvidenceItem, Finding, FindingSite, Layer, Stack
from memforensics.units import size_text

FIRST_TOUCH_LAYERS: tuple[Layer, ...] = (
    "native-heap",
    "python-object",
)  # not heaps whose collector moves objects: it touches every page
MAJORITY_SHARE = 0.5  # of the bytes that became resident: code with a smaller share is not named
FIRST_TOUCH_ONLY = "this code touched new pages of the heap first; the leak may be elsewhere"


@dataclass(frozen=True, slots=True)
class _Touch:
    site: AllocationSite
    stack: Stack
    culprit: Culprit | None


def with_first_touch(case: Case, finding: Finding) -> Finding:
    """The finding, with the code that touches most new pages of its process, if faults were traced and the finding has
    no culprit. This shows which code makes the heap grow, not which code keeps the memory."""
    by_who: dict[tuple[object, ...], list[_Touch]] = defaultdict(list)
    for site in case.sites:
        if site.kind == "fault" and site.pid == finding.pid and not site.file_backed and site.outstanding_bytes > 0:
            stack, culprit = stack_and_culprit(case, site)
            who = (culprit.path, culprit.function, culprit.caller and culprit.caller.function) if culprit else ()
            by_who[who].append(_Touch(site, stack, culprit))
    if finding.culprit is not None or not by_who or finding.layer not in FIRST_TOUCH_LAYERS:
        return finding
    total = sum(_bytes(touches) for touches in by_who.values())
    most = max(by_who.values(), key=_bytes)
    most.sort(key=lambda touch: -touch.site.outstanding_bytes)
    culprit, part = most[0].culprit, _bytes(most) / total
    if culprit is None or part < MAJORITY_SHARE:
        return finding
    item = EvidenceItem(
        kind="touched",
        text=f"{part:.0%} of the {size_text(total)} that became resident during the page-fault trace was first touched "
        f"under {place_of(culprit)}",
        ref=f"sites/{finding.pid}/{most[0].site.site_id}",
    )
    return replace(
        finding,
        title=f"{LAYER_NAMES[finding.layer]} grows; most of it is first touched under {place_of(culprit)}",
        culprit=replace(culprit, extends=True),
        sites=tuple(_cited(touch) for touch in most[:SITES_CITED]),
        evidence=(*(known for known in finding.evidence if known.kind != STEP_EVIDENCE), item),
        against=(*(text for text in finding.against if text != HEAP_REQUEST_ONLY), FIRST_TOUCH_ONLY),
    )


def _bytes(touches: list[_Touch]) -> int:
    return sum(touch.site.outstanding_bytes for touch in touches)


def _cited(touch: _Touch) -> FindingSite:
    site = touch.site
    return FindingSite(
        pid=site.pid,
        outstanding_bytes=site.outstanding_bytes,
        bytes_per_minute=None,
        count=site.outstanding_count,
        inside=None,
        stack=touch.stack,
        kind=site.kind,
    )
