"""The process tree below one process: the leak is often in a child."""

from memforensics.errors import MemforensicsError
from memforensics.target.parse import parse_stat
from memforensics.target.procfs import ProcFS


def newest_pid(proc: ProcFS) -> bytes | None:
    """The PID that was given out last (of ours and all namespaces in ours), as text: while it stays, no process or
    thread was made. None where that is not told (fs/proc/loadavg.c)."""
    try:
        return (proc.root / "loadavg").read_bytes().split()[-1]
    except (OSError, IndexError):
        return None


def descendants(pid: int, proc: ProcFS | None = None) -> list[int]:
    """PIDs of all living descendants of `pid`, parents before children, without itself. Reads every /proc/*/stat once;
    processes that leave meanwhile are passed over, zombies left out."""
    proc = proc or ProcFS()
    children: dict[int, list[int]] = {}
    for other in proc.pids():
        try:
            about = parse_stat(proc.read_text(other, "stat"))
        except (MemforensicsError, OSError):
            continue  # it left between the listing and the reading
        if about.state not in "ZX":
            children.setdefault(about.ppid, []).append(other)
    found: list[int] = []
    level = [pid]
    while level:
        level = [
            child for parent in level for child in children.pop(parent, [])
        ]  # once: a damaged stat may name itself
        found.extend(level)
    return found
