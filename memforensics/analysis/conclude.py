"""A case to a diagnosis, in two halves with the catalogue between them: draft (the lines, the layers, who grows), then,
once causes and words are known, finish (one sentence, what was not seen)."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

from memforensics.analysis import series
from memforensics.analysis.blame import HEAPS, draft_findings, of_each_process, sum_rates
from memforensics.analysis.diff import diff
from memforensics.analysis.headline import LAYER_NAMES, MORE_PROCESSES, code_of, headline
from memforensics.analysis.next_steps import step_of_finding, step_of_report
from memforensics.analysis.ownership import Totals, kernel_totals, totals, waterfall
from memforensics.analysis.residue import with_objects, with_residue
from memforensics.analysis.survival import with_survival
from memforensics.analysis.threads import with_threads
from memforensics.analysis.trend import growth_word
from memforensics.analysis.verdict import Decision, layer_word, layers_differ
from memforensics.case.model import (
    LAYERS,
    Case,
    Diagnosis,
    EvidenceItem,
    Finding,
    Growth,
    Hook,
    HookAudit,
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
FLAT_SHARE = 0.15  # of the growth: a heap that took less is flat beside it


@dataclass(frozen=True, slots=True)
class Draft:
    """What is known before causes are."""

    growth: Growth | None
    layers: tuple[LayerRow, ...]
    groups: tuple[MappingGroup, ...]
    members: tuple[MemberGrowth, ...]
    findings: tuple[Finding, ...]
    kernel_totals: KernelTotals
    line: series.Series  # the tree's
    own_layers: Mapping[int, tuple[LayerRow, ...]]  # by PID: each process's, with their rates
    seconds: float  # between the first snapshot and the last


class Seen:
    """What snapshots told, each gone through once: a watch concludes again and again, mostly from the same ones, and
    tens of thousands of mappings are common. Holds those of the last conclusion."""

    def __init__(self) -> None:
        self._totals: dict[int, tuple[Snapshot, Totals]] = {}  # by id, which is a snapshot's own while it is held
        self._groups: dict[tuple[int, int], tuple[Snapshot, Snapshot, tuple[MappingGroup, ...]]] = {}
        self._kernel_totals: tuple[list[Snapshot], KernelTotals] | None = None

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

    def kernel_totals(self, snapshots: list[Snapshot]) -> KernelTotals:
        if self._kernel_totals is None or [*map(id, self._kernel_totals[0])] != [*map(id, snapshots)]:
            self._kernel_totals = snapshots, kernel_totals(snapshots)
        return self._kernel_totals[1]


def draft(case: Case, seen: Seen | None = None) -> Draft:
    """Lines, layers, groups, and findings without cause and word."""
    seen = seen or Seen()
    seen.keep(case.snapshots)
    line = series.tree_series(case.samples, began=series.began(case))
    growth = series.growth(case)
    members = series.members(case)
    tree = _members_of(case, seen)
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
    if growth is not None and growth_word(growth.trend) == "growing":
        findings = with_residue(case, growth, members, rows, findings, traced)
    findings = [_with_mappings(_with_heaps(f, tree.get(f.pid)), tree.get(f.pid)) for f in findings]
    findings = [with_objects(f, _grown_groups(tree.get(f.pid), f.layer)) for f in findings]
    last = seen.kernel_totals([member.taken[-1] for member in living.values()])
    own_layers = {pid: _layers({pid: member}) for pid, member in living.items()}
    taken = [snapshot.t_ns for member in living.values() for snapshot in member.taken]
    watched = (max(taken) - min(taken)) / NS_PER_S if taken else 0.0
    return Draft(growth, rows, groups, members, tuple(findings), last, line, own_layers, watched)


def finish(case: Case, drafted: Draft, decision: Decision) -> Diagnosis:
    """The diagnosis, with its sentence."""
    rows = tuple(replace(row, verdict=layer_word(row, decision, drafted.seconds)) for row in drafted.layers)
    findings = tuple(
        replace(_titled(finding), next_step=step_of_finding(case, finding)) for finding in decision.findings
    )
    return Diagnosis(
        verdict=decision.verdict,
        headline=headline(case, drafted.growth, drafted.line, decision),
        growth=drafted.growth,
        layers=rows,
        groups=drafted.groups,
        members=drafted.members,
        findings=findings,
        hooks=case.hooks,
        kernel_totals=drafted.kernel_totals,
        hook_meanings=hook_meanings(case.hooks, case.hook_audits),
        not_seen=(*_not_seen(case), *_layers_that_differ(drafted)),
        next_step=step_of_report(case, drafted.growth, decision.verdict, findings),
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
                    rate=sum_rates([_line_rate(*line) for line in lines.get((layer, in_rss), [])]),
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
                kind=MORE_PROCESSES,
                text=f"{found.now - found.before} more processes than at the start, each counted as it settled",
                ref="samples",
            ),
        ),
        rate=rate,
        trend=found.trend,
    )


# --- words --------------------------------------------------------------------------------------------------------


def _titled(finding: Finding) -> Finding:
    """Its title; where it is too early for a verdict, one that does not say that it grows."""
    if finding.verdict != "insufficient-data":
        return finding
    code = code_of(finding)
    return replace(finding, title=f"{LAYER_NAMES[finding.layer]} so far{f': {code}' if code else ''}")


def _layers_that_differ(drafted: Draft) -> Iterable[NotSeen]:
    """Says so where the layers do not sum to the growth of the whole."""
    found = layers_differ(drafted.layers, drafted.growth)
    if found is not None:
        layers, whole = found
        yield NotSeen(
            what="all of the layers' growth",
            why=f"the layers sum to {rate_text(layers.estimate)} in a few snapshots, and the whole changes by "
            f"{rate_text(whole.estimate)} in many samples",
            enable="a longer --duration",
        )


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
