"""The verdict of a case. Growth alone is `growing`; `leak` needs evidence that nothing will stop it.

What makes a growing finding a `leak`:

- a cause of the catalogue that matches (it says "leak"), while the finding's own memory grows;
- evidence that nothing will free the memory: LEAK_EVIDENCE;
- growth that was observed for long enough (`sustained_growth.py`).

A straight line without any frees stays `growing`: a FIFO cache looks the same until it is full.

Rules for all verdicts:

1. Nothing is `steady` or `bounded` while the interval of the rate lies above `minimum_tree_rate`. If a line
   bent and its end is flat, `trend.fit_trend` gives the rate of the end. The one exception is a known cause that says
   `bounded` or `retention` and explains EXPLAINED_SHARE of the growth.
2. A finding whose own memory grows is kept although total memory does not grow. It is dropped only if total memory, its
   process and its layer all exclude it: then as much older memory was freed, as in a full cache that replaces its
   entries.
3. Nothing is `steady` or `bounded` while traced memory explains more than half of a rise that continues.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from memforensics.analysis import series
from memforensics.analysis.blame import sum_rates
from memforensics.analysis.line_statistics import FEW_POINTS, MIN_RISE
from memforensics.analysis.sustained_growth import sustained_growth
from memforensics.analysis.trend import minimum_rate, verdict_of_trend
from memforensics.case.model import (
    Case,
    EvidenceItem,
    Finding,
    Growth,
    LayerRow,
    MemberGrowth,
    Rate,
    Trend,
    Verdict,
)
from memforensics.units import NS_PER_S

NO_PROOF = "growth alone does not prove a leak: a cache that is filling looks the same"
DROPPED = "trace events were dropped: the code that maps more than 10% of the memory is not known"
PAST_SECONDS = 60.0  # a trace that ended earlier shows what grew, not what grows now
EXPLAINED_SHARE = 0.7  # of the growth: findings that are bounded explain this much of bounded growth
SUSTAINED_SHARE = 0.3  # of sustained growth: a finding with a smaller share is not the leak
MOST_SHARE = 0.5
LEAK_EVIDENCE: tuple[frozenset[str], ...] = (
    frozenset({"ended-threads"}),  # stacks of ended threads grow beyond what glibc keeps for new threads
    frozenset({"lost"}),  # nothing points to the memory any more
    frozenset(
        {"inside", "give-back-hook"}
    ),  # mapped inside a hook of munmap, in proportion to its calls, and not freed
)


@dataclass(frozen=True, slots=True)
class Decision:
    verdict: Verdict
    findings: tuple[Finding, ...]


LayersOf = Mapping[int, Sequence[LayerRow]]  # PID -> its own layers, with their rates


def decide(
    case: Case,
    growth: Growth | None,
    findings: Sequence[Finding],
    layers: LayersOf | None = None,
    members: Sequence[MemberGrowth] = (),
) -> Decision:
    """The verdict of the case and of each finding. A finding with a known cause comes with the verdict of the catalogue
    ("leak", "bounded", "retention") if that has one; any other finding comes as "growing"."""
    line = verdict_of_line(case, growth)
    doubted = [_doubted(case, finding) for finding in findings]
    judged = [_with_verdict(finding, line, past=_is_past(case, finding)) for finding in doubted]
    if growth is not None and line == "growing":
        item = sustained_growth(case, growth, sorted(judged, key=lambda f: -(f.share or 0.0)))
        judged = [_sustained(finding, item) for finding in judged] if item is not None else judged
    judged.sort(key=lambda f: (f.verdict != "leak", -(f.share or 0.0)))
    if any(finding.verdict == "leak" for finding in judged):
        return Decision("leak", tuple(f for f in judged if f.verdict != "steady"))
    if line == "growing":
        return _while_it_grows(judged)
    kept = [
        _hidden(f)
        for f in judged
        if f.verdict == "growing" and growth and grew(f) and not _is_past(case, f)
        if not _replaces_older(f, growth.trend, [row for pid in f.pids for row in (layers or {}).get(pid, ())], members)
    ]
    if kept:
        return Decision("growing", tuple(kept))
    limited = tuple(f for f in judged if f.verdict in ("bounded", "retention"))
    if line in ("steady", "bounded", "retention"):
        if not any(_explains_the_end(case, f) for f in judged if f not in limited):
            return Decision(line, limited)
        line = "insufficient-data"
    doubtful = [replace(f, verdict="insufficient-data") for f in judged if f not in limited]
    return Decision(line, (*limited, *doubtful))


def _while_it_grows(judged: Sequence[Finding]) -> Decision:
    """The verdict of growth in a straight line without evidence of a leak."""
    verdicts: tuple[Verdict, ...] = ("bounded", "retention")
    for verdict in verdicts:
        limited = tuple(f for f in judged if f.verdict == verdict)
        others = [f for f in judged if f.verdict == "growing" and grew(f)]
        if sum(f.share or 0.0 for f in limited) >= EXPLAINED_SHARE and not others:
            return Decision(verdict, limited)
    return Decision("growing", tuple(judged))


# --- total memory -------------------------------------------------------------------------------------------------


def minimum_tree_rate(case: Case, trend: Trend) -> float:
    """The smallest rate of total memory that matters, in bytes a minute."""
    return minimum_rate(_size(case), trend.seconds)


def verdict_of_line(case: Case, growth: Growth | None) -> Verdict:
    """The verdict that total memory alone allows. Never `steady` or `bounded` while its rate matters."""
    if growth is None:
        return "insufficient-data"
    verdict, rate = verdict_of_trend(growth.trend), growth.rate
    if verdict in ("steady", "bounded") and rate is not None and rate.low > minimum_tree_rate(case, growth.trend):
        return "insufficient-data"
    return verdict


HIDDEN = EvidenceItem(
    kind="hidden",
    text="this memory grows in a straight line; total memory does not show it, because it fluctuates or other memory "
    "shrinks",
)


def _hidden(finding: Finding) -> Finding:
    finding = replace(finding, evidence=(*finding.evidence, HIDDEN))
    return replace(finding, confidence=confidence(finding, finding.verdict, grows=True))


def grew(finding: Finding) -> bool:
    """Whether the finding's own memory grows in a line at a rate that matters."""
    own = finding.trend
    if own is None or own.rate is None or verdict_of_trend(own) != "growing":
        return False
    return own.rate.low > minimum_rate(0, own.seconds)


