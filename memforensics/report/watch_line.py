"""A tick of `watch` as one line of text, for pipes and logs."""

from memforensics.case.views import WatchTick
from memforensics.report.sentences import iso_time, limit_sentence
from memforensics.text import visible
from memforensics.units import duration_text, rate_text, size_text


def watch_line(tick: WatchTick) -> str:
    """The time (UTC), RSS, growth and verdict; the last line says why the watch ended."""
    diagnosis = tick.diagnosis
    time = _to_the_second(iso_time(tick.case.meta.anchor.wall_at(tick.t_ns)))
    if tick.ended:
        return f"{time}  {visible(tick.ended)}: {diagnosis.verdict}, {visible(diagnosis.headline)}".rstrip()
    parts = [time, f"{duration_text(max(tick.elapsed_s, 0.0)):>8}", f"RSS {size_text(tick.rss):>9}"]
    rate = diagnosis.growth.rate if diagnosis.growth else None
    if rate is not None:
        parts.append(f"{rate_text(rate.estimate)} ({rate_text(rate.low)} to {rate_text(rate.high)})")
    parts.append(diagnosis.verdict)
    limit = limit_sentence(diagnosis.growth)
    if limit and diagnosis.verdict in ("growing", "leak"):
        parts.append(limit)
    if tick.search:
        parts.append(tick.search)
    return "  ".join(parts).rstrip()


def _to_the_second(moment: str | None) -> str:
    """2026-11-21T17:20:03.123Z -> 2026-11-21T17:20:03Z."""
    return f"{moment.partition('.')[0]}Z" if moment else ""
