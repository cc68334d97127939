"""A case to a diagnosis, in two halves with the catalogue between them: draft (the lines, the layers, who grows), then,
once causes and words are known, finish (one sentence, what was not seen)."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from memforensics.analysis import series
from memforensics.analysis.blame import HEAPS, MINIMUM_BYTES_PER_MINUTE, NO_APPLICATION, draft_findings
from memforensics.analysis.diff import diff
from memforensics.analysis.ownership import Totals, beside, totals, waterfall
from memforensics.analysis.residue import with_objects, with_residue
from memforensics.analysis.survival import with_survival
from memforensics.analysis.trend import growth_word
from memforensics.analysis.verdict import Decision
from memforensics.case.model import (
    LAYERS,
    Beside,
    Case,
    Diagnosis,
    EvidenceItem,
    Finding,
    Growth,
    Hook,
    HookAudit,
    Layer,
    LayerRow,
    MappingGroup,
    MemberGrowth,
    NotSeen,
    Rate,
    Snapshot,
    VerdictWord,
)
from memforensics.units import MIB, NS_PER_S, change_text, duration_text, rate_text, size_text

STANDS_SHARE = 0.1  # of a rise: so little in the last third is standing still
MINIMUM_CHANGE = 4 * MIB  # less is the working of any process
_MORE_PROCESSES = "more-processes"
_Line = tuple[list[float], list[float]]  # seconds, bytes
FLAT_SHARE = 0.15  # of the growth: a heap that took less is flat beside it


@dataclass(frozen=True, slots=True)
class Draft:
    """All that can be said before causes are known."""

    growth: Growth | None
    layers: tuple[LayerRow, ...]
    groups: tuple[MappingGroup, ...]
    members: tuple[MemberGrowth, ...]
    findings: tuple[Finding, ...]
    beside: Beside
    line: series.Series  # the tree's


class Seen:
    """What snapshots told, each gone through once: a watch concludes again and again, mostly from the same ones, and
    tens of thousands of mappings are common. Holds those of the last conclusion."""

    def __init__(self) -> None:
        self._totals: dict[int, tuple[Snapshot, Totals]] = {}  # by id, which is a snapshot's own while it is held
        self._groups: dict[tuple[int, int], tuple[Snapshot, Snapshot, tuple[MappingGroup, ...]]] = {}
        self._beside: tuple[list[Snapshot], Beside] | None = None

    def keep(self, snapshots: Iterable[Snapshot]) -> None:
        """Forgets all others."""
        held = {id(snapshot) for snapshot in snapshots}
        self._totals = {key: value for key, value in self._totals.items() if key in held}
        self._groups = {key: value for key, value in self._groups.items() if held.issuperset(key)}

    def totals(self, snapshot: Snapshot) -> Totals:
        if id(snapshot) not in self._totals:
            self._totals[id(snapshot)] = snapshot, totals(snapshot)
        return self._totals[id(snapshot)][1]

    def groups(self, before: Snapshot, after: Snapshot) -> tuple[MappingGroup, ...]:
        key = id(before), id(after)
        if key not in self._groups:
            self._groups[key] = before, after, diff(before, after)
        return self._groups[key][2]

    def beside(self, snapshots: list[Snapshot]) -> Beside:
        if self._beside is None or [*map(id, self._beside[0])] != [*map(id, snapshots)]:
            self._beside = snapshots, beside(snapshots)
        return self._beside[1]


def draft(case: Case, seen: Seen | None = None) -> Draft:
    """Lines, layers, groups, and findings without cause and word."""
    seen = seen or Seen()
    seen.keep(case.snapshots)
    growth = series.growth(case)
    members = series.members(case)
    tree = _members_of(case, seen)
    living = _living(case, tree)
    rows = _layers(living)
    groups = _groups(living)
    line = series.tree_series(case.samples, began=series.began(case))
    seconds = line.times_s[-1] - line.times_s[0] if line.times_s else 0.0
    traced = _growth_of_traces(case, line.change_bytes)
    findings = draft_findings(case, traced, seconds, {pid: member.grown for pid, member in tree.items()})
    findings = [with_survival(case, finding) for finding in findings]
    multiplying = series.population(case)
    if multiplying is not None and growth is not None:
        findings.append(_more_processes(case, multiplying, growth))
    if growth is not None and growth_word(growth.trend) == "growing":
        findings = with_residue(case, growth, members, rows, findings, traced)
    findings = [_with_mappings(_with_heaps(f, tree.get(f.pid)), tree.get(f.pid)) for f in findings]
    findings = [with_objects(f, _grown_groups(tree.get(f.pid), f.layer)) for f in findings]
    last = seen.beside([member.taken[-1] for member in living.values()])
    return Draft(growth, rows, groups, members, tuple(findings), last, line)


def finish(case: Case, drafted: Draft, decision: Decision) -> Diagnosis:
    """The diagnosis, with its sentence."""
    rows = tuple(replace(row, verdict=_row_verdict(row, decision)) for row in drafted.layers)
    return Diagnosis(
        verdict=decision.verdict,
        headline=_headline(case, drafted, decision),
        growth=drafted.growth,
        layers=rows,
        groups=drafted.groups,
        members=drafted.members,
        findings=decision.findings,
        hooks=case.hooks,
        beside=drafted.beside,
        hook_meanings=hook_meanings(case.hooks, case.hook_audits),
        not_seen=_not_seen(case),
        next_step=decision.next_step,
    )


# --- layers and groups of the tree --------------------------------------------------------------------------------


class _Member:
    """One process's snapshots."""

    def __init__(self, case: Case, taken: list[Snapshot], seen: Seen) -> None:
        self.taken, self.seen = taken, seen
        self.heaps = [h for h in case.heaps if h.pid == taken[-1].pid]

    @cached_property
    def rows(self) -> tuple[LayerRow, ...]:
        """The waterfall at the last snapshot, with the change since the first."""
        first = self.seen.totals(self.taken[0]) if len(self.taken) > 1 else None
        return waterfall(first, self.seen.totals(self.taken[-1]), heaps=self.heaps)

    @cached_property
    def groups(self) -> tuple[MappingGroup, ...]:
        return self.seen.groups(self.taken[0], self.taken[-1]) if len(self.taken) > 1 else ()

    @property
    def grown(self) -> dict[Layer, int]:
        """By how many bytes each layer in RSS changed."""
        return {row.layer: row.change_bytes for row in self.rows if row.in_rss and row.change_bytes is not None}

    def lines(self) -> dict[tuple[Layer, bool], _Line]:
        """Each layer's bytes at each snapshot."""
        found: dict[tuple[Layer, bool], _Line] = defaultdict(lambda: ([], []))
        for snapshot in self.taken:
            for row in waterfall(None, self.seen.totals(snapshot)):
                if row.bytes is not None:
                    times, values = found[row.layer, row.in_rss]
                    times.append((snapshot.t_ns - self.taken[0].t_ns) / NS_PER_S)
                    values.append(float(row.bytes))
        return found


