"""heap: which code allocated the memory that is still held. For now with memray, attached on request."""

from collections.abc import Callable
from pathlib import Path

from memforensics.case.model import ProbeStatus
from memforensics.case.views import HeapView
from memforensics.errors import MemforensicsError, ToolMissing
from memforensics.jobs.observe.recorder import Recorder, new_meta, probe_failed
from memforensics.probes.heap.memray_attach import NAME, profile, require
from memforensics.target import open_process
from memforensics.target.describe import describe


def heap(pid: int) -> None:
    """Always raises ToolMissing: reading the heap from outside does not exist yet."""
    open_process(pid, need_memory=False).close()
    raise ToolMissing(
        "heap needs --memray",
        why="this version cannot read the heap from outside",
        enable=f"memforensics heap {pid} --memray   (runs code in the process), or: memforensics diagnose {pid}",
    )


def check_memray(pid: int) -> None:
    """Raises the error that `heap_memray` would raise, before the user is asked for consent."""
    process = open_process(pid)
    try:
        require(process)
    finally:
        process.close()


def heap_memray(
    pid: int, seconds: float, *, record: Path | None = None, on_tracking: Callable[[], None] = lambda: None
) -> HeapView:
    """Attaches memray for `seconds`; keeps its profile in the case `record`. The caller must have the user's consent.

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
        return HeapView(target, profiled.profile, profiled.sites, profiled.pause, profiled.losses)
    finally:
        process.close()
