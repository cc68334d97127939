"""Groups allocation sites and names the code that makes memory grow. The findings have no cause yet (the catalogue adds
it) and no verdict (verdict.py adds it). Pure.

Groups are ranked by outstanding growth, not by traffic: in the reference case 65 leaking mmaps a second are hidden
among 60,000 balanced ones. They are grouped by stack, not by address, because mappings merge and move."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from memforensics.analysis.application import package_path
from memforensics.analysis.frames import is_v8_heap
from memforensics.analysis.ownership import LAYER_NAMES
from memforensics.analysis.site_groups import (
    AttributedSite,
    attribute,
    group_sites,
    resident_bytes,
    resident_share,
    site_rate,
)
from memforensics.analysis.trend import fit_trend
from memforensics.case.model import (
    AllocationSite,
    Caller,
    Case,
    Culprit,
    EvidenceItem,
    Finding,
    FindingSite,
    Frame,
    Hook,
    Layer,
    Rate,
    Stack,
    Trend,
)
from memforensics.case.views import GroupKey, SiteGroup
from memforensics.text import basename
from memforensics.units import MIB, NS_PER_S, counted_text, rate_text, size_text

MINIMUM_BYTES_PER_MINUTE = 1 * MIB  # a slower group of sites is not a finding
MINIMUM_SHARE = 0.05  # of the growth: a smaller group is not a finding
SITES_CITED = 5
PROCESSES_CITED = 3  # of those with an equal finding
SITES_TRIED = 12  # of a group that does not grow in a line, each judged alone
OWNED_SHARE = 0.5  # of what a group maps: the layer that owns it grew by at least this much
HEAPS: tuple[Layer, ...] = ("native-heap", "python-object", "jvm-heap")
_RUNTIME_HEAPS: tuple[Layer, ...] = (*HEAPS, "jvm-native")
HEAP_REQUEST_ONLY = "this code made the heap grow; the leak may be elsewhere"


@dataclass(frozen=True, slots=True)
class GrowthGroup:
    """One or more groups of sites that are fixed at one place in the code, in one process or in several that run the
    same code."""

    pid: int
    layer: Layer
    inside: str | None
    culprit: Culprit | None
    sites: tuple[AllocationSite, ...]  # most growth first, with hook frames marked
    growth_bytes: int  # resident growth since the trace began
    trend: Trend | None = None
    bytes_per_minute: tuple[float | None, ...] = ()  # of each site
    pids: tuple[int, ...] = ()  # of several processes, the one with the largest site first; empty: `pid` alone


def growth_groups(case: Case) -> list[GrowthGroup]:
    """All anonymous sites with outstanding memory, most growth first. Sites of page faults are left out: they show who
    touches memory, not who holds it."""
    sites = [site for site in case.sites if not site.file_backed and site.kind != "fault"]
    joined: dict[GroupKey, list[SiteGroup]] = defaultdict(list)
    for group in group_sites(sites, case.hooks, 0):
        joined[_fixed_at(group)].append(group)
    return sorted((_growth_group(case, groups) for groups in joined.values()), key=lambda g: -g.growth_bytes)


def _fixed_at(group: SiteGroup) -> GroupKey:
    """Groups with equal keys are fixed at one place: a heap, whichever code requested memory; a Python function,
    whoever called it; a library that maps memory inside a hook."""
    named, process = group.named, (group.pid, group.layer, group.extends)
    if group.extends or named is None:
        return (*process, group.inside)
    if named.kind == "python":
        return (*process, group.inside, named.file, named.function)
    return (*process, group.inside, named.module) if group.inside is not None else group.key


def _growth_group(case: Case, groups: Sequence[SiteGroup]) -> GrowthGroup:
    sites = sorted((site for group in groups for site in group.sites), key=lambda site: -resident_bytes(site))
    largest = max(groups, key=lambda group: sum(map(resident_bytes, group.sites)))
    top = max(largest.sites, key=resident_bytes)
    return GrowthGroup(
        pid=sites[0].pid,
        layer=largest.layer,
        inside=largest.inside,
        culprit=_culprit_of(case, attribute(top, case.hooks)),
        sites=tuple(sites),
        growth_bytes=sum(map(resident_bytes, sites)),
    )


def stack_and_culprit(case: Case, site: AllocationSite) -> tuple[Stack, Culprit | None]:
    """The site's stack with hook frames marked, and the code that it names."""
    found = attribute(site, case.hooks)
    return found.site.stack, _culprit_of(case, found)