_Members = dict[int, _Member]


def _members_of(case: Case, seen: Seen) -> _Members:
    taken: dict[int, list[Snapshot]] = defaultdict(list)
    for snapshot in sorted(case.snapshots, key=lambda s: s.t_ns):
        taken[snapshot.pid].append(snapshot)
    return {pid: _Member(case, snapshots, seen) for pid, snapshots in taken.items()}


def _living(case: Case, tree: _Members) -> _Members:
    """Those whose memory is there; of a tree that left, all that there was."""
    left = {target.pid for target in case.targets if target.exited_ns is not None}
    return tree if case.meta.root_pid in left else {pid: member for pid, member in tree.items() if pid not in left}


def _layers(tree: _Members) -> tuple[LayerRow, ...]:
    """The waterfall of the tree at its members' last snapshots: sums over members, each with its rate."""
    sums: dict[tuple[Layer, bool], list[LayerRow]] = defaultdict(list)
    lines: dict[tuple[Layer, bool], list[_Line]] = defaultdict(list)
    for member in tree.values():
        for row in member.rows:
            sums[row.layer, row.in_rss].append(row)
        for key, line in member.lines().items():
            lines[key].append(line)
    rows = []
    for layer in LAYERS:
        for in_rss in (True, False):
            parts = sums.get((layer, in_rss))
            if parts is None:
                continue
            rows.append(
                LayerRow(
                    layer=layer,
                    in_rss=in_rss,
                    bytes=_sum(row.bytes for row in parts),
                    change_bytes=_sum(row.change_bytes for row in parts),
                    rate=_sum_rates([_line_rate(*line) for line in lines.get((layer, in_rss), [])]),
                )
            )
    return tuple(rows)