def _replaces_older(
    finding: Finding, whole: Trend, layers: Sequence[LayerRow], members: Sequence[MemberGrowth]
) -> bool:
    """Whether the finding's memory replaces older memory: total memory, its process and its layer all grow too little.
    The trace counts only memory mapped since its start."""
    own = finding.trend
    assert own is not None
    assert own.rate is not None
    extends = finding.culprit is not None and finding.culprit.extends
    enough = minimum_rate(0, own.seconds)
    layer = sum_rates([row.rate for row in layers if row.layer == finding.layer and row.in_rss])
    if layer is not None and layer.low > enough and layer.estimate >= MOST_SHARE * own.rate.estimate:
        return False
    if extends:
        return True  # the size of a heap fluctuates: only its layer shows growth
    member = sum_rates([m.rate for m in members if m.pid in finding.pids])
    return not any(rate is not None and rate.high >= own.rate.estimate for rate in (whole.rate, member))


def _explains_the_end(case: Case, finding: Finding) -> bool:
    """Whether the finding's memory still grows and explains more than half of a rise of total memory that continues in
    the last third of the observation."""
    own = finding.trend
    if own is None or own.rate is None or own.rate.low <= 0 or own.shape not in ("linear", "irregular", "step"):
        return False
    if _is_past(case, finding):
        return False
    line = series.tree_series(case.samples, start_times=series.start_times(case))
    third = len(line.values) * 2 // 3
    if len(line.values) - third < 6:
        return False
    before, after = line.values[third : third + 3], line.values[-3:]
    rise = min(after) - max(before)  # in all of three readings on either side
    minutes = (line.times_s[-1] - line.times_s[third]) / 60.0
    if rise < max(MIN_RISE, minimum_tree_rate(case, own) * minutes):
        return False
    return MOST_SHARE <= own.rate.estimate * minutes / rise <= 1.0 / MOST_SHARE


