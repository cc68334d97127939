"""The processes of a container, by its ID or name.

An ID is looked for where the kernel has it: runtimes put it in the path of the cgroup (`docker-ID.scope`,
`cri-containerd-ID.scope`, `/docker/ID`, `/kubepods/.../ID`), so no runtime needs to be asked. A name is known to the
runtime only: docker, podman, nerdctl or crictl is asked for the ID, where there is one.
"""

import re
import shutil
import subprocess
from collections.abc import Sequence

from memforensics.errors import MemforensicsError, UsageError
from memforensics.target.parse import parse_stat
from memforensics.target.procfs import ProcFS

_ID = re.compile(r"[0-9a-f]{64}")
_GIVEN = re.compile(r"[0-9a-f]{8,64}")  # shorter than docker's 12 is too little to go by
_ASK: tuple[tuple[str, ...], ...] = (
    ("docker", "inspect", "--format", "{{.Id}}"),
    ("podman", "inspect", "--format", "{{.Id}}"),
    ("nerdctl", "inspect", "--format", "{{.Id}}"),
    ("crictl", "ps", "--quiet", "--name"),
)
ASK_SECONDS = 5.0


def container_roots(name_or_id: str, *, proc: ProcFS | None = None) -> list[int]:
    """The outermost processes of the container: those whose parent is not in it. UsageError when there is none."""
    proc = proc or ProcFS()
    wanted = name_or_id if _GIVEN.fullmatch(name_or_id) else None
    roots = _roots(wanted, proc) if wanted else []
    if not roots:
        told = _ask(name_or_id)
        roots = _roots(told, proc) if told else []
    if not roots:
        raise UsageError(
            f"no running container {name_or_id!r}",
            why="no process has such an ID in the path of its cgroup, and no container runtime here knows the name",
            enable="--container with the ID (docker ps --no-trunc, crictl ps), or a PID",
        )
    return roots


def container_id(cgroup_text: str) -> str | None:
    """The innermost container's ID in the text of /proc/PID/cgroup; None outside of one."""
    found = [match for line in cgroup_text.splitlines() for match in _ID.findall(line.rpartition(":")[2])]
    return found[-1] if found else None


def _roots(wanted: str, proc: ProcFS) -> list[int]:
    parents: dict[int, int] = {}
    for pid in proc.pids():
        try:
            found = container_id(proc.read_text(pid, "cgroup"))
            if found is not None and found.startswith(wanted):
                about = parse_stat(proc.read_text(pid, "stat"))
                if about.state not in "ZX":
                    parents[pid] = about.ppid
        except (MemforensicsError, OSError):
            continue  # it left, or is hidden from us
    return [pid for pid, parent in parents.items() if parent not in parents]


def _ask(name: str, asked: Sequence[tuple[str, ...]] = _ASK) -> str | None:
    """The ID by a runtime's word. What looks like an option is no name."""
    if name.startswith("-"):
        return None
    for words in asked:
        if shutil.which(words[0]) is None:
            continue
        try:
            done = subprocess.run(
                [*words, name],
                capture_output=True,
                text=True,
                timeout=ASK_SECONDS,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        match = _ID.search(done.stdout)
        if done.returncode == 0 and match:
            return match[0]
    return None
