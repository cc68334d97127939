"""The processes of a container, by its ID or name.

Container runtimes put the ID in the path of the cgroup (`docker-ID.scope`, `cri-containerd-ID.scope`, `/docker/ID`,
`/kubepods/.../ID`), so an ID needs no runtime. Only the runtime knows a name: docker, podman, nerdctl or crictl, if
installed, gives the ID.
"""

import contextlib
import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Sequence

from memforensics.errors import MemforensicsError, UsageError
from memforensics.target.parse import parse_stat
from memforensics.target.procfs import ProcFS

_ID = re.compile(r"[0-9a-f]{64}")
_GIVEN = re.compile(r"[0-9a-f]{8,64}")  # docker prints 12; fewer than 8 would match by chance
_ASK: tuple[tuple[str, ...], ...] = (
    ("docker", "inspect", "--format", "{{.Id}}"),
    ("podman", "inspect", "--format", "{{.Id}}"),
    ("nerdctl", "inspect", "--format", "{{.Id}}"),
    ("crictl", "ps", "--quiet", "--name"),
)
ASK_SECONDS = 5.0
MAX_ANSWER = 64 * 1024  # bytes


def container_roots(name_or_id: str, *, proc: ProcFS | None = None) -> list[int]:
    """The outermost processes of the container: those whose parent is not in it. UsageError if there is none."""
    proc = proc or ProcFS()
    roots = _roots(name_or_id, proc) if _GIVEN.fullmatch(name_or_id) else []
    if not roots:
        found = _ask_runtimes(name_or_id)
        roots = _roots(found, proc) if found else []
    if not roots:
        raise UsageError(
            f"no running container {name_or_id!r}",
            why="no process has this ID in the path of its cgroup, and no container runtime here knows this name",
            enable="--container with the ID (see: docker ps --no-trunc, or crictl ps), or a PID",
        )
    return roots


def only_root(container: str) -> int:
    """The outermost process of a container. UsageError if it has none, or more than one."""
    roots = container_roots(container)
    if len(roots) > 1:
        listed = ", ".join(map(str, roots))
        raise UsageError(
            f"container {container!r} has {len(roots)} outermost processes: {listed}", enable="name one PID"
        )
    return roots[0]


def container_id(cgroup_text: str) -> str | None:
    """The ID of the innermost container in the text of /proc/PID/cgroup; None outside a container."""
    found = [match for line in cgroup_text.splitlines() for match in _ID.findall(line.rpartition(":")[2])]
    return found[-1] if found else None


def _roots(id_start: str, proc: ProcFS) -> list[int]:
    parents: dict[int, int] = {}
    for pid in proc.pids():
        try:
            found = container_id(proc.read_text(pid, "cgroup"))
            if found is not None and found.startswith(id_start):
                about = parse_stat(proc.read_text(pid, "stat"))
                if about.state not in "ZX":
                    parents[pid] = about.ppid
        except (MemforensicsError, OSError):
            continue  # it has left, or is hidden from us
    return [pid for pid, parent in parents.items() if parent not in parents]


def _ask_runtimes(name: str, queries: Sequence[tuple[str, ...]] = _ASK) -> str | None:
    """The ID that a container runtime has for this name. A word that starts with - is not a name."""
    if name.startswith("-"):
        return None
    for words in queries:
        if shutil.which(words[0]) is None:
            continue
        with contextlib.suppress(OSError):
            match = _ID.search(answer((*words, name)))
            if match:
                return match[0]
    return None


def answer(command: Sequence[str], limit_s: float = ASK_SECONDS) -> str:
    """The output of a command that succeeds in time and prints at most MAX_ANSWER bytes; else ""."""
    end = time.monotonic() + limit_s
    popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert popen.stdout is not None
    output = b""
    try:
        while len(output) <= MAX_ANSWER and select.select([popen.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
            piece = os.read(popen.stdout.fileno(), MAX_ANSWER)
            if not piece:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    popen.wait(max(0.0, end - time.monotonic()))
                return output.decode("utf-8", "replace") if popen.returncode == 0 else ""
            output += piece
        return ""
    finally:
        popen.kill()
        popen.wait()
        popen.stdout.close()
