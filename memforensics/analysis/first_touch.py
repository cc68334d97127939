"""Who first touched the memory that a heap grew by, where nobody was seen to ask for it. Pure."""

from collections import defaultdict
from dataclasses import dataclass, replace

from memforensics.analysis.blame import HEAP_REQUEST_ONLY, SITES_CITED, place_of, stack_and_culprit
from memforensics.case.model import AllocationSite, Case, Culprit, EvidenceItem, Finding, FindingSite, Layer, Stack
from memforensics.units import size_text

FIRST_TOUCH_LAYERS: tuple[Layer, ...] = (
    "native-heap",
    "python-object",
)  # a collector that moves objects touches for all
MAJORITY_SHARE = 0.5  # of what became resident: less, and nobody is named
FIRST_TOUCH_ONLY = "this code touched the new pages of the heap first; the leak may be elsewhere"


@dataclass(frozen=True, slots=True)
class _Touch:
    site: AllocationSite
    stack: Stack
    culprit: Culprit | None


def with_first_touch(case: Case, finding: Finding) -> Finding:
    """The finding, with who touches most of what becomes resident in its process, where faults were traced and it names
    nobody. Evidence of who makes it grow: never of who keeps it."""
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
        text=f"{part:.0%} of the {size_text(total)} that became resident while page faults were traced was first "
        f"touched through {place_of(culprit)}",
        ref=f"sites/{finding.pid}/{most[0].site.site_id}",
    )
    return replace(
        finding,
        title=f"{finding.layer} grows, mostly first touched through {place_of(culprit)}",
        culprit=replace(culprit, extends=True),
        sites=tuple(_cited(touch) for touch in most[:SITES_CITED]),
        evidence=(*(known for known in finding.evidence if known.kind != "next"), item),
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
