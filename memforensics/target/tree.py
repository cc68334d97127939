"""The process tree below one process, because the leak is often in a child."""

from memforensics.errors import MemforensicsError
from memforensics.target.parse import parse_stat
from memforensics.target.procfs import ProcFS


def newest_pid(proc: ProcFS) -> bytes | None:
    """The last PID that the kernel assigned in our PID namespace, as text (fs/proc/loadavg.c). While it stays the same,
    no process or thread was created. None if it cannot be read."""
    try:
        return (proc.root / "loadavg").read_bytes().split()[-1]
    except (OSError, IndexError):
        return None


def descendants(pid: int, proc: ProcFS | None = None) -> list[int]:
    """PIDs of all living descendants of `pid`, parents before children, without itself and without zombies. Reads every
    /proc/*/stat once; a process that leaves meanwhile is skipped."""
    proc = proc or ProcFS()
    children: dict[int, list[int]] = {}
    for other in proc.pids():
        try:
            about = parse_stat(proc.read_text(other, "stat"))
        except (MemforensicsError, OSError):
            continue  # it left
        if about.state not in "ZX":
            children.setdefault(about.ppid, []).append(other)
    found: list[int] = []
    level = [pid]
    while level:
        # pop, because a damaged stat may name itself as its parent
        level = [child for parent in level for child in children.pop(parent, [])]
        found.extend(level)
    return found
