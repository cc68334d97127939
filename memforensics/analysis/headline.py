"""The headline of a report: one sentence that agrees with the verdict, the growth and the first finding. Pure.

Each rate in it is either the rate of the first finding or the total rate; the sentence says which.
"""

from memforensics.analysis import series
from memforensics.analysis.blame import NO_APPLICATION
from memforensics.analysis.ownership import LAYER_NAMES
from memforensics.analysis.threads import ENDED, LIVING
from memforensics.analysis.verdict import Decision
from memforensics.case.model import Case, Culprit, Finding, Growth, Rate
from memforensics.units import MIB, NS_PER_S, duration_text, size_text

FLAT_SHARE = 0.1  # of the rise: a last third that changes by less is flat
MINIMUM_CHANGE = 4 * MIB  # any process changes by less
MOST_SHARE = 0.5
MORE_PROCESSES = "more-processes"  # kind of evidence


def headline(case: Case, growth: Growth | None, line: series.Series, decision: Decision) -> str:
    """One sentence, without a full stop."""
    if growth is None:
        return "Memory could not be measured"
    times = [sample.t_ns for sample in case.samples]
    watched = duration_text((max(times) - min(times)) / NS_PER_S)
    verdict, first = decision.verdict, next(iter(decision.findings), None)
    if verdict == "steady":
        return _steady(growth, line, watched)
    if verdict == "insufficient-data":
        return _undecided(growth, line, watched)
    if first is None:
        if verdict in ("bounded", "retention"):
            return f"Memory grew {size_text(max(line.change_bytes, 0))} and leveled off within {watched}"
        return f"Memory grows {_rate(growth.rate)}" if growth.rate else "Memory grows"
    if any(item.kind == MORE_PROCESSES for item in first.evidence):
        return first.title
    is_threads = any(item.kind in (ENDED, LIVING) for item in first.evidence)
    sentence = _threads(first, growth) if is_threads else _grows(first, growth, _where(case, first))
    if verdict == "bounded":
        return f"{sentence}; this growth has a limit"
    return f"{sentence}; the allocator keeps it after it is freed" if verdict == "retention" else sentence


def _grows(finding: Finding, growth: Growth, where: str) -> str:
    """What grows, how fast, in which process, through which code."""
    name, whole, own = LAYER_NAMES[finding.layer], growth.rate, finding.rate
    who = code_of(finding)
    if own is not None and (whole is None or _meet(own, whole)):
        return f"{name} grows {_rate(own)}{where}{_joined(who)}"
    if own is not None and whole is not None and own.estimate > whole.estimate:
        return f"{name} grows {_rate(own)}{where}{_joined(who)}; other memory shrinks or fluctuates"
    if whole is None:
        return f"{name} grows{where}{_joined(who)}"
    if own is not None:
        return f"Memory grows {_rate(whole)}; {_rate(own)} of it is in {_inside(name)}{where}{_joined(who)}"
    if name == "Memory":
        return f"Memory grows {_rate(whole)}{where}; no layer and no stack explains it"
    share = finding.share if finding.share is not None else 1.0
    part = "most" if share > MOST_SHARE else f"{share:.0%}"
    who = _joined(who) or "; no stack was captured"
    return f"Memory grows {_rate(whole)}; {part} of it is in {_inside(name)}{where}{who}"


def _threads(finding: Finding, growth: Growth) -> str:
    return f"Memory grows{f' {_rate(growth.rate)}' if growth.rate else ''}; {finding.title}"


def code_of(finding: Finding) -> str:
    """E.g. `through libucs.so 1.19.0 inside munmap`, `most of it is requested under request (app.py:36)`. Empty without
    a culprit. Code that makes a heap grow may not be the code that keeps the memory."""
    culprit = finding.culprit
    if culprit is None:
        return ""
    if not culprit.extends:
        return f"through {_who(finding, culprit)}"
    how = "first touched" if any(site.kind == "fault" for site in finding.sites) else "requested"
    return f"most of it is {how} under {_who(finding, culprit)}"


def _joined(who: str) -> str:
    return f"; {who}" if who.startswith("most") else f", {who}" if who else ""


def _inside(name: str) -> str:
    return f"the {name}" if name.endswith("heap") else name[0].lower() + name[1:] if name[1:2].islower() else name


def _who(finding: Finding, culprit: Culprit) -> str:
    if culprit.caller is not None and not culprit.caller.application and culprit.path == culprit.caller.file:
        line = f":{culprit.caller.line}" if culprit.caller.line is not None else ""
        return f"{culprit.library}{line} ({NO_APPLICATION})"
    if culprit.caller is not None and culprit.path == culprit.caller.file:
        line = f":{culprit.caller.line}" if culprit.caller.line is not None else ""
        return f"{culprit.caller.function} ({culprit.library}{line})"
    version = f" {culprit.version}" if culprit.version else ""
    inside = next((site.inside for site in finding.sites if site.inside), None)
    return f"{culprit.library}{version}" + (f" inside {inside}" if inside else "")


def _where(case: Case, finding: Finding) -> str:
    if len(finding.pids) > 1:
        return f" in {len(finding.pids)} processes"
    return "" if finding.pid == case.meta.root_pid else f" in child process {finding.pid}"


def _meet(a: Rate, b: Rate) -> bool:
    """Whether two intervals overlap, or the estimates round to the same text."""
    return (a.low <= b.high and b.low <= a.high) or _rate(a) == _rate(b)


def _rate(rate: Rate) -> str:
    return f"{size_text(rate.estimate)}/min"


def _undecided(growth: Growth, line: series.Series, watched: str) -> str:
    """The change so far, without a rate."""
    if growth.trend.shape in ("too-short", "irregular") or not line.values:
        changed = f"; memory changed by {_signed(line.change_bytes)} so far" if line.values else ""
        return f"{watched} is too short for a verdict{changed}"
    return (
        f"Memory changed by {_signed(line.change_bytes)} in {watched}; observe for longer to see whether this continues"
    )


def _signed(change: int) -> str:
    return ("+" if change > 0 else "") + size_text(change)


def _steady(growth: Growth, line: series.Series, watched: str) -> str:
    """The headline of a steady process."""
    if line.swings and line.span_bytes >= MINIMUM_CHANGE:
        return f"Memory fluctuates; no net growth in {watched}"
    if growth.trend.shape == "step" and line.change_bytes >= MINIMUM_CHANGE:
        lately = line.values[-1] - line.values[len(line.values) * 2 // 3]
        is_flat = abs(lately) <= FLAT_SHARE * line.change_bytes
        how = "at first and is flat since" if is_flat else "in one or two steps"
        return f"Memory grew {size_text(line.change_bytes)} {how}; observed for {watched}"
    return f"No significant growth in {watched}"
