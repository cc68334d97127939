"""doctor: what this host allows, and whether a process can be observed."""

from memforensics.case.views import Check, Examination
from memforensics.probes.host.machine import check_host
from memforensics.probes.host.process import check_target
from memforensics.target import open_process


def examine(pid: int | None = None) -> Examination:
    """All checks of the host and, with a PID, of that process. NoSuchProcess, NotATarget."""
    target: tuple[Check, ...] = ()
    if pid is not None:
        process = open_process(pid, need_memory=False)
        try:
            target = tuple(check_target(process))
        finally:
            process.close()
    return Examination(target + tuple(check_host()))
