"""From a case to a diagnosis, in two steps. `analyze` computes growth, layers, mapping groups and findings. Then the
catalogue and `verdict.decide` add causes and verdicts, and `build_diagnosis` adds the headline, the next steps and what
was not seen. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

from memforensics.analysis import series
from memforensics.analysis.blame import HEAPS, draft_findings, of_each_process, sum_rates
from memforensics.analysis.diff import diff
from memforensics.analysis.headline import MORE_PROCESSES, code_of, headline
from memforensics.analysis.hook_meanings import hook_meanings
from memforensics.analysis.next_steps import next_step_for_finding, next_step_for_report
from memforensics.analysis.ownership import LAYER_NAMES, Totals, kernel_totals, totals, waterfall
from memforensics.analysis.survival import with_survival
from memforensics.analysis.threads import with_threads
from memforensics.analysis.trend import verdict_of_trend
from memforensics.analysis.unexplained_growth import with_objects, with_unexplained_growth
from memforensics.analysis.verdict import Decision, layer_verdict, layers_differ
from memforensics.case.model import (
    LAYERS,
    Case,
    Diagnosis,
    EvidenceItem,
    Finding,
    Growth,
    KernelTotals,
    Layer,
    LayerRow,
    MappingGroup,
    MemberGrowth,
    NotSeen,
    Rate,
    Snapshot,
)
from memforensics.units import NS_PER_S, change_text, rate_text

_Line = tuple[list[float], list[float]]  # seconds, bytes
FLAT_SHARE = 0.15  # a heap that grew by less than this share of the finding's layer is flat


@dataclass(frozen=True, slots=True)
class Analysis:
    """What the evidence shows before causes and verdicts are known."""

    growth: Growth | None
    layers: tuple[LayerRow, ...]
    groups: tuple[MappingGroup, ...]
    members: tuple[MemberGrowth, ...]
    findings: tuple[Finding, ...]
    kernel_totals: KernelTotals
    line: series.Series  # of the process tree
    own_layers: Mapping[int, tuple[LayerRow, ...]]  # PID -> the layers of that process, with rates
    seconds: float  # from the first snapshot to the last


class AnalysisCache:
    """Results per snapshot, so that each snapshot is analyzed once: `watch` analyzes its case every few seconds, mostly
    the same snapshots, which often have tens of thousands of mappings. Keeps the snapshots of the last analysis."""

    def __init__(self) -> None:
        self._totals: dict[int, tuple[Snapshot, Totals]] = {}  # by id(), unique while the snapshot is referenced here
        self._groups: dict[tuple[int, int], tuple[Snapshot, Snapshot, tuple[MappingGroup, ...]]] = {}
        self._kernel_totals: tuple[list[Snapshot], KernelTotals] | None = None

    def keep(self, snapshots: Iterable[Snapshot]) -> None:
        """Drops the results of all other snapshots."""
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

    def kernel_totals(self, snapshots: list[Snapshot]) -> KernelTotals:
        if self._kernel_totals is None or [*map(id, self._kernel_totals[0])] != [*map(id, snapshots)]:
            self._kernel_totals = snapshots, kernel_totals(snapshots)
        return self._kernel_totals[1]


def analyze(case: Case, cache: AnalysisCache | None = None) -> Analysis:
    """Growth, layers, mapping groups, and findings without cause and verdict."""
    cache = cache or AnalysisCache()
    cache.keep(case.snapshots)
    line = series.tree_series(case.samples, start_times=series.start_times(case))
    growth = series.growth(case)
    members = series.members(case)
    tree = _members_of(case, cache)
    living = _living(case, tree)
    rows = _layers(living)
    groups = _groups(living)
    seconds = line.times_s[-1] - line.times_s[0] if line.times_s else 0.0
    traced = _growth_of_traces(case, line.change_bytes)
    findings = draft_findings(case, traced, seconds, {pid: member.grown for pid, member in tree.items()})
    findings = [of_each_process(finding, partial(with_survival, case)) for finding in findings]
    findings = with_threads(case, findings, {pid: member.groups for pid, member in tree.items()}, traced)
    multiplying = series.population(case)
    if multiplying is not None and growth is not None:
        findings.append(_more_processes(case, multiplying, growth))
    if growth is not None and verdict_of_trend(growth.trend) == "growing":
        findings = with_unexplained_growth(case, growth, members, rows, findings, traced)
    findings = [_with_mappings(_with_heaps(f, tree.get(f.pid)), tree.get(f.pid)) for f in findings]
    findings = [with_objects(f, _grown_groups(tree.get(f.pid), f.layer)) for f in findings]
    last = cache.kernel_totals([member.taken[-1] for member in living.values()])
    own_layers = {pid: _layers({pid: member}) for pid, member in living.items()}
    taken = [snapshot.t_ns for member in living.values() for snapshot in member.taken]
    watched = (max(taken) - min(taken)) / NS_PER_S if taken else 0.0
    return Analysis(growth, rows, groups, members, tuple(findings), last, line, own_layers, watched)


def build_diagnosis(case: Case, analysis: Analysis, decision: Decision) -> Diagnosis:
    """The diagnosis, with headline, next steps and what was not seen."""
    rows = tuple(replace(row, verdict=layer_verdict(row, decision, analysis.seconds)) for row in analysis.layers)
    findings = tuple(
        replace(_titled(finding), next_step=next_step_for_finding(case, finding)) for finding in decision.findings
    )
    return Diagnosis(
        verdict=decision.verdict,
        headline=headline(case, analysis.growth, analysis.line, decision),
        growth=analysis.growth,
        layers=rows,
        groups=analysis.groups,
        members=analysis.members,
        findings=findings,
        hooks=case.hooks,
        kernel_totals=analysis.kernel_totals,
        hook_meanings=hook_meanings(case.hooks, case.hook_audits),
        not_seen=(*_not_seen(case), *_layers_that_differ(analysis)),
        next_step=next_step_for_report(case, analysis.growth, decision.verdict, findings),
    )


# --- layers and groups of the tree --------------------------------------------------------------------------------


class _Member:
    """The snapshots of one process, by time."""

    def __init__(self, case: Case, taken: list[Snapshot], cache: AnalysisCache) -> None:
        self.taken, self.cache = taken, cache
        self.heaps = [h for h in case.heaps if h.pid == taken[-1].pid]

    @cached_property
    def rows(self) -> tuple[LayerRow, ...]:
        """Layers at the last snapshot, with the change since the first."""
        first = self.cache.totals(self.taken[0]) if len(self.taken) > 1 else None
        return waterfall(first, self.cache.totals(self.taken[-1]), heaps=self.heaps)

    @cached_property
    def groups(self) -> tuple[MappingGroup, ...]:
        return self.cache.groups(self.taken[0], self.taken[-1]) if len(self.taken) > 1 else ()

    @property
    def grown(self) -> dict[Layer, int]:
        """Layer in RSS -> change in bytes."""
        return {row.layer: row.change_bytes for row in self.rows if row.in_rss and row.change_bytes is not None}

    def lines(self) -> dict[tuple[Layer, bool], _Line]:
        """The bytes of each layer at each snapshot."""
        found: dict[tuple[Layer, bool], _Line] = defaultdict(lambda: ([], []))
        for snapshot in self.taken:
            for row in waterfall(None, self.cache.totals(snapshot)):
                if row.bytes is not None:
                    times, values = found[row.layer, row.in_rss]
                    times.append((snapshot.t_ns - self.taken[0].t_ns) / NS_PER_S)
                    values.append(float(row.bytes))
        return found


_Members = dict[int, _Member]


def _members_of(case: Case, cache: AnalysisCache) -> _Members:
    taken: dict[int, list[Snapshot]] = defaultdict(list)
    for snapshot in sorted(case.snapshots, key=lambda s: s.t_ns):
        taken[snapshot.pid].append(snapshot)
    return {pid: _Member(case, snapshots, cache) for pid, snapshots in taken.items()}


def _living(case: Case, tree: _Members) -> _Members:
    """Processes that are still alive. If the root has exited: all of them."""
    left = {target.pid for target in case.targets if target.exited_ns is not None}
    return tree if case.meta.root_pid in left else {pid: member for pid, member in tree.items() if pid not in left}


def _layers(tree: _Members) -> tuple[LayerRow, ...]:
    """Layers of the tree at the last snapshot of each process: sums over processes, with their rates."""
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
                    rate=sum_rates([_line_rate(*line) for line in lines.get((layer, in_rss), [])]),
                )
            )
    return tuple(rows)


def _line_rate(times: list[float], values: list[float]) -> Rate | None:
    """The median slope over all pairs of snapshots, with the 5% and 95% quantiles of the slopes: there are too few
    snapshots for `fit_trend`."""
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


def _groups(tree: _Members) -> tuple[MappingGroup, ...]:
    """Mapping groups of the process whose mappings changed most."""
    return max(
        (member.groups for member in tree.values()), key=lambda gs: abs(sum(g.change_bytes for g in gs)), default=()
    )


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


# --- findings -----------------------------------------------------------------------------------------------------


def _growth_of_traces(case: Case, fallback: int) -> int:
    """The growth of RSS while the traces ran; shares of sites are relative to it."""
    grown = [t.rss_growth_bytes for t in case.traces if t.rss_growth_bytes is not None]
    return sum(grown) if grown else fallback


def _with_heaps(finding: Finding, member: _Member | None) -> Finding:
    """Adds evidence if the heaps, which heap profilers measure, stayed flat while this layer grew."""
    is_heap = finding.layer in HEAPS or (finding.culprit is not None and finding.culprit.extends)
    if member is None or len(member.taken) < 2 or is_heap:
        return finding
    heap = sum(row.change_bytes or 0 for row in member.rows if row.layer in HEAPS)
    here = sum(row.change_bytes or 0 for row in member.rows if row.layer == finding.layer)
    if here <= 0 or heap > FLAT_SHARE * here:
        return finding
    item = EvidenceItem(
        kind="heap-flat",
        text=f"the heaps are flat: they changed by {change_text(heap)}, {finding.layer} by {change_text(here)} in the "
        "same time; a heap profiler does not show this growth",
        ref=f"snapshots/{finding.pid}",
    )
    return replace(finding, evidence=(*finding.evidence, item))


def _grown_groups(member: _Member | None, layer: Layer) -> list[MappingGroup]:
    return [g for g in member.groups if g.layer == layer and g.change_bytes > 0] if member else []


def _with_mappings(finding: Finding, member: _Member | None) -> Finding:
    """Adds the mappings that grow, also if their start address moves."""
    grown = _grown_groups(member, finding.layer)
    if not grown:
        return finding
    first = grown[0]
    moved = "; new mappings merge at its low end, so its start address changes and its end stays" if first.moved else ""
    where = f", {first.examples[0]}" if first.examples else ""
    if first.count_after > first.count_before + 1 and not first.moved:
        where = f", {first.count_before:,} at the start and {first.count_after:,} at the end"
    item = EvidenceItem(
        kind="mapping-moves" if first.moved else "mapping-grows",
        text=f"growing mappings: {first.name}{where}: {change_text(first.change_bytes)}{moved}",
        ref=f"snapshots/{finding.pid}",
    )
    return replace(finding, evidence=(*finding.evidence, item))


def _more_processes(case: Case, found: series.Population, growth: Growth) -> Finding:
    """The finding of a tree whose number of processes grows."""
    rate, whole = found.trend.rate, growth.rate
    share = min(rate.estimate / whole.estimate, 1.0) if rate and whole and whole.estimate > 0 else None
    at = f" at {rate_text(rate.estimate)}" if rate else ""
    return Finding(
        title=f"Number of processes grows: {found.before} at the start, {found.now} now{at}",
        layer="unattributed",
        verdict="growing",
        confidence=0.0,
        share=share,
        pid=case.meta.root_pid or 0,
        evidence=(
            EvidenceItem(
                kind=MORE_PROCESSES,
                text=f"{found.now - found.before} more processes than at the start, each counted at its size after "
                "start-up",
                ref="samples",
            ),
        ),
        rate=rate,
        trend=found.trend,
    )


# --- text ---------------------------------------------------------------------------------------------------------


def _titled(finding: Finding) -> Finding:
    """The finding; with insufficient data its title does not say that memory grows."""
    if finding.verdict != "insufficient-data":
        return finding
    code = code_of(finding)
    return replace(finding, title=f"{LAYER_NAMES[finding.layer]} so far{f': {code}' if code else ''}")


def _layers_that_differ(analysis: Analysis) -> Iterable[NotSeen]:
    """Reports layer rates that do not sum to the growth of the tree."""
    found = layers_differ(analysis.layers, analysis.growth)
    if found is not None:
        layers, whole = found
        yield NotSeen(
            what="the exact growth of each layer",
            why=f"the layers sum to {rate_text(layers.estimate)} (few snapshots); total growth is "
            f"{rate_text(whole.estimate)} (many samples)",
            enable="a longer --duration",
        )


def _not_seen(case: Case) -> tuple[NotSeen, ...]:
    items = [
        NotSeen(what=_PROBES.get(p.name, p.name), why=p.why, enable=p.enable) for p in case.probes if p.status != "ok"
    ]
    for target in case.targets:
        if target.left_how is not None and target.pid == case.meta.root_pid:
            items.append(
                NotSeen(
                    what="memory after the process ended",
                    why=f"process {target.pid}: {target.left_how}",
                    enable="diagnose a new run",
                )
            )
    return tuple(dict.fromkeys(items))


_PROBES = {
    "mmap-trace": "the code that maps memory",
    "fault-trace": "the code that first touches new memory",
    "hooks": "libraries that intercept mmap and munmap",
    "snapshots": "the layer that grows",
    "modules": "versions of the libraries",
    "heap": "the contents of the heaps",
    "references": "pointers to the memory that stays mapped",
}