def _culprit_of(case: Case, found: AttributedSite) -> Culprit | None:
    culprit = _culprit(case, found.site.pid, found.named, found.caller)
    if culprit is None or not found.extends:
        return culprit
    function = None if is_v8_heap(found.site.stack.frames) else culprit.function
    return replace(culprit, extends=True, function=function)


def with_trends(case: Case, groups: Sequence[GrowthGroup], limit: int = 8) -> list[GrowthGroup]:
    """The first `limit` groups with the trend of their resident outstanding bytes. If a group does not grow in a line
    but some of its sites do, the group is reduced to those: one function may map both what is kept and what is
    freed."""
    out = []
    for group in groups[:limit]:
        trend = _trend(case, group)
        if len(group.sites) > 1 and (trend is None or trend.shape != "linear"):
            kept = [_alone(group, at) for at in range(min(len(group.sites), SITES_TRIED))]
            kept = [alone for alone in kept if (own := _trend(case, alone)) is not None and own.shape == "linear"]
            if kept:
                group = _joined(kept)
                trend = _trend(case, group)
        rates = tuple(site_rate(site) for site in group.sites)
        out.append(replace(group, trend=trend, bytes_per_minute=rates))
    return sorted(out, key=lambda g: -g.growth_bytes)


def _trend(case: Case, group: GrowthGroup) -> Trend | None:
    times, values = _timeline(case, group)
    return fit_trend(times, values) if len(times) >= 3 else None


def _alone(group: GrowthGroup, at: int) -> GrowthGroup:
    site = group.sites[at]
    return replace(group, pid=site.pid, pids=(site.pid,), sites=(site,), growth_bytes=resident_bytes(site))


Grown = Mapping[int, Mapping[Layer, int]]  # PID -> bytes that each layer grew by, by the owners of the mappings


def by_owner(groups: Sequence[GrowthGroup], grown: Grown) -> list[GrowthGroup]:
    """The groups with the layer that owns their mappings. A runtime maps its heap like any other code, so a stack alone
    does not show that the memory is a heap's. If anonymous memory grew too little for a group, and a heap grew by that
    much without another group to explain it, the group belongs to the heap."""
    found: dict[object, list[GrowthGroup]] = defaultdict(list)
    for group in groups:
        layer = _owner(group, groups, grown.get(group.pid, {}))
        culprit = group.culprit
        if layer != group.layer:
            culprit = replace(culprit, extends=True) if culprit else None
            group = replace(group, layer=layer, culprit=culprit)
        is_heap = group.inside is None and culprit is not None and culprit.extends
        found[(group.pid, layer) if is_heap else len(found)].append(group)
    return sorted(map(_joined, found.values()), key=lambda g: -g.growth_bytes)


def _owner(group: GrowthGroup, groups: Sequence[GrowthGroup], grown: Mapping[Layer, int]) -> Layer:
    enough = OWNED_SHARE * group.growth_bytes
    if group.layer != "anon-mmap" or group.inside is not None or not grown or grown.get("anon-mmap", 0) >= enough:
        return group.layer
    left = {
        layer: grown.get(layer, 0) - sum(g.growth_bytes for g in groups if (g.pid, g.layer) == (group.pid, layer))
        for layer in _RUNTIME_HEAPS
    }
    most = max(_RUNTIME_HEAPS, key=lambda layer: left[layer])
    return most if left[most] >= enough else group.layer


def _joined(groups: Sequence[GrowthGroup]) -> GrowthGroup:
    """One group of several, named after the largest."""
    if len(groups) == 1:
        return groups[0]
    sites = sorted((site for group in groups for site in group.sites), key=lambda site: -resident_bytes(site))
    return replace(
        max(groups, key=lambda group: group.growth_bytes),
        pids=tuple(dict.fromkeys(site.pid for site in sites)),
        sites=tuple(sites),
        growth_bytes=sum(group.growth_bytes for group in groups),
    )