def _line_rate(times: list[float], values: list[float]) -> Rate | None:
    """A few snapshots are too few to judge; their slope with the range of its pieces still says something."""
    if len(times) < 3:
        return None
    slopes = sorted(
        (values[j] - values[i]) / (times[j] - times[i]) * 60.0
        for i in range(len(times))
        for j in range(i + 1, len(times))
        if times[j] > times[i]
    )
    if not slopes:
        return None
    return Rate(
        estimate=slopes[len(slopes) // 2],
        low=slopes[round((len(slopes) - 1) * 0.05)],
        high=slopes[round((len(slopes) - 1) * 0.95)],
        confidence=0.9,
    )


def _sum_rates(rates: list[Rate | None]) -> Rate | None:
    known = [rate for rate in rates if rate is not None]
    if not known:
        return None
    return Rate(
        estimate=sum(r.estimate for r in known),
        low=sum(r.low for r in known),
        high=sum(r.high for r in known),
        confidence=min(r.confidence for r in known),
    )


def _groups(tree: _Members) -> tuple[MappingGroup, ...]:
    """What grew, shrank, appeared and went: of the member whose mappings changed most."""
    return max(
        (member.groups for member in tree.values()), key=lambda gs: abs(sum(g.change_bytes for g in gs)), default=()
    )


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


# --- findings -----------------------------------------------------------------------------------------------------


def _growth_of_traces(case: Case, fallback: int) -> int:
    """The growth of RSS while the traces ran: what their sites are a share of."""
    grown = [t.rss_growth_bytes for t in case.traces if t.rss_growth_bytes is not None]
    return sum(grown) if grown else fallback


def _with_heaps(finding: Finding, member: _Member | None) -> Finding:
    """Says so where the heaps, which profilers look at, stayed flat while this grew."""
    is_heap = finding.layer in HEAPS or (finding.culprit is not None and finding.culprit.extends)
    if member is None or len(member.taken) < 2 or is_heap:
        return finding
    heap = sum(row.change_bytes or 0 for row in member.rows if row.layer in HEAPS)
    here = sum(row.change_bytes or 0 for row in member.rows if row.layer == finding.layer)
    if here <= 0 or heap > FLAT_SHARE * here:
        return finding
    item = EvidenceItem(
        kind="heap-flat",
        text=f"the heaps are flat: malloc's and Python's {change_text(heap)}, {finding.layer} {change_text(here)} "
        "in the same time; a heap profiler sees nothing of this",
        ref=f"snapshots/{finding.pid}",
    )
    return replace(finding, evidence=(*finding.evidence, item))


def _grown_groups(member: _Member | None, layer: Layer) -> list[MappingGroup]:
    return [g for g in member.groups if g.layer == layer and g.change_bytes > 0] if member else []


def _with_mappings(finding: Finding, member: _Member | None) -> Finding:
    """Which mappings grow, although they seem to move."""
    grown = _grown_groups(member, finding.layer)
    if not grown:
        return finding
    first = grown[0]
    moved = (
        "; the start moves down as new mappings merge below, the end stays: by address they seem to come and go"
        if first.moved
        else ""
    )
    where = f", {first.examples[0]}" if first.examples else ""
    if first.count_after > first.count_before + 1 and not first.moved:
        where = f", {first.count_before:,} of them at first and {first.count_after:,} now"
    item = EvidenceItem(
        kind="mapping-moves" if first.moved else "mapping-grows",
        text=f"mappings that grow: {first.name}{where}: {change_text(first.change_bytes)}{moved}",
        ref=f"snapshots/{finding.pid}",
    )
    return replace(finding, evidence=(*finding.evidence, item))


def _more_processes(case: Case, found: series.Population, growth: Growth) -> Finding:
    """A tree whose children multiply, each of whatever size: its own statement, beside what any of them does."""
    rate, whole = found.trend.rate, growth.rate
    share = min(rate.estimate / whole.estimate, 1.0) if rate and whole and whole.estimate > 0 else None
    at = f" at {rate_text(rate.estimate)}" if rate else ""
    return Finding(
        title=f"more and more processes: {found.before} at the start, {found.now} now{at}",
        layer="unattributed",
        verdict="growing",
        confidence=0.0,
        share=share,
        pid=case.meta.root_pid or 0,
        evidence=(
            EvidenceItem(
                kind=_MORE_PROCESSES,
                text=f"{found.now - found.before} more processes than at the start, each counted as it settled",
                ref="samples",
            ),
        ),
        rate=rate,
        trend=found.trend,
    )


def _row_verdict(row: LayerRow, decision: Decision) -> VerdictWord:
    found = [f.verdict for f in decision.findings if f.layer == row.layer]
    for word in ("leak", "growing", "retention", "bounded"):
        if word in found:
            return word
    if row.change_bytes is None:
        return "insufficient-data"
    if decision.verdict == "insufficient-data" and row.change_bytes >= MINIMUM_BYTES_PER_MINUTE:
        return "insufficient-data"
    levelled = decision.verdict == "bounded" and row.layer != "file" and row.change_bytes >= MINIMUM_BYTES_PER_MINUTE
    return "bounded" if levelled else "steady"


# --- words --------------------------------------------------------------------------------------------------------


def _headline(case: Case, drafted: Draft, decision: Decision) -> str:
    growth, rate = drafted.growth, drafted.growth.rate if drafted.growth else None
    if growth is None:
        return "nothing could be measured"
    speed = f"{rate_text(rate.estimate)}" if rate else "an unknown rate"
    times = [sample.t_ns for sample in case.samples]
    looked = duration_text((max(times) - min(times)) / NS_PER_S)
    first = decision.findings[0] if decision.findings else None
    if decision.verdict == "steady":
        return _still(growth, drafted.line, looked)
    if decision.verdict == "bounded" and first is None:
        return f"it grew and levelled off within {looked}"
    if first is None:
        so_far = f"memory changes by {speed}; " if rate else ""
        return f"{so_far}too little was seen in {looked} to say more"
    if any(item.kind == _MORE_PROCESSES for item in first.evidence):
        return first.title
    child = "" if first.pid == case.meta.root_pid else f", in child process {first.pid}"
    extends = first.culprit is not None and first.culprit.extends
    touched = any(site.kind == "fault" for site in first.sites)
    how = ("mostly first touched by" if touched else "mostly when asked by") if extends else "through"
    through = f", {how} {_who(first)}" if first.culprit else ""
    grows = f"grows by {rate_text(first.rate.estimate) if first.rate else speed}"
    return f"{first.layer} {grows}{through}{child}"


def _still(growth: Growth, line: series.Series, looked: str) -> str:
    """What `steady` looked like."""
    if line.swings and line.span_bytes >= MINIMUM_CHANGE:
        return f"it rises and falls, without growth that shows, in {looked}"
    if growth.trend.shape == "step" and line.change_bytes >= MINIMUM_CHANGE:
        lately = line.values[-1] - line.values[len(line.values) * 2 // 3]
        stands = abs(lately) <= STANDS_SHARE * line.change_bytes
        how = "at first and stands still since" if stands else "in a step or two, not steadily"
        return f"it grew by {size_text(line.change_bytes)} {how}, in {looked}"
    return f"no growth that matters in {looked}"


def _who(finding: Finding) -> str:
    culprit = finding.culprit
    assert culprit is not None
    if culprit.caller is not None and not culprit.caller.application and culprit.path == culprit.caller.file:
        line = f":{culprit.caller.line}" if culprit.caller.line is not None else ""
        return f"{culprit.library}{line} ({NO_APPLICATION})"
    if culprit.caller is not None and culprit.path == culprit.caller.file:
        return f"{culprit.caller.function} ({culprit.library}:{culprit.caller.line})"
    version = f" {culprit.version}" if culprit.version else ""
    inside = next((site.inside for site in finding.sites if site.inside), None)
    return f"{culprit.library}{version}" + (f" inside {inside}" if inside else "")


def hook_meanings(hooks: Iterable[Hook], audits: Iterable[HookAudit]) -> dict[str, str]:
    """What each hooked function means for who looks for a leak: a sentence made of the facts."""
    slots = sum(audit.got_slots for audit in audits)
    meanings: dict[str, str] = {}
    by_function: dict[str, list[Hook]] = defaultdict(list)
    for hook in hooks:
        by_function[hook.function].append(hook)
    for function, same in by_function.items():
        first = same[0]
        owner = (first.owner_path or "memory of no file").rpartition("/")[2]
        text = f"every {function} of the process goes to {owner} first"
        if first.mechanism == "inline":
            changed = sum(len(hook.objects) for hook in same if hook.mechanism == "got")
            where = (first.patched_in or "its library").rpartition("/")[2]
            text += f": {where}'s code is patched in memory"
            if changed == 0:
                text += f"; a check of GOT slots alone is clean ({slots} compared)"
        elif first.mechanism == "got":
            text += f": {len(first.objects)} objects' GOT slots were changed"
        else:
            text += ": it comes first in the link order (LD_PRELOAD)"
        meanings[function] = text
    return meanings


def _not_seen(case: Case) -> tuple[NotSeen, ...]:
    items = [
        NotSeen(what=_PROBES.get(p.name, p.name), why=p.why, enable=p.enable) for p in case.probes if p.status != "ok"
    ]
    for target in case.targets:
        if target.left_how is not None and target.pid == case.meta.root_pid:
            items.append(
                NotSeen(
                    what="what came after", why=f"process {target.pid}: {target.left_how}", enable="diagnose it again"
                )
            )
    return tuple(dict.fromkeys(items))


_PROBES = {
    "mmap-trace": "through whose code memory is mapped",
    "fault-trace": "who first touches new memory",
    "hooks": "who intercepts mmap and munmap",
    "snapshots": "which layer grows",
    "modules": "versions of the libraries",
    "heap": "what is inside the heaps",
    "references": "whether anything points to the memory that stays",
}
