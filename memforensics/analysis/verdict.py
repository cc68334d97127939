"""The word. A rising line alone is `growing`; `leak` needs something beside the line that says nothing will stop it.

What makes a `leak` here: a cause that is known and matches (the catalogue), whose own memory still grows; or a line
that has outlasted every warm-up and bound in sight: straight, old, and its rate times the age of the process explains
most of its size. A cache that fills draws the same line in a minute, so nothing else on the line is enough.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from memforensics.analysis.trend import FEW_POINTS, growth_word, least_effect
from memforensics.case.model import Case, EvidenceItem, Finding, Growth, Trend, VerdictWord
from memforensics.units import GIB, MIB, NS_PER_S, duration_text

OUTLASTED_SECONDS = 6 * 3600.0  # no warm-up, and few caches, still fill in a straight line after this
OUTLASTED_SIZE = 1 * GIB  # nor is a smaller process worth the word
OUTLASTED_SHARE = (0.6, 1.6)  # rate x age over size: below, it grew by something else; above, it was quicker before
SECONDS_TO_JUDGE = 20.0
PAST_SECONDS = 60.0  # after its end a trace tells what grew, and only the line what grows
ONLY_ASKED_SHARE = 0.5  # of the confidence, for a culprit that only made a heap grow
EXPLAINED_SHARE = 0.7  # of the growth, by findings that are bounded, for the whole to be bounded


@dataclass(frozen=True, slots=True)
class Decision:
    verdict: VerdictWord
    findings: tuple[Finding, ...]
    next_step: str | None = None


def decide(case: Case, growth: Growth | None, findings: Sequence[Finding]) -> Decision:
    """The verdict of the whole and of each finding. Findings come with `cause` and, where the catalogue knows the
    cause's nature, its verdict ("leak", "bounded", "retention"); without a cause theirs is "growing"."""
    line: VerdictWord = growth_word(growth.trend) if growth else "insufficient-data"
    outlasted = growth is not None and line == "growing" and _outlasted(case, growth)
    judged = [_judge(finding, line, outlasted=outlasted, past=_is_past(case, finding)) for finding in findings]
    judged.sort(key=lambda f: (f.verdict != "leak", -(f.share or 0.0)))
    if any(finding.verdict == "leak" for finding in judged):
        return Decision("leak", tuple(judged))
    hidden = [replace(f, evidence=(*f.evidence, HIDDEN)) for f in judged if growth and _is_hidden(f, growth.trend)]
    if hidden and line != "growing":
        return Decision("growing", tuple(hidden), _next_step(case, growth, "growing"))
    if line in ("steady", "bounded", "retention"):
        return Decision(line, tuple(f for f in judged if f.verdict in ("bounded", "retention")))
    if outlasted:
        return Decision("leak", tuple(judged))
    for word in ("bounded", "retention"):
        if sum(f.share or 0.0 for f in judged if f.verdict == word) >= EXPLAINED_SHARE:
            return Decision(word, tuple(judged))
    return Decision(line, tuple(judged), _next_step(case, growth, line))


HIDDEN = EvidenceItem(
    kind="hidden",
    text="these mappings grow in a straight line; the whole goes up and down by so much more that it neither shows nor "
    "excludes it in this time",
)


def _is_hidden(finding: Finding, whole: Trend) -> bool:
    """Whether the finding's own memory grows in a line that the whole, which moves about, neither shows nor excludes.
    A cache that is full turns its memory over, and what it mapped lately grows: there the whole stands still, and
    excludes it."""
    own = finding.trend
    if own is None or own.shape != "linear" or own.rate is None or whole.rate is None:
        return False
    if finding.culprit is not None and finding.culprit.extends:
        return False
    enough = least_effect(0, own.seconds)
    return own.rate.low > enough and whole.rate.low < 0.0 and whole.rate.high >= own.rate.estimate


