"""The headline of a report: one sentence that agrees with the verdict, the growth line and the first finding. Pure.

A rate in it is that of the first finding or that of the whole, and the sentence says of which.
"""

from memforensics.analysis import series
from memforensics.analysis.blame import NO_APPLICATION
from memforensics.analysis.threads import ENDED, LIVING
from memforensics.analysis.verdict import Decision
from memforensics.case.model import Case, Culprit, Finding, Growth, Layer, Rate
from memforensics.units import MIB, NS_PER_S, duration_text, size_text

FLAT_SHARE = 0.1  # of a rise: with less in the last third, the line is flat there
MINIMUM_CHANGE = 4 * MIB  # less is normal in any process
MOST_SHARE = 0.5
MORE_PROCESSES = "more-processes"  # kind of evidence

LAYER_NAMES: dict[Layer, str] = {
    "anon-mmap": "Anonymous memory",
    "native-heap": "C heap",
    "python-object": "Python heap",
    "allocator-retention": "Free memory that the allocator keeps",
    "thread-stack": "Memory of thread stacks",
    "shmem": "Shared memory",
    "file": "Memory of mapped files",
    "jvm-heap": "Java heap",
    "jvm-native": "JVM memory outside its heap",
    "gpu": "GPU memory",
    "device": "Device memory",
    "unattributed": "Memory",
}


def headline(case: Case, growth: Growth | None, line: series.Series, decision: Decision) -> str:
    """One sentence."""
    if growth is None:
        return "Nothing could be measured"
    times = [sample.t_ns for sample in case.samples]
    watched = duration_text((max(times) - min(times)) / NS_PER_S)
    word, first = decision.verdict, next(iter(decision.findings), None)
    if word == "steady":
        return _steady(growth, line, watched)
    if word == "insufficient-data":
        return _undecided(growth, line, watched)
    if first is None:
        if word in ("bounded", "retention"):
            return f"Memory grew by {size_text(max(line.change_bytes, 0))} and leveled off within {watched}"
        return f"Memory grows {_rate(growth.rate)}" if growth.rate else "Memory grows"
    if any(item.kind == MORE_PROCESSES for item in first.evidence):
        return first.title
    is_threads = any(item.kind in (ENDED, LIVING) for item in first.evidence)
    sentence = (_threads if is_threads else _grows)(first, growth) + _where(case, first)
    if word == "bounded":
        return f"{sentence}; this growth has a limit"
    return f"{sentence}; the allocator keeps this memory free for later use" if word == "retention" else sentence


def _grows(finding: Finding, growth: Growth) -> str:
    """What grows, and how fast, through whom."""
    name, whole, own = LAYER_NAMES[finding.layer], growth.rate, finding.rate
    who = code_of(finding)
    if own is not None and (whole is None or _meet(own, whole)):
        return f"{name} grows {_rate(own)}{_joined(who)}"
    if own is not None and whole is not None and own.estimate > whole.estimate:
        return f"{name} grows {_rate(own)}{_joined(who)}, while other memory shrinks or fluctuates"
    if whole is None:
        return f"{name} grows{_joined(who)}"
    if own is not None:
        return f"Memory grows {_rate(whole)}; {_rate(own)} of it is in {_inside(name)}{_joined(who)}"
    if name == "Memory":
        return f"Memory grows {_rate(whole)}; no layer and no code explains it"
    share = finding.share if finding.share is not None else 1.0
    part = "most" if share > MOST_SHARE else f"{share:.0%}"
    return f"Memory grows {_rate(whole)}; {part} of it is in {_inside(name)}{_joined(who) or ', no stack was captured'}"


def _threads(finding: Finding, growth: Growth) -> str:
    return f"Memory grows{f' {_rate(growth.rate)}' if growth.rate else ''}; {finding.title}"


def code_of(finding: Finding) -> str:
    """ "through libucs.so 1.19.0 inside munmap", "most of it is requested under request (app.py:36)"; empty without
    code. Code that makes a heap grow need not be the code that keeps the memory."""
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
        return f", in {len(finding.pids)} processes together"
    return "" if finding.pid == case.meta.root_pid else f", in child process {finding.pid}"


def _meet(a: Rate, b: Rate) -> bool:
    """Whether two intervals have a value in common, or the estimates round to the same."""
    return (a.low <= b.high and b.low <= a.high) or _rate(a) == _rate(b)


def _rate(rate: Rate) -> str:
    return f"{size_text(rate.estimate)}/min"


def _undecided(growth: Growth, line: series.Series, watched: str) -> str:
    """Too little to judge: what changed, and no rate."""
    if growth.trend.shape in ("too-short", "irregular") or not line.values:
        changed = f"; memory changed by {_signed(line.change_bytes)} so far" if line.values else ""
        return f"{watched} is too short to judge{changed}"
    return f"Memory changed by {_signed(line.change_bytes)} in {watched}; a longer look tells whether that goes on"


def _signed(change: int) -> str:
    return ("+" if change > 0 else "") + size_text(change)


def _steady(growth: Growth, line: series.Series, watched: str) -> str:
    """What `steady` looked like."""
    if line.swings and line.span_bytes >= MINIMUM_CHANGE:
        return f"Memory fluctuates; no net growth in {watched}"
    if growth.trend.shape == "step" and line.change_bytes >= MINIMUM_CHANGE:
        lately = line.values[-1] - line.values[len(line.values) * 2 // 3]
        is_flat = abs(lately) <= FLAT_SHARE * line.change_bytes
        how = "at first and is flat since" if is_flat else "in one or two steps, not steadily"
        return f"Memory grew by {size_text(line.change_bytes)} {how}, in {watched}"
    return f"No growth that matters in {watched}"
