"""The JSON of trace-mmap: {sites, coverage, losses, overhead, traces}."""

from collections.abc import Iterable, Sequence

from memforensics.case.model import AllocationSite, Cost, Loss, TraceSummary
from memforensics.report.sites import Json, losses_json, overhead_json, site_json


def trace_json(
    sites: Iterable[tuple[AllocationSite, float | None]],
    coverage: float | None,
    losses: Sequence[Loss],
    costs: Sequence[Cost],
    seconds: float,
    summaries: Iterable[TraceSummary],
) -> Json:
    """`sites`: each with its bytes a minute, in the order to show. `coverage` is of the whole tree; `traces` has that
    of each process."""
    return {
        "sites": [site_json(site, bytes_per_minute=rate) for site, rate in sites],
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
            }
            for summary in summaries
        ],
    }