def _judge(finding: Finding, line: VerdictWord, *, outlasted: bool, past: bool) -> Finding:
    word: VerdictWord = finding.verdict
    grows = _grows(finding, line) and (line == "growing" or not past)
    if word == "leak" and not grows:
        # The mechanism is there, but its memory does not grow now: another setting holds it, or it stands still.
        word = "steady" if line in ("steady", "bounded") else "growing"
    if outlasted and word == "growing" and (finding.share or 0.0) >= 0.5:
        word = "leak"
        finding = replace(
            finding,
            evidence=(
                *finding.evidence,
                EvidenceItem(kind="outlasted", text="the line has outlasted every warm-up and bound in sight"),
            ),
        )
    return replace(finding, verdict=word, confidence=_confidence(finding, word, grows=grows))


def _is_past(case: Case, finding: Finding) -> bool:
    """Whether the trace that it rests on ended long before the last reading, as where a watch goes on after it."""
    ended = max((trace.ended_ns for trace in case.traces if trace.pid == finding.pid), default=None)
    last = max((sample.t_ns for sample in case.samples), default=None)
    return ended is not None and last is not None and last - ended > PAST_SECONDS * NS_PER_S


def _grows(finding: Finding, line: VerdictWord) -> bool:
    """Whether the finding's own memory grows: by its line or, where that has too few points for a shape, as the most of
    a tree that grows."""
    if finding.trend is None:
        return False
    if finding.trend.shape == "too-short" or (finding.trend.samples < FEW_POINTS and finding.trend.shape != "falling"):
        return line == "growing" and (finding.share or 0.0) >= 0.5
    return growth_word(finding.trend) == "growing"


def _confidence(finding: Finding, word: VerdictWord, *, grows: bool) -> float:
    """0 to 1. The catalogue sets that of a known cause; else it is how much of the growth these sites explain."""
    if finding.cause is not None and finding.confidence > 0:
        return finding.confidence if grows or word in ("bounded", "retention") else min(finding.confidence, 0.5)
    share = finding.share if finding.share is not None else 0.3
    if finding.culprit is not None and finding.culprit.extends:
        share *= ONLY_ASKED_SHARE
    return round(min(0.9, max(0.1, share * (0.9 if grows else 0.6))), 2)


def _outlasted(case: Case, growth: Growth) -> bool:
    """Whether the line alone is enough by its age. Needs a straight line whose rate explains most of the size."""
    root = case.target(case.meta.root_pid) if case.meta.root_pid is not None else None
    last = max((s.t_ns for s in case.samples), default=None)
    if root is None or last is None or growth.rate is None or growth.trend.shape != "linear":
        return False
    age = (case.meta.anchor.wall_at(last) - root.start_wall_ns) / NS_PER_S
    newest = {sample.pid: sample.growth_metric for sample in case.samples}
    size = sum(newest.values())
    if age < OUTLASTED_SECONDS or size < OUTLASTED_SIZE:
        return False
    low, high = OUTLASTED_SHARE
    return low <= growth.rate.estimate * age / 60.0 / size <= high


def _next_step(case: Case, growth: Growth | None, line: VerdictWord) -> str:
    pid = case.meta.root_pid
    root = case.target(pid) if pid is not None else None
    if root is not None and root.left_how is not None and line != "growing":
        return f"it is gone ({root.left_how}); look at it again while it runs, for {SECONDS_TO_JUDGE:.0f} s at least"
    if growth is None or line == "insufficient-data":
        wait = growth.trend.seconds_to_decide if growth else None
        longer = f" for {duration_text(wait)}" if wait else " for longer"
        return f"too little was seen to judge; look{longer}: memforensics diagnose {pid} --duration 2m"
    rate = growth.rate.estimate if growth.rate else 0.0
    size = sum({s.pid: s.growth_metric for s in case.samples}.values())
    doubled = size / rate * 60.0 if rate > 0 else None
    until = (
        f", and whether it still rises when it has doubled, in about {duration_text(doubled)}: a warm-up seldom does"
        if doubled is not None and rate >= MIB
        else ""
    )
    if not case.traces:
        return f"to see through whose code, and whether it is a known leak: memforensics diagnose {pid}"
    return (
        "a line that rises is no leak yet: a cache that fills, or a warm-up, looks the same. Check whether what is"
        f" named below has a bound{until}. A known cause, or a straight line of hours, is a leak; to wait for that:"
        f" memforensics watch {pid} --until leak"
    )