# --- one finding --------------------------------------------------------------------------------------------------


def _sustained(finding: Finding, item: EvidenceItem) -> Finding:
    """The finding as a leak, if it is a large enough part of sustained growth."""
    if finding.verdict != "growing" or (finding.share or 0.0) < SUSTAINED_SHARE:
        return finding
    against = tuple(text for text in finding.against if text != NO_PROOF)
    finding = replace(finding, verdict="leak", evidence=(*finding.evidence, item), against=against)
    return replace(finding, confidence=confidence(finding, "leak", grows=True))


def _doubted(case: Case, finding: Finding) -> Finding:
    """The finding, with DROPPED against it if dropped events make its sums doubtful."""
    traces = [trace for trace in case.traces if trace.pid in finding.pids and trace.dropped_events]
    is_doubtful = any(
        trace.unknown_bytes is None
        or trace.unknown_bytes > DOUBTFUL_SHARE * (trace.outstanding_bytes + trace.unknown_bytes)
        for trace in traces
    )
    if finding.culprit is None or not is_doubtful:
        return finding
    return replace(finding, against=(*finding.against, DROPPED))


def _with_verdict(finding: Finding, line: Verdict, *, past: bool) -> Finding:
    verdict: Verdict = finding.verdict
    grows = _grows(finding, line) and (line == "growing" or not past)
    if verdict == "growing" and grows and has_leak_evidence(finding):
        verdict = "leak"
    if verdict == "leak" and not grows:
        # The cause is present, but its memory does not grow now: a setting limits it, or it is idle.
        verdict = "steady" if line in ("steady", "bounded") else "growing"
    if verdict == "growing" and NO_PROOF not in finding.against:
        finding = replace(finding, against=(*finding.against, NO_PROOF))
    return replace(finding, verdict=verdict, confidence=confidence(finding, verdict, grows=grows))


def has_leak_evidence(finding: Finding) -> bool:
    """Whether its evidence says that nothing will free the memory."""
    kinds = {item.kind for item in finding.evidence}
    return any(needed <= kinds for needed in LEAK_EVIDENCE)


def _is_past(case: Case, finding: Finding) -> bool:
    """Whether its trace ended long before the last sample, as when `watch` continues after a trace."""
    ended = max((trace.ended_ns for trace in case.traces if trace.pid == finding.pid), default=None)
    last = max((sample.t_ns for sample in case.samples), default=None)
    return ended is not None and last is not None and last - ended > PAST_SECONDS * NS_PER_S


def _grows(finding: Finding, line: Verdict) -> bool:
    """Whether the finding's own memory grows. If its series is too short for a shape: whether it is most of the growth
    of a tree that grows."""
    if finding.trend is None:
        return line == "growing" and has_leak_evidence(finding)
    if finding.trend.shape == "too-short" or (finding.trend.samples < FEW_POINTS and finding.trend.shape != "falling"):
        return line == "growing" and (finding.share or 0.0) >= 0.5
    return verdict_of_trend(finding.trend) == "growing"


CONFIDENCE_BASE = 0.2  # the layer
CONFIDENCE_SHARE = 0.25  # times the share of the growth
CONFIDENCE_GROWS = 0.1  # its own memory grows in a line
CONFIDENCE_REQUESTED = 0.05  # the code that made a heap grow is known
CONFIDENCE_HELD = 0.1  # the code that holds the memory is known
CONFIDENCE_LEAK = 0.25  # nothing will free it
CONFIDENCE_IDLE_CAUSE = 0.5  # at most, for a known cause whose memory does not grow now
HIDDEN_FACTOR = 0.8  # total memory does not show it
DROPPED_FACTOR = 0.8  # dropped events make its sums doubtful
DOUBTFUL_SHARE = 0.1  # of the traced memory, mapped by unknown code


