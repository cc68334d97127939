"""watch for pipes: one JSON object or one line of text a tick. Pure."""

from memforensics.case.model import Case, Diagnosis, Sample
from memforensics.report.json_report import growth_json, iso_time
from memforensics.report.observed import limit_sentence
from memforensics.report.sites import Json, beside_json, layer_json, losses_json, rate_json
from memforensics.report.text import utf8, visible
from memforensics.units import duration_text, rate_text, size_text


def watch_object(case: Case, diagnosis: Diagnosis, *, elapsed_s: float, ended: str | None) -> Json:
    """One tick: what is resident, `layers`, `growth`, `verdict`, and each member's part of it."""
    last = living(case)
    at_ns = max((s.t_ns for s in last.values()), default=case.meta.anchor.monotonic_ns)
    growth = {m.pid: m for m in diagnosis.members}
    return {
        "time": iso_time(case.meta.anchor.wall_at(at_ns)),
        "seconds": round(elapsed_s, 3),
        "pid": case.meta.root_pid,
        "rss_bytes": sum(s.rss for s in last.values()),
        "growth": growth_json(diagnosis.growth),
        "layers": [layer_json(row) for row in diagnosis.layers],
        "beside": beside_json(diagnosis.beside),
        "verdict": diagnosis.verdict,
        "exit_code": diagnosis.exit_code,
        "headline": utf8(diagnosis.headline),
        "members": [
            {
                "pid": target.pid,
                "ppid": target.ppid,
                "comm": utf8(target.comm),
                "rss_bytes": last[target.pid].rss if target.pid in last else None,
                "change_bytes": growth[target.pid].change_bytes if target.pid in growth else None,
                "bytes_per_minute": rate_json(growth[target.pid].rate if target.pid in growth else None),
                "left": utf8(target.left_how) if target.left_how else None,
            }
            for target in case.targets
        ],
        "losses": losses_json(case.losses),
        "ended": utf8(ended) if ended else None,
    }


def watch_text(case: Case, diagnosis: Diagnosis, *, elapsed_s: float, ended: str | None) -> str:
    """One tick in one quiet line; the last one says why it ended."""
    rss = sum(s.rss for s in living(case).values())
    words = [f"{duration_text(max(elapsed_s, 0.0)):>8}", f"RSS {size_text(rss):>9}"]
    rate = diagnosis.growth.rate if diagnosis.growth else None
    if rate is not None:
        words.append(f"{rate_text(rate.estimate)} ({rate_text(rate.low)} to {rate_text(rate.high)})")
    words.append(diagnosis.verdict)
    limit = limit_sentence(diagnosis.growth)
    if limit and diagnosis.verdict in ("growing", "leak"):
        words.append(limit)
    line = "  ".join(words)
    return f"{line}\n{visible(ended)}: {visible(diagnosis.headline)}" if ended else line


def living(case: Case) -> dict[int, Sample]:
    """The last sample of each member that has not left."""
    gone = {target.pid for target in case.targets if target.exited_ns is not None}
    return {sample.pid: sample for sample in case.samples if sample.pid not in gone}
