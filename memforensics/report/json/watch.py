"""What a watch knows at one tick, and how pipes are told of it: one JSON object or one line of text a tick. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from memforensics.case.model import Case, Diagnosis, Sample
from memforensics.report.json.report import growth_json, iso_time
from memforensics.report.json.shapes import Json, kernel_totals_json, layer_json, losses_json, rate_json
from memforensics.report.sentences import limit_sentence
from memforensics.text import utf8, visible
from memforensics.units import NS_PER_S, duration_text, rate_text, size_text


@dataclass(frozen=True, slots=True)
class Ages:
    """When what is shown was read or concluded (monotonic ns); None: it was not yet."""

    verdict_ns: int
    layers_ns: int | None = None  # the snapshot that the layers are of; of several processes the oldest
    oldest_ns: int | None = None  # the oldest figure of a mapping in it


@dataclass(frozen=True, slots=True)
class WatchTick:
    """What is known at one tick. Sizes are of now; `case` and `diagnosis` are those of the last conclusion, but for who
    the processes are."""

    t_ns: int  # monotonic
    elapsed_s: float
    case: Case
    diagnosis: Diagnosis
    now: Mapping[int, Sample]  # the newest of each living member
    ages: Ages
    line: tuple[int, ...] = ()  # bytes of the growth metric over time, the whole tree
    events: tuple[tuple[int, str], ...] = ()  # (PID, what happened to it), the newest
    search: str | None = None  # how the search for the cause stands
    ended: str | None = None  # why this is the last tick of the process
    judged: bool = True  # concluded at this very tick
    record_ended: str | None = None  # why the case file is not written any more
    is_news: bool = True  # more than sizes and ages differs from the tick before

    @property
    def rss(self) -> int:
        return sum(sample.rss for sample in self.now.values())

    def age_s(self, then_ns: int | None) -> float | None:
        return None if then_ns is None else max(self.t_ns - then_ns, 0) / NS_PER_S


def watch_object(tick: WatchTick) -> Json:
    """One tick: what is resident, `layers`, `growth`, `verdict`, each member's part of it, and how old that is."""
    case, diagnosis, ages = tick.case, tick.diagnosis, tick.ages
    growth = {m.pid: m for m in diagnosis.members}
    return {
        "time": iso_time(case.meta.anchor.wall_at(tick.t_ns)),
        "seconds": round(tick.elapsed_s, 3),
        "pid": case.meta.root_pid,
        "rss_bytes": tick.rss,
        "growth": growth_json(diagnosis.growth),
        "layers": [layer_json(row) for row in diagnosis.layers],
        "beside": kernel_totals_json(diagnosis.kernel_totals),
        "record_ended": tick.record_ended and utf8(tick.record_ended),
        "verdict": diagnosis.verdict,
        "exit_code": diagnosis.exit_code,
        "headline": utf8(diagnosis.headline),
        "findings": [
            {"cause": f.cause, "title": utf8(f.title), "layer": f.layer, "verdict": f.verdict, "pid": f.pid}
            for f in diagnosis.findings
        ],
        "members": [
            {
                "pid": target.pid,
                "ppid": target.ppid,
                "comm": utf8(target.comm),
                "rss_bytes": tick.now[target.pid].rss if target.pid in tick.now else None,
                "change_bytes": growth[target.pid].change_bytes if target.pid in growth else None,
                "bytes_per_minute": rate_json(growth[target.pid].rate if target.pid in growth else None),
                "stopped": tick.now[target.pid].is_stopped if target.pid in tick.now else None,
                "left": utf8(target.left_how) if target.left_how else None,
            }
            for target in case.targets
        ],
        "age_s": {
            "verdict": _rounded(tick.age_s(ages.verdict_ns)),
            "layers": _rounded(tick.age_s(ages.layers_ns)),
            "oldest_mapping": _rounded(tick.age_s(ages.oldest_ns)),
        },
        "search": tick.search,
        "losses": losses_json(case.losses),
        "ended": utf8(tick.ended) if tick.ended else None,
    }


def watch_text(tick: WatchTick) -> str:
    """One tick in one quiet line, with the time (UTC); the last one says why it ended, and the verdict."""
    diagnosis = tick.diagnosis
    time = _to_the_second(iso_time(tick.case.meta.anchor.wall_at(tick.t_ns)))
    if tick.ended:
        return f"{time}  {visible(tick.ended)}: {diagnosis.verdict}, {visible(diagnosis.headline)}".rstrip()
    words = [time, f"{duration_text(max(tick.elapsed_s, 0.0)):>8}", f"RSS {size_text(tick.rss):>9}"]
    rate = diagnosis.growth.rate if diagnosis.growth else None
    if rate is not None:
        words.append(f"{rate_text(rate.estimate)} ({rate_text(rate.low)} to {rate_text(rate.high)})")
    words.append(diagnosis.verdict)
    limit = limit_sentence(diagnosis.growth)
    if limit and diagnosis.verdict in ("growing", "leak"):
        words.append(limit)
    if tick.search:
        words.append(tick.search)
    return "  ".join(words).rstrip()


def _to_the_second(moment: str | None) -> str:
    """2026-11-21T17:20:03.123Z -> 2026-11-21T17:20:03Z."""
    return f"{moment.partition('.')[0]}Z" if moment else ""


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
