"""hooks: which libraries intercept mmap, munmap, brk, malloc and similar functions in a process."""

import contextlib
from pathlib import Path

from memforensics.analysis.hook_meanings import hook_meanings
from memforensics.case.model import ProbeStatus
from memforensics.case.views import HooksView
from memforensics.errors import MemforensicsError, TargetError
from memforensics.jobs.observe.recorder import Record, Recorder, new_meta, probe_failed
from memforensics.probes.hooks import audit_hooks
from memforensics.symbols.address_space import AddressSpace
from memforensics.target import open_process
from memforensics.target.describe import describe


def hooks(pid: int, *, record: Path | None = None) -> HooksView:
    """Audits a live process; only reads it. NoSuchProcess, NotATarget, TargetGone, PermissionNeeded, CaseError."""
    with contextlib.closing(open_process(pid)) as process:
        target = describe(process)
        found, audit, modules, losses = audit_hooks(process, AddressSpace(process))
    if record is not None:
        with Recorder(new_meta("hooks", pid), record) as recorder:
            recorder.put([target, *found, audit, *modules, *losses, ProbeStatus(name="hooks", pid=pid, status="ok")])
    return HooksView(target, tuple(found), audit, tuple(modules), tuple(losses), hook_meanings(found, [audit]))


def audit_records(pid: int) -> list[Record]:
    """The audit of one process as records; none if it has left."""
    try:
        with contextlib.closing(open_process(pid)) as process:
            found, audit, modules, losses = audit_hooks(process, AddressSpace(process))
    except TargetError:
        return []
    except MemforensicsError as error:
        return [probe_failed("hooks", error, pid=pid)]
    return [*found, audit, *modules, *losses, ProbeStatus(name="hooks", pid=pid, status="ok")]
