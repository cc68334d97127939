"""Threads behind growing stacks: those that ended and were never joined, and those that have not ended. Pure.

Ended threads. glibc keeps the stack of a thread until the thread was joined, or was detached and has ended; then the
stack goes into a cache of at most 40 MiB of address space, for new threads (nptl/nptl-stack.c: stack_cache_maxsize,
__nptl_deallocate_stack, __nptl_free_stacks; up to 2.33 nptl/allocatestack.c). The tunable
glibc.pthread.stack_cache_size (2.34) sets another limit. So stacks of ended threads beyond the limit are not in the
cache: they belong to threads that nobody has joined, and no new thread can use them. They are evidence of a leak where

- they lie beyond the limit in LEAST_SNAPSHOTS snapshots, each with more of them, and never become fewer; in two,
  where a trace saw as many stacks mapped meanwhile;
- the trace, if there is one, saw (almost) none of the stacks unmapped;
- all stacks together become more too: threads of a pool that end one after the other, to be joined at its end, do not.

A program that joins its threads in batches, longer than the observation apart, fulfils this as well.

Other libraries have no such cache and no evidence: musl unmaps the stack of a detached thread at once.

Threads that have not ended. Where a process has more threads than at the start, and traced stacks of that number stay,
the finding says so, and adds up what they hold: their stacks, and glibc's arenas, which only threads other than the
first use (malloc/arena.c).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from memforensics.analysis.blame import place_of
from memforensics.case.model import Case, EvidenceItem, Finding, MappingGroup, Target
from memforensics.units import MIB, counted_text, size_text

ENDED = "ended-threads"  # kinds of evidence
LIVING = "threads"
STACK_CACHE = 40 * MIB
LEAST_SNAPSHOTS = 3
FEW_UNMAPPED = 0.05  # of the traced stacks: more, and threads are joined
LEAST_THREADS = 10  # fewer are the working of any program
_TUNABLE = "glibc.pthread.stack_cache_size"
_STACKS, _ARENAS = "thread stacks", "glibc arenas"  # groups of analysis/ownership.py

GroupsOf = Mapping[int, Sequence[MappingGroup]]  # PID -> what changed between its first and its last snapshot


def with_threads(case: Case, findings: Sequence[Finding], groups: GroupsOf, growth_bytes: int) -> list[Finding]:
    """The findings, those of thread stacks with what is known of the threads. `growth_bytes`: what shares are of."""
    return [_of_stacks(case, f, groups, growth_bytes) if f.layer == "thread-stack" else f for f in findings]


def _of_stacks(case: Case, finding: Finding, groups: GroupsOf, growth_bytes: int) -> Finding:
    ended = [found for pid in finding.pids if (found := _ended(case, finding, pid)) is not None]
    if ended:
        kept = sum(found.now for found in ended)
        finding = replace(
            finding,
            title=f"{kept:,} ended threads{_by(finding)} were never joined",
            evidence=(*finding.evidence, *map(_ended_item, ended)),
        )
    more = sum(_more_threads(case, pid) for pid in finding.pids)
    living = min(more, sum(site.count for site in finding.sites))
    if living < LEAST_THREADS or ended:
        return finding
    stacks, arenas = (_grown(groups, finding.pids, name) for name in (_STACKS, _ARENAS))
    holds = f"; their stacks hold {size_text(stacks)} more than at the start" if stacks else ""
    if arenas:
        holds += f", glibc's arenas for threads {size_text(arenas)} more, together {size_text(stacks + arenas)}"
    share = finding.share
    if share is not None and growth_bytes > 0:
        share = min(1.0, max(share, (stacks + arenas) / growth_bytes))
    held = EvidenceItem(
        kind=LIVING,
        text=f"{counted_text(more, 'more thread')} than at the start{holds}",
        ref=f"samples/{finding.pid}",
    )
    title = f"{living:,} threads{_by(finding)} have not ended"
    return replace(finding, title=title, share=share, evidence=(*finding.evidence, held))


def _by(finding: Finding) -> str:
    culprit = finding.culprit
    if culprit is None:
        return ""
    caller = culprit.caller
    if caller is not None and caller.application and culprit.path == caller.file:
        line = f":{caller.line}" if caller.line is not None else ""
        return f" started by {caller.function} ({culprit.library}{line})"
    return f" started by {place_of(culprit)}"


def _grown(groups: GroupsOf, pids: Sequence[int], name: str) -> int:
    return sum(max(0, g.change_bytes) for pid in pids for g in groups.get(pid, ()) if g.name == name)


def _more_threads(case: Case, pid: int) -> int:
    counts = [s.threads for s in sorted(case.samples, key=lambda s: s.t_ns) if s.pid == pid and s.threads is not None]
    return max(0, counts[-1] - counts[0]) if counts else 0


# --- ended threads --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Ended:
    """Stacks of ended threads of one process, at the first and the last snapshot beyond the limit."""

    pid: int
    first: int
    now: int
    bytes_now: int  # of address space
    limit: int
    snapshots: int


def _ended(case: Case, finding: Finding, pid: int) -> _Ended | None:
    target = case.target(pid)
    if target is None or not any(runtime.name == "glibc" for runtime in target.runtimes):
        return None
    limit = stack_cache_bytes(target)
    beyond = []
    for snapshot in sorted((s for s in case.snapshots if s.pid == pid), key=lambda s: s.t_ns):
        unused = [mark for mark in snapshot.marks if mark.kind == "thread-stack-unused"]
        used = sum(mark.kind == "thread-stack" for mark in snapshot.marks)
        size = sum(mark.end - mark.start for mark in unused)
        if size > limit:
            beyond.append((len(unused), len(unused) + used, size))
    steps = list(pairwise(beyond))
    rises = sum(b[0] > a[0] and b[1] > a[1] for a, b in steps)  # two snapshots may be of one moment
    if not rises or any(b[0] < a[0] or b[1] < a[1] for a, b in steps):
        return None
    cited = {site.site_id for site in finding.sites if site.pid == pid}
    traced = [site for site in case.sites if site.pid == pid and site.site_id in cited]
    mapped, unmapped = sum(site.allocated_count for site in traced), sum(site.freed_count for site in traced)
    if unmapped > FEW_UNMAPPED * mapped:
        return None
    if rises < LEAST_SNAPSHOTS - 1 and mapped - unmapped < beyond[-1][0] - beyond[0][0]:
        return None
    return _Ended(pid, beyond[0][0], beyond[-1][0], beyond[-1][2], limit, len(beyond))


def _ended_item(found: _Ended) -> EvidenceItem:
    return EvidenceItem(
        kind=ENDED,
        text=f"stacks of ended threads: {found.first:,} at first and {found.now:,} now, in "
        f"{found.snapshots} snapshots, {size_text(found.bytes_now)} of address space; glibc keeps at most "
        f"{size_text(found.limit)} of them for new threads, so the others are of threads that nobody joined",
        ref=f"snapshots/{found.pid}",
    )


def stack_cache_bytes(target: Target) -> int:
    """How much address space of stacks glibc keeps for new threads in this process."""
    tunables = next((v.value for v in target.environment if v.name == "GLIBC_TUNABLES"), "")
    for setting in tunables.split(":"):
        name, _, value = setting.partition("=")
        if name == _TUNABLE:
            try:
                return int(value, 0)
            except ValueError:
                break
    return STACK_CACHE
