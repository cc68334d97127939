"""What this host allows, and whether one process can be observed."""

from dataclasses import dataclass

from memforensics.probes.host.machine import Check, check_host
from memforensics.probes.host.process import check_target
from memforensics.target import open_process


@dataclass(frozen=True, slots=True)
class Examination:
    checks: tuple[Check, ...]

    @property
    def exit_code(self) -> int:
        """0 when everything that the main job needs is there, else 3."""
        return 0 if all(check.ok for check in self.checks if check.essential) else 3

    def as_json(self) -> dict[str, object]:
        return {
            "checks": [
                {"name": c.name, "ok": c.ok, "why": c.why, "enable": c.enable, "essential": c.essential}
                for c in self.checks
            ]
        }


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