def draft_findings(case: Case, growth_bytes: int, seconds: float, grown: Grown | None = None) -> list[Finding]:
    """Findings without cause and verdict, most growth first. Equal findings of several processes are one.
    `growth_bytes`: of the tree, in the observed `seconds`; groups below the minimum share or rate are left out.
    `grown`: growth by layer, from the owners of mappings."""
    findings = []
    for group in with_trends(case, _equal_as_one(by_owner(growth_groups(case), grown or {}))):
        rate = group.trend.rate if group.trend else None
        share = group.growth_bytes / growth_bytes if growth_bytes > 0 else None
        per_minute = rate.estimate if rate else group.growth_bytes / max(seconds, 1.0) * 60.0
        if per_minute < MINIMUM_BYTES_PER_MINUTE or (share is not None and share < MINIMUM_SHARE):
            continue
        findings.append(_finding(case, group, rate, share))
    return findings


def _equal_as_one(groups: Sequence[GrowthGroup]) -> list[GrowthGroup]:
    """Joins groups of several processes that name the same code (file names and functions). Groups without a culprit
    stay apart, and so do two groups of one process."""
    equal: dict[tuple[object, ...], list[GrowthGroup]] = defaultdict(list)
    seen: Counter[tuple[object, ...]] = Counter()
    for group in sorted(groups, key=lambda g: -g.growth_bytes):
        key: tuple[object, ...] = (group.layer, group.inside, group.pid)
        if group.culprit is not None:
            caller = group.culprit.caller
            called_from = (basename(caller.file), caller.function) if caller else None
            key = (*key[:2], group.culprit.library, group.culprit.function, group.culprit.extends, called_from)
        own = (group.pid, *key)
        key = (*key, seen[own])
        seen[own] += 1
        equal[key].append(group)
    return sorted(map(_joined, equal.values()), key=lambda g: -g.growth_bytes)


def of_each_process(finding: Finding, enrich: Callable[[Finding], Finding]) -> Finding:
    """The finding with the evidence that `enrich` adds for each of its processes. Each kind of evidence is added
    once."""
    evidence = list(finding.evidence)
    for pid in finding.pids:
        own = replace(finding, pid=pid, sites=tuple(site for site in finding.sites if site.pid == pid))
        kinds = {item.kind for item in evidence}
        evidence += [item for item in enrich(own).evidence if item.kind not in kinds]
    return replace(finding, evidence=tuple(evidence))


def sum_rates(rates: Iterable[Rate | None]) -> Rate | None:
    """The sum of the known rates. None if none is known."""
    known = [rate for rate in rates if rate is not None]
    if not known:
        return None
    return Rate(
        estimate=sum(r.estimate for r in known),
        low=sum(r.low for r in known),
        high=sum(r.high for r in known),
        confidence=min(r.confidence for r in known),
    )


def _finding(case: Case, group: GrowthGroup, rate: Rate | None, share: float | None) -> Finding:
    cited = tuple(
        FindingSite(
            pid=site.pid,
            outstanding_bytes=site.outstanding_bytes,
            bytes_per_minute=per_minute,
            count=site.outstanding_count,
            inside=group.inside,
            stack=site.stack,
            kind=site.kind,
            resident_bytes=site.resident_bytes,
            site_id=site.site_id,
            placed=site.placed,
            cohorts=site.cohorts,
        )
        for site, per_minute in _cited(group)
    )
    refs = f"sites/{group.sites[0].pid}/{group.sites[0].site_id}"
    evidence = [
        EvidenceItem(
            kind="stack",
            text=f"{size_text(group.growth_bytes)} mapped here since the trace began is outstanding and resident, in "
            f"{counted_text(sum(s.outstanding_count for s in group.sites), 'mapping')}",
            ref=refs,
        )
    ]
    if len(group.pids) > 1:
        total = f" ({rate_text(rate.estimate)} in total)" if rate else ""
        text = f"the same code grows in {len(group.pids)} processes{total}: {', '.join(map(str, group.pids))}"
        evidence.insert(0, EvidenceItem(kind="members", text=text, ref=refs))
    if rate is not None:
        evidence.append(
            EvidenceItem(
                kind="rate",
                text=f"these mappings grow {rate_text(rate.estimate)} (interval: {rate_text(rate.low)} to "
                f"{rate_text(rate.high)})",
                ref=refs,
            )
        )
    if group.inside is not None:
        evidence.append(
            EvidenceItem(
                kind="inside",
                text=f"mmap inside {group.inside}: the memory is mapped while the program frees memory",
                ref=refs,
            )
        )
    nearest = nearest_item(group.culprit, refs)
    if nearest is not None:
        evidence.append(nearest)
    return Finding(
        title=_title(group),
        layer=group.layer,
        verdict="growing",
        confidence=0.0,
        share=None if share is None else min(1.0, share),
        pid=group.pid,
        culprit=group.culprit,
        sites=cited,
        evidence=tuple(evidence),
        against=(HEAP_REQUEST_ONLY,) if group.culprit is not None and group.culprit.extends else (),
        rate=rate,
        trend=group.trend,
        members=group.pids if len(group.pids) > 1 else (),
    )


