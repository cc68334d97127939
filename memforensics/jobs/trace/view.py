"""What a trace found: the sites of one family as they were wanted, on a screen, as JSON, or for another program; of a
trace that goes on, has just ended, or is in a case file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from memforensics import __version__
from memforensics.analysis.blame import site_rate
from memforensics.analysis.site_groups import SiteFilter, SiteGroup, SortKey, group_by_frame, score
from memforensics.case.model import AllocationSite, Case, Cost, Loss, TraceSummary
from memforensics.case.store import CaseFile
from memforensics.errors import CaseError
from memforensics.report.export import ExportFormat, export
from memforensics.report.export.profile import Profile
from memforensics.report.json.trace import trace_json
from memforensics.report.labels import FAMILIES, WORDS, Family, Words, family_of, matter_text, trust_sentences

EngineName = Literal["bcc", "bpftrace"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which sites to show, and in what order."""

    sort: SortKey = "outstanding"
    filters: tuple[SiteFilter, ...] = ()  # a site must pass all
    min_age_s: float = 0.0


ALL = Wanted()


@dataclass(frozen=True, slots=True)
class TraceView:
    """What a trace found, or has found so far. `sites` are those wanted, most outstanding first, files' after all
    others, those that hold nothing at the end included; `groups` have those that hold something, in the wanted order,
    and `file_groups` those of files' pages; `left_out` hold something and were not wanted. `left`: processes named by
    the user that left, and how."""

    case: Case
    family: Family
    engine: EngineName
    seconds: float
    sites: tuple[AllocationSite, ...]
    groups: tuple[SiteGroup, ...]
    file_groups: tuple[SiteGroup, ...] = ()
    left_out: tuple[SiteGroup, ...] = ()
    left: tuple[tuple[int, str], ...] = ()

    @property
    def words(self) -> Words:
        return WORDS[self.family]

    @property
    def summaries(self) -> tuple[TraceSummary, ...]:
        return self.case.traces

    @property
    def losses(self) -> tuple[Loss, ...]:
        return self.case.losses

    @property
    def costs(self) -> tuple[Cost, ...]:
        return self.case.costs

    @property
    def events(self) -> int:
        return sum(summary.events for summary in self.summaries)

    @property
    def coverage(self) -> float | None:
        known = [s for s in self.summaries if s.resident_bytes is not None and s.coverage is not None]
        growth = sum(s.rss_growth_bytes or 0 for s in known)
        return sum(s.resident_bytes or 0 for s in known) / growth if growth > 0 else None


def view_of(
    case: Case, engine: EngineName, seconds: float, wanted: Wanted = ALL, family: Family = "mappings"
) -> TraceView:
    """The groups of a case's sites of that family. Pure."""
    now_ns = max([t.ended_ns for t in case.traces] or [s.t_ns for s in case.samples] or [0])
    sites = sorted(
        (site for site in case.sites if family_of(site) == family),
        key=lambda s: (s.file_backed, -s.outstanding_bytes, -s.allocated_bytes, s.pid, s.site_id),
    )
    passing = [site for site in sites if all(f.matches(site) for f in wanted.filters)]
    groups = group_by_frame(passing, case.hooks, now_ns)
    young = [group for group in groups if (group.age_s or 0.0) < wanted.min_age_s]
    shown = [group for group in groups if (group.age_s or 0.0) >= wanted.min_age_s]
    shown.sort(key=lambda group: -score(group, wanted.sort))
    chosen = {_key(site) for site in passing}
    others = group_by_frame([site for site in sites if _key(site) not in chosen], case.hooks, now_ns)
    if wanted.min_age_s > 0:
        chosen = {_key(site) for group in shown for site in group.sites}
    return TraceView(
        case=case,
        family=family,
        engine=engine,
        seconds=seconds,
        sites=tuple(site for site in passing if _key(site) in chosen),
        groups=tuple(group for group in shown if not group.file_backed),
        file_groups=tuple(group for group in shown if group.file_backed),
        left_out=(*young, *others),
    )


# --- a saved case, and other programs' formats ------------------------------------------------------------------------


def view_of_file(path: Path, family: Family | None = None, wanted: Wanted = ALL) -> TraceView:
    """CaseError when it is no case, or has no such sites."""
    with CaseFile.open(path) as file:
        return view_of_case(file.load(), family, wanted)


def view_of_case(case: Case, family: Family | None = None, wanted: Wanted = ALL) -> TraceView:
    """What a case of diagnose or trace-mmap holds. Mappings, malloc'ed blocks and faults count the same memory, each
    in its way, and are not mixed. CaseError when there are no such sites."""
    held = {family_of(site) for site in case.sites}
    chosen = family or next((f for f in FAMILIES if f in held), None)
    if chosen is None or chosen not in held:
        raise CaseError(
            f"the case holds no {family or 'allocation'} sites",
            why=f"it was made by memforensics {case.meta.command}",
            enable="memforensics trace-mmap PID --record leak.case",
        )
    engine: EngineName = "bpftrace" if any(trace.engine == "bpftrace" for trace in case.traces) else "bcc"
    seconds = max((trace.ended_ns - trace.began_ns for trace in case.traces), default=0) / 1e9
    return view_of(case, engine, seconds, wanted, chosen)


def export_view(view: TraceView, form: ExportFormat) -> bytes:
    """The wanted sites for another program."""
    return export(profile_of(view), form)


def json_of(view: TraceView) -> dict[str, Any]:
    """For --json."""
    rates = [(site, site_rate(site)) for site in view.sites]
    return trace_json(
        rates,
        view.coverage,
        view.losses,
        view.costs,
        view.seconds,
        view.summaries,
        words=view.words,
        groups=(*view.groups, *view.file_groups),
        left_out=view.left_out,
    )


def profile_of(view: TraceView) -> Profile:
    """What every export is made of; of faults, files' pages are left out. Frames of known interposers are marked as
    such."""
    case, meta = view.case, view.case.meta
    marked = {_key(site): site for group in view.groups for site in group.sites}
    times = [t for trace in case.traces for t in (trace.began_ns, trace.ended_ns)] or [s.t_ns for s in case.samples]
    times = times or [meta.anchor.monotonic_ns]
    root = case.target(meta.root_pid) if meta.root_pid is not None else None
    of_whom = f" of process {meta.root_pid}" if meta.root_pid is not None else ""
    return Profile(
        sites=[marked.get(_key(site), site) for site in view.sites if view.family != "faults" or not site.file_backed],
        title=f"memforensics {meta.command}{of_whom}",
        version=__version__,
        anchor=meta.anchor,
        began_ns=min(times),
        ended_ns=max(times),
        executable=root.exe if root is not None else None,
        processes={target.pid: target.comm for target in case.targets},
        names={_key(site): matter_text(group) for group in view.groups for site in group.sites},
        samples=case.samples,
        notes=trust_sentences(view.coverage, view.engine, view.seconds, view.losses, view.events, view.words),
        words=view.words,
    )


def _key(site: AllocationSite) -> tuple[int, int]:
    return site.pid, site.site_id
