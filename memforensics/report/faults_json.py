"""The JSON of trace-faults: {meaning, sites, coverage, losses, overhead, traces}."""

from collections.abc import Iterable, Sequence

from memforensics.case.model import AllocationSite, Cost, Loss, TraceSummary
from memforensics.report.sites import Json, losses_json, overhead_json, site_json


def faults_json(
    meaning: str,
    sites: Iterable[tuple[AllocationSite, float | None]],
    coverage: float | None,
    losses: Sequence[Loss],
    costs: Sequence[Cost],
    seconds: float,
    summaries: Iterable[TraceSummary],
) -> Json:
    """`meaning`: what the sites are evidence of. Each with its bytes a minute; outstanding is what is still resident,
    allocated what was touched. `coverage` is of all processes together, files' pages left out."""
    return {
        "meaning": meaning,
        "sites": [site_json(site, bytes_per_minute=rate) for site, rate in sites],
        "coverage": coverage,
        "losses": losses_json(losses),
        "overhead": overhead_json(costs, seconds),
        "traces": [
            {
                "pid": summary.pid,
                "engine": summary.engine,
                "seconds": (summary.ended_ns - summary.began_ns) / 1e9,
                "faults": summary.events,
                "resident_bytes": summary.resident_bytes,
                "rss_growth_bytes": summary.rss_growth_bytes,
                "coverage": summary.coverage,
            }
            for summary in summaries
        ],
    }
