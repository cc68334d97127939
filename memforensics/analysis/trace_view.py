"""The sites of a trace, or of a case, as the tracing commands show and export them."""

from dataclasses import dataclass

from memforensics.analysis.site_groups import SiteFilter, SortKey, group_sites, site_rate, sort_value
from memforensics.case.model import AllocationSite, Case
from memforensics.case.views import FAMILIES, EngineName, Family, TraceView, family_of
from memforensics.errors import CaseError


@dataclass(frozen=True, slots=True)
class Selection:
    """Which sites to show, and in what order."""

    sort: SortKey = "outstanding"
    filters: tuple[SiteFilter, ...] = ()  # a site must pass all
    min_age_s: float = 0.0


ALL = Selection()


def view_of(
    case: Case, engine: EngineName, seconds: float, selection: Selection = ALL, family: Family = "mappings"
) -> TraceView:
    """The sites of that family in a case, grouped."""
    now_ns = max([t.ended_ns for t in case.traces] or [s.t_ns for s in case.samples] or [0])
    sites = sorted(
        (site for site in case.sites if family_of(site) == family),
        key=lambda s: (s.file_backed, -s.outstanding_bytes, -s.allocated_bytes, s.pid, s.site_id),
    )
    passing = [site for site in sites if all(f.matches(site) for f in selection.filters)]
    groups = group_sites(passing, case.hooks, now_ns)
    young = [group for group in groups if (group.age_s or 0.0) < selection.min_age_s]
    shown = [group for group in groups if (group.age_s or 0.0) >= selection.min_age_s]
    shown.sort(key=lambda group: -sort_value(group, selection.sort))
    chosen = {_key(site) for site in passing}
    others = group_sites([site for site in sites if _key(site) not in chosen], case.hooks, now_ns)
    if selection.min_age_s > 0:
        chosen = {_key(site) for group in shown for site in group.sites}
    kept = tuple(site for site in passing if _key(site) in chosen)
    return TraceView(
        case=case,
        family=family,
        engine=engine,
        seconds=seconds,
        sites=kept,
        rates=tuple(map(site_rate, kept)),
        groups=tuple(group for group in shown if group.layer != "file"),
        file_groups=tuple(group for group in shown if group.layer == "file"),
        left_out=(*young, *others),
    )


def view_of_case(case: Case, family: Family | None = None, selection: Selection = ALL) -> TraceView:
    """The sites of a case, of diagnose or of a tracing command. Mappings, malloc'ed blocks and faults count the same
    memory in different ways and are not mixed. CaseError when the case has no such sites."""
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
    return view_of(case, engine, seconds, selection, chosen)


def _key(site: AllocationSite) -> tuple[int, int]:
    return site.pid, site.site_id
