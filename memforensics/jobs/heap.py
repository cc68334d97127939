"""heap: who allocated what is still held. For now by memray, attached by name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memforensics.case.model import AllocationSite, ProbeStatus, Target
from memforensics.errors import MemforensicsError, ToolMissing
from memforensics.jobs.observe.recorder import Recorder, new_meta, probe_failed
from memforensics.probes.heap.memray_attach import NAME, Profiled, profile, require
from memforensics.report.json.shapes import losses_json, site_json
from memforensics.target import open_process
from memforensics.target.describe import describe
from memforensics.units import duration_text, rate_text, size_text

SHOWN = 10


@dataclass(frozen=True, slots=True)
class HeapView:
    """What `memforensics heap --memray` shows."""

    target: Target
    profiled: Profiled

    def json(self) -> dict[str, Any]:
        """{pid, tool, seconds, allocated_bytes, ..., sites, pause_ms, losses}."""
        kept = self.profiled.profile
        return {
            "pid": kept.pid,
            "tool": kept.tool,
            "seconds": kept.seconds,
            "allocated_bytes": kept.allocated_bytes,
            "allocated_count": kept.allocated_count,
            "outstanding_bytes": kept.outstanding_bytes,
            "peak_bytes": kept.peak_bytes,
            "sites": [site_json(site, bytes_per_minute=self._rate(site.outstanding_bytes)) for site in self.sites],
            "pause_ms": {"total": self.profiled.pause.ms, "longest": None},
            "losses": losses_json(self.profiled.losses),
        }

    @property
    def sites(self) -> tuple[AllocationSite, ...]:
        return self.profiled.sites

    def text(self) -> str:
        """For a terminal."""
        kept, stood_ms = self.profiled.profile, self.profiled.pause.ms
        lines = [
            f"{kept.tool} on process {kept.pid} ({self.target.comm}) for {duration_text(kept.seconds)}: "
            f"{size_text(kept.allocated_bytes)} allocated in {kept.allocated_count} allocations, "
            f"{size_text(kept.outstanding_bytes)} of it still held. The process stood still {stood_ms:.0f} ms.",
            "Held is not leaked: what fills a cache or a batch in progress is held too. Longer tells more.",
            "",
        ]
        for site in self.sites[:SHOWN]:
            rate = self._rate(site.outstanding_bytes)
            per_minute = f", {rate_text(rate)}" if rate is not None else ""
            lines.append(f"{size_text(site.outstanding_bytes)} in {site.outstanding_count} allocations{per_minute}")
            lines += [f"    {frame.function}  {frame.file}:{frame.line}" for frame in site.stack.frames]
        if len(self.sites) > SHOWN:
            lines.append(f"... and {len(self.sites) - SHOWN} more sites (--json, --record)")
        return "\n".join(lines)

    def _rate(self, outstanding_bytes: int) -> float | None:
        """Bytes a minute, over the time tracked."""
        seconds = self.profiled.profile.seconds
        return outstanding_bytes * 60 / seconds if seconds > 0 else None


def heap(pid: int) -> None:
    """Reading the heap without running code in the process: not there yet, and says so."""
    open_process(pid, need_memory=False).close()
    raise ToolMissing(
        "heap needs --memray for now",
        why="reading the heap from outside, without code in the process, is not part of this version",
        enable=f"memforensics heap {pid} --memray   (it runs code in the process; or: memforensics diagnose {pid})",
    )


def check_memray(pid: int) -> None:
    """Raises what stands in the way of `heap_memray`, before anybody is asked for consent."""
    process = open_process(pid)
    try:
        require(process)
    finally:
        process.close()


def heap_memray(
    pid: int, seconds: float, *, record: Path | None = None, on_tracking: Callable[[], None] = lambda: None
) -> HeapView:
    """memray attached for `seconds`; what it saw, kept in the case `record`. The caller has the user's consent.

    ToolMissing, NotATarget, ProbeFailed, PermissionNeeded, TargetGone; the case then says why.
    """
    process = open_process(pid)
    try:
        require(process)
        with Recorder(new_meta("heap", pid), record) as recorder:
            target = describe(process)
            recorder.put([target, process.sample()])
            try:
                profiled = profile(process, seconds, on_tracking=on_tracking)
            except MemforensicsError as error:
                recorder.put([probe_failed(NAME, error, pid=pid)])
                raise
            recorder.put([profiled.profile, *profiled.sites, profiled.pause, *profiled.losses])
            recorder.put([process.sample(), ProbeStatus(name=NAME, pid=pid, status="ok")])
        return HeapView(target, profiled)
    finally:
        process.close()
