"""The JSON of `watch`: one object a line, one line a tick."""

from typing import Annotated

from memforensics.case.views import WatchTick
from memforensics.report.json import report as whole
from memforensics.report.json import shapes
from memforensics.report.json.shapes import Layer, Pid, Rate, Verdict, doc, shaped
from memforensics.report.sentences import iso_time


class WatchFinding(shapes.Shape):
    """One thing that grows."""

    cause: Annotated[str | None, doc("Id of the catalogue's entry; null: no known cause matches.")]
    title: Annotated[str, doc("One line.")]
    layer: Layer
    verdict: Verdict
    pid: Pid


class WatchMember(shapes.Shape):
    """One process of the tree."""

    pid: Pid
    ppid: Annotated[int | None, doc("Its parent.")]
    comm: Annotated[str, doc("Its name in the kernel.")]
    rss_bytes: Annotated[int | None, doc("RSS now; null: it exited.")]
    change_bytes: Annotated[int | None, doc("Growth of this process since the start.")]
    bytes_per_minute: Rate
    stopped: Annotated[bool | None, doc("Stopped by a signal or a tracer; null: it exited.")]
    left: Annotated[str | None, doc("How it exited.")]


class WatchAges(shapes.Shape):
    """How old each part of the tick is, in seconds; null: not known yet."""

    verdict: Annotated[float | None, doc("Growth, verdict and findings.")]
    layers: Annotated[float | None, doc("The snapshot that the layers come from.")]
    oldest_mapping: Annotated[float | None, doc("The oldest figure of a mapping in it.")]


class Watch(shapes.Shape):
    """What watch prints at each tick."""

    time: Annotated[str | None, doc("ISO 8601, UTC.")]
    seconds: Annotated[float, doc("Time since the watch began.")]
    pid: Annotated[int | None, doc("The process that was named.")]
    rss_bytes: Annotated[int, doc("RSS of the tree now.")]
    growth: whole.Growth
    layers: Annotated[tuple[shapes.LayerRow, ...], doc("The waterfall, as old as age_s.layers says.")]
    beside: shapes.KernelTotals
    record_ended: Annotated[str | None, doc("Why the case file is not written any more.")]
    verdict: Verdict
    exit_code: Annotated[int, doc("The exit code of the verdict.")]
    headline: Annotated[str, doc("The answer in one sentence.")]
    findings: Annotated[tuple[WatchFinding, ...], doc("What grows, the most important first.")]
    members: Annotated[tuple[WatchMember, ...], doc("The processes of the tree.")]
    age_s: WatchAges
    search: Annotated[str | None, doc("Progress of the search for the cause; null: there is none.")]
    losses: shapes.Losses
    ended: Annotated[str | None, doc("Why this is the last tick of the process.")]


def watch(tick: WatchTick) -> Watch:
    case, diagnosis, ages = tick.case, tick.diagnosis, tick.ages
    return shaped(
        Watch,
        tick,
        time=iso_time(case.meta.anchor.wall_at(tick.t_ns)),
        seconds=round(tick.elapsed_s, 3),
        pid=case.meta.root_pid,
        rss_bytes=tick.rss,
        growth=whole.growth(diagnosis.growth),
        layers=shapes.layer_rows(diagnosis.layers),
        beside=diagnosis.kernel_totals,
        verdict=diagnosis.verdict,
        exit_code=diagnosis.exit_code,
        headline=diagnosis.headline,
        findings=diagnosis.findings,
        members=_members(tick),
        age_s=WatchAges(
            verdict=_rounded(tick.age_s(ages.verdict_ns)),
            layers=_rounded(tick.age_s(ages.layers_ns)),
            oldest_mapping=_rounded(tick.age_s(ages.oldest_ns)),
        ),
        losses=shapes.losses(case.losses),
        ended=tick.ended or None,
    )


def _members(tick: WatchTick) -> tuple[WatchMember, ...]:
    growth = {member.pid: member for member in tick.diagnosis.members}
    out = []
    for target in tick.case.targets:
        grown, sample = growth.get(target.pid), tick.now.get(target.pid)
        member = WatchMember(
            pid=target.pid,
            ppid=target.ppid,
            comm=target.comm,
            rss_bytes=sample.rss if sample else None,
            change_bytes=grown.change_bytes if grown else None,
            bytes_per_minute=shapes.rate(grown.rate if grown else None),
            stopped=sample.is_stopped if sample else None,
            left=target.left_how or None,
        )
        out.append(member)
    return tuple(out)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
