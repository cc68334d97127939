"""The threads behind growing thread stacks: ended threads that were never joined, and threads that have not ended.
Pure.

Ended threads. glibc keeps the stack of a thread until the thread is joined, or is detached and ends. The stack then
goes into a cache for new threads of at most 40 MiB of address space (nptl/nptl-stack.c: stack_cache_maxsize,
__nptl_deallocate_stack, __nptl_free_stacks; up to 2.33 nptl/allocatestack.c). The tunable
glibc.pthread.stack_cache_size (2.34) sets another limit. Stacks of ended threads beyond the limit are therefore not in
the cache: they belong to threads that were never joined, and no new thread can use them. They are evidence of a leak if

- their size is above the limit in LEAST_SNAPSHOTS snapshots, and their number grows from each to the next; two
  snapshots are enough if a trace saw as many stacks mapped in between;
- the trace, if there is one, saw (almost) none of the stacks unmapped;
- the number of all stacks grows too, which it does not when the threads of a pool end one by one to be joined later.

A program that joins its threads in batches, with longer pauses than the observation, meets these conditions too.

Other libraries have no such cache, so there is no such evidence: musl unmaps the stack of a detached thread at once.

Threads that have not ended. If a process has more threads than at the start, and as many traced stacks stay mapped, the
finding says so and adds the memory of those threads: their stacks, and glibc's arenas, which only threads other than
the first use (malloc/arena.c)."""

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
FEW_UNMAPPED = 0.05  # of the traced stacks: if more are unmapped, threads are joined
LEAST_THREADS = 10  # more threads than at the start
_TUNABLE = "glibc.pthread.stack_cache_size"
_STACKS, _ARENAS = "thread stacks", "glibc arenas"  # groups of analysis/ownership.py

GroupsOf = Mapping[int, Sequence[MappingGroup]]  # PID -> changes from its first to its last snapshot


def with_threads(case: Case, findings: Sequence[Finding], groups: GroupsOf, growth_bytes: int) -> list[Finding]:
    """The findings; those of thread stacks have evidence about the threads. `growth_bytes`: shares are relative to
    it."""
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
    holds = f"; thread stacks grew by {size_text(stacks)}" if stacks else ""
    if arenas:
        holds += f", glibc's thread arenas by {size_text(arenas)} ({size_text(stacks + arenas)} in total)"
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


# --- ended threads ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Ended:
    """Stacks of ended threads of one process, in the first and the last snapshot above the limit."""

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
    rises = sum(b[0] > a[0] and b[1] > a[1] for a, b in steps)  # two snapshots may have the same time
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
        text=f"stacks of ended threads: {found.first:,} at the start, {found.now:,} now ({found.snapshots} snapshots, "
        f"{size_text(found.bytes_now)} of address space); glibc caches at most {size_text(found.limit)} of stacks for "
        "new threads, so the others belong to threads that were never joined",
        ref=f"snapshots/{found.pid}",
    )


def stack_cache_bytes(target: Target) -> int:
    """The limit of glibc's stack cache in this process, in bytes of address space."""
    tunables = next((v.value for v in target.environment if v.name == "GLIBC_TUNABLES"), "")
    for setting in tunables.split(":"):
        name, _, value = setting.partition("=")
        if name == _TUNABLE:
            try:
                return int(value, 0)
            except ValueError:
                break
    return STACK_CACHE