def confidence(finding: Finding, verdict: Verdict, *, grows: bool) -> float:
    """The confidence in the finding's title, 0 to 1. Evidence for the finding never lowers it.

    Without a known cause it is a sum: the layer, the share of the growth, growth of its own memory, known code (less if
    the code only requested the memory), evidence that nothing will free the memory. The sum is at most 0.65 without
    leak evidence, and 0.9 with it. For a known cause the catalogue sets it (0.7 and more for a leak). It is at most
    CONFIDENCE_IDLE_CAUSE if the memory of the cause does not grow now, or its sums are doubtful (DROPPED)."""
    is_doubtful = DROPPED in finding.against
    if finding.cause is not None and finding.confidence > 0:
        grows = (grows or verdict in ("bounded", "retention")) and not is_doubtful
        return finding.confidence if grows else min(finding.confidence, CONFIDENCE_IDLE_CAUSE)
    culprit = finding.culprit
    seen = 0.0 if culprit is None else CONFIDENCE_REQUESTED if culprit.extends else CONFIDENCE_HELD
    total = (
        CONFIDENCE_BASE
        + CONFIDENCE_SHARE * min(finding.share or 0.0, 1.0)
        + CONFIDENCE_GROWS * grows
        + seen
        + CONFIDENCE_LEAK * (has_leak_evidence(finding) or verdict == "leak")
    )
    if any(item.kind == HIDDEN.kind for item in finding.evidence):
        total *= HIDDEN_FACTOR
    if is_doubtful:
        total *= DROPPED_FACTOR
    return round(total, 2)


def _size(case: Case) -> int:
    """The memory of the tree at the end."""
    return sum({sample.pid: sample.growth_metric for sample in case.samples}.values())


# --- layers -------------------------------------------------------------------------------------------------------


def layer_verdict(row: LayerRow, decision: Decision, seconds: float) -> Verdict:
    """The verdict of one layer: that of its findings, else from its own rate. A layer that grows while total memory
    does not is `insufficient-data`, because its rate comes from few snapshots. Growth of `file` is bounded by the size
    of the files."""
    found = [f.verdict for f in decision.findings if f.layer == row.layer]
    for verdict in ("leak", "growing", "retention", "bounded"):
        if verdict in found:
            return verdict
    if row.change_bytes is None:
        return "insufficient-data"
    enough = minimum_rate(row.bytes or 0, seconds)
    rises = row.rate.low > enough if row.rate is not None else row.change_bytes * 60.0 / max(seconds, 1.0) > enough
    if row.layer == "file":
        return "bounded" if rises else "steady"
    if decision.verdict == "insufficient-data" and row.change_bytes * 60.0 / max(seconds, 1.0) > enough:
        return "insufficient-data"
    if decision.verdict in ("growing", "leak"):
        grows = row.rate is not None and rises
        return "growing" if grows else "steady"
    if row.rate is not None and rises:
        return "insufficient-data"
    return "bounded" if decision.verdict == "bounded" and row.change_bytes >= MIN_RISE else "steady"


def layers_differ(rows: Sequence[LayerRow], growth: Growth | None) -> tuple[Rate, Rate] | None:
    """The summed rate of the layers and the total rate, if their intervals are disjoint. They can be, because snapshots
    are few and taken at other times than samples. None if the intervals overlap."""
    total = sum_rates(row.rate for row in rows if row.in_rss and row.layer != "file")
    if growth is None or growth.rate is None or total is None:
        return None
    whole, slack = growth.rate, minimum_rate(0, growth.trend.seconds)
    meet = total.low - slack <= whole.high and whole.low <= total.high + slack
    return None if meet else (total, whole)