def _cited(group: GrowthGroup) -> Iterator[tuple[AllocationSite, float | None]]:
    """The largest sites of a few processes of the group, each with its rate."""
    rates = group.bytes_per_minute or (None,) * len(group.sites)
    left = dict.fromkeys(group.pids[:PROCESSES_CITED] or (group.pid,), SITES_CITED)
    for site, rate in zip(group.sites, rates, strict=True):
        if left.get(site.pid, 0):
            left[site.pid] -= 1
            yield site, rate


def _title(group: GrowthGroup) -> str:
    culprit, name = group.culprit, LAYER_NAMES[group.layer]
    if culprit is None:
        if group.layer in HEAPS:
            return f"{name} grows; the captured stacks name no code"
        return f"{name} is mapped and not freed; the captured stacks name no code"
    if culprit.extends:
        return f"{name} grows; most of it is requested under {place_of(culprit)}"
    if group.layer == "thread-stack":
        return f"Stacks of threads started by {place_of(culprit)} stay mapped"
    if group.inside is not None:
        return f"{culprit.library} maps memory inside {group.inside} and keeps it"
    return f"{place_of(culprit)} maps memory that stays outstanding"


NO_APPLICATION = "no application code on this stack"


def nearest_item(culprit: Culprit | None, ref: str) -> EvidenceItem | None:
    """Evidence that the stack has no application code, with the nearest Python function of a library. None if it
    has."""
    caller = culprit.caller if culprit else None
    if caller is None or caller.application:
        return None
    line = f":{caller.line}" if caller.line is not None else ""
    text = f"{NO_APPLICATION}; nearest: {package_path(caller.file)}{line}, in {caller.function}"
    return EvidenceItem(kind="no-application", text=text, ref=ref)


def place_of(culprit: Culprit) -> str:
    """E.g. `keep in cache.py`, `pool_grow in libpool.so`."""
    return f"{culprit.function} in {culprit.library}" if culprit.function else culprit.library


def _culprit(case: Case, pid: int, named: Frame | None, caller: Caller | None) -> Culprit | None:
    if named is None:
        return None
    if named.kind == "python":
        if caller is None:
            return None  # launchers only
        library = basename(caller.file) if caller.application else package_path(caller.file)
        return Culprit(library=library, path=caller.file, function=caller.function, caller=caller)
    module = next((m for m in case.modules if m.pid == pid and m.path == named.module), None)
    version = module.version if module else _hook_version(case.hooks, named.module)
    return Culprit(
        library=basename(named.module),
        path=named.module,
        version=version,
        build_id=named.build_id or (module.build_id if module else None),
        function=named.function,
        caller=caller,
    )


def _hook_version(hooks: Iterable[Hook], path: str | None) -> str | None:
    return next((hook.owner_version for hook in hooks if hook.owner_path == path), None)


def _timeline(case: Case, group: GrowthGroup) -> tuple[list[float], list[float]]:
    """Resident outstanding bytes of the group: seconds since the trace began, bytes. It begins with 0 bytes."""
    pids = {site.pid for site in group.sites}
    traces = [trace for trace in case.traces if trace.pid in pids]
    began = min((t.began_ns for t in traces), default=min(s.first_ns for s in group.sites))
    ended = max((t.ended_ns for t in traces), default=max(s.last_ns for s in group.sites))
    instants = sorted({point.t_ns for site in group.sites for point in site.timeline} | {began, ended})
    values = [0.0] * len(instants)
    for site in group.sites:
        share, points = resident_share(site), site.timeline
        at, current = 0, 0
        for index, instant in enumerate(instants):
            while at < len(points) and points[at].t_ns <= instant:
                current, at = points[at].outstanding_bytes, at + 1
            values[index] += current * share
    return [(instant - began) / NS_PER_S for instant in instants], values
