"""The choice of a target: likely processes, inference servers first, then by size."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from memforensics.case.model import Case, Target
from memforensics.errors import MemforensicsError, UsageError
from memforensics.jobs.targets.containers import only_root
from memforensics.target.parse import parse_stat, parse_status, status_bytes
from memforensics.target.procfs import ProcFS
from memforensics.target.software import role_of


@dataclass(frozen=True, slots=True)
class Candidate:
    pid: int
    comm: str
    words: tuple[str, ...]  # the whole command line
    rss_bytes: int
    role: str | None
    ppid: int


def find(*, name: str | None = None, cmdline: str | None = None, proc: ProcFS | None = None) -> list[Candidate]:
    """Processes that match, inference servers first, largest first; without kernel threads, zombies and ourselves.
    UsageError if `cmdline` is not a regular expression."""
    proc = proc or ProcFS()
    try:
        pattern = re.compile(cmdline) if cmdline is not None else None
    except re.error as error:
        raise UsageError(f"--cmdline {cmdline!r} is not a regular expression", why=str(error)) from error
    found = []
    for pid in proc.pids():
        if pid == os.getpid():
            continue
        try:
            about = parse_stat(proc.read_text(pid, "stat"))
            words = tuple(proc.read_text(pid, "cmdline").split("\0"))[:-1]
            rss = status_bytes(parse_status(proc.read_text(pid, "status")), "VmRSS")
        except (MemforensicsError, OSError):
            continue  # it has left, or is hidden from us
        line = " ".join(words)
        if rss is None or (name is not None and about.comm != name) or (pattern and not pattern.search(line)):
            continue
        found.append(Candidate(pid, about.comm, words, rss, role_of(words), about.ppid))
    if pattern is not None:
        launchers = _launchers(proc)
        found = [c for c in found if c.pid not in launchers]
    return sorted(found, key=lambda c: (c.role is None, -c.rss_bytes))


def roots(found: list[Candidate], proc: ProcFS | None = None) -> list[Candidate]:
    """The candidates that descend from no other candidate: a server stands for its workers."""
    proc, pids = proc or ProcFS(), {c.pid for c in found}
    return [c for c in found if not pids.intersection(_ancestors(c.ppid, proc))]


def restarted_pid(name: str | None, cmdline: str | None, container: str | None) -> int | None:
    """The PID of a restarted target: the process that matches now, the largest of several; None while none does."""
    if container is not None:
        try:
            return only_root(container)
        except UsageError:
            return None
    found = roots(find(name=name, cmdline=cmdline))
    return found[0].pid if found else None


def _launchers(proc: ProcFS) -> set[int]:
    """Our ancestors whose command line contains ours: sudo, timeout, sh -c. They match every --cmdline."""
    out = set()
    for pid in _ancestors(os.getppid(), proc):
        with suppress(MemforensicsError, OSError):
            if "memforensics" in proc.read_text(pid, "cmdline"):
                out.add(pid)
    return out


def _ancestors(pid: int, proc: ProcFS) -> Iterator[int]:
    """The process, its parent and so on, as far as they can be read."""
    seen: set[int] = set()
    while pid and pid not in seen:
        seen.add(pid)
        yield pid
        try:
            pid = parse_stat(proc.read_text(pid, "stat")).ppid
        except (MemforensicsError, OSError):
            return


def whole_command_lines(case: Case) -> Case:
    """The case with the `whole_command_line` of each process."""
    return replace(case, targets=tuple(map(whole_command_line, case.targets)))


def whole_command_line(target: Target, proc: ProcFS | None = None) -> Target:
    """The target with its whole command line if it still runs: for a terminal, never stored."""
    proc = proc or ProcFS()
    try:
        if parse_stat(proc.read_text(target.pid, "stat")).start_ticks != target.start_ticks:
            return target
        return replace(target, cmdline=tuple(proc.read_text(target.pid, "cmdline").split("\0"))[:-1])
    except (MemforensicsError, OSError):
        return target
