"""The JSON of trace-mmap and trace-faults: {sites, groups, left_out, coverage, losses, overhead, traces}."""

from collections.abc import Iterable, Sequence

from memforensics.case.model import AllocationSite, Cost, Loss, TraceSummary
from memforensics.report.json.shapes import Json, losses_json, overhead_json, site_json
from memforensics.report.labels import WORDS, Group, Words, matter_text
from memforensics.text import utf8


def trace_json(
    sites: Iterable[tuple[AllocationSite, float | None]],
    coverage: float | None,
    losses: Sequence[Loss],
    costs: Sequence[Cost],
    seconds: float,
    summaries: Iterable[TraceSummary],
    *,
    words: Words = WORDS["mappings"],
    groups: Iterable[Group] = (),
    left_out: Sequence[Group] = (),
) -> Json:
    """`meaning`: what the sites are evidence of. `sites`: each with its bytes a minute, most outstanding first, files'
    after all others. `groups`: those that have the frame that matters in common, in the order asked for, with the
    `site_id` of each. `left_out`: what --filter and --min-age took away. `coverage` is of all processes together,
    `traces` has that of each."""
    return {
        "meaning": words.meaning,
        "sites": [site_json(site, bytes_per_minute=rate) for site, rate in sites],
        "groups": [group_json(group) for group in groups],
        "left_out": {
            "groups": len(left_out),
            "outstanding_bytes": sum(group.outstanding_bytes for group in left_out),
        },
        "coverage": coverage,
        "losses": losses_json(losses),
        "overhead": overhead_json(costs, seconds),
        "traces": [
            {
                "pid": summary.pid,
                "engine": summary.engine,
                "seconds": (summary.ended_ns - summary.began_ns) / 1e9,
                "events": summary.events,
                "outstanding_bytes": summary.outstanding_bytes,
                "resident_bytes": summary.resident_bytes,
                "rss_growth_bytes": summary.rss_growth_bytes,
                "coverage": summary.coverage,
                "dropped_events": summary.dropped_events,
                "unknown_bytes": summary.unknown_bytes,
            }
            for summary in summaries
        ],
    }


def group_json(group: Group) -> Json:
    """{pid, name, inside, outstanding_bytes, bytes_per_minute, count, age_s, resident_bytes, sites: [site_id]}."""
    return {
        "pid": group.pid,
        "name": utf8(matter_text(group)),
        "inside": group.inside,
        "outstanding_bytes": group.outstanding_bytes,
        "bytes_per_minute": group.bytes_per_minute,
        "count": group.outstanding_count,
        "age_s": group.age_s,
        "resident_bytes": group.resident_bytes,
        "sites": [site.site_id for site in group.sites],
    }
