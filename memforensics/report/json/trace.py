"""The JSON of trace-mmap and trace-faults."""

from typing import Annotated

from memforensics.case.views import SiteGroup, TraceView
from memforensics.report.json import shapes
from memforensics.report.json.shapes import Pid, doc, shaped
from memforensics.report.labels import LABELS, group_name


class TraceGroup(shapes.Shape):
    """Sites of one process that have the frame that matters in common."""

    pid: Pid
    name: Annotated[str, doc("The frame that matters, and the application's function.")]
    inside: Annotated[str | None, doc("The hooked function in whose replacement the calls were made.")]
    outstanding_bytes: Annotated[int, doc("Bytes allocated by these sites and not freed.")]
    bytes_per_minute: Annotated[float | None, doc("Growth of the outstanding bytes.")]
    count: Annotated[int, doc("Outstanding blocks.")]
    age_s: Annotated[float | None, doc("Median age of the outstanding blocks, seconds.")]
    resident_bytes: Annotated[int | None, doc("Resident bytes of the outstanding ranges; null: not read.")]
    sites: Annotated[tuple[int, ...], doc("The site_id of each site.")]


class LeftOut(shapes.Shape):
    """What --filter and --min-age excluded."""

    groups: Annotated[int, doc("Groups.")]
    outstanding_bytes: Annotated[int, doc("Bytes that they hold.")]


class TracedProcess(shapes.Shape):
    """What the trace saw of one process."""

    pid: Pid
    engine: Annotated[str, doc("bcc or bpftrace.")]
    seconds: Annotated[float, doc("Length of the trace.")]
    events: Annotated[int, doc("Events seen.")]
    outstanding_bytes: Annotated[int, doc("Bytes allocated and not freed.")]
    resident_bytes: Annotated[int | None, doc("Resident bytes of them; null: not read.")]
    rss_growth_bytes: Annotated[int | None, doc("Growth of RSS in that time; null: not read.")]
    coverage: Annotated[float | None, doc("resident_bytes over rss_growth_bytes, uncapped.")]
    dropped_events: Annotated[
        int, doc("Events of the whole trace, all its processes together, that were dropped.", minimum=0)
    ]
    unknown_bytes: Annotated[
        int | None, doc("Mapped by unknown code, because events were dropped; null: not compared.", minimum=0)
    ]


class Trace(shapes.Shape):
    """What trace-mmap and trace-faults print."""

    meaning: Annotated[str, doc("What the sites are evidence of.")]
    sites: Annotated[tuple[shapes.TracedSite, ...], doc("Most outstanding first, page cache last.")]
    groups: Annotated[tuple[TraceGroup, ...], doc("In the order of --sort, page cache last.")]
    left_out: LeftOut
    coverage: Annotated[float | None, doc("Of all processes together; traces has that of each.")]
    losses: shapes.Losses
    overhead: shapes.OverheadByProbe
    traces: Annotated[tuple[TracedProcess, ...], doc("One for each process.")]


def trace(view: TraceView) -> Trace:
    return Trace(
        meaning=LABELS[view.family].meaning,
        sites=tuple(map(shapes.traced_site, view.sites, view.rates)),
        groups=tuple(map(_group, (*view.groups, *view.file_groups))),
        left_out=LeftOut(
            groups=len(view.left_out), outstanding_bytes=sum(group.outstanding_bytes for group in view.left_out)
        ),
        coverage=view.coverage,
        losses=shapes.losses(view.case.losses),
        overhead=shapes.overhead(view.case.costs, view.seconds),
        traces=tuple(
            shaped(TracedProcess, summary, seconds=(summary.ended_ns - summary.began_ns) / 1e9)
            for summary in view.case.traces
        ),
    )


def _group(group: SiteGroup) -> TraceGroup:
    return shaped(
        TraceGroup,
        group,
        name=group_name(group),
        count=group.outstanding_count,
        sites=tuple(site.site_id for site in group.sites),
    )
