"""The Target of a process: command line, program, role, runtimes, cgroup, environment, start time."""

import os
from pathlib import Path

from memforensics.case.model import EnvVar, Target
from memforensics.errors import MemforensicsError, TargetError
from memforensics.target.cgroup import cgroup_of
from memforensics.target.cmdline import harmless_command
from memforensics.target.environ import live_environ, parse_environ
from memforensics.target.memory import Unreadable
from memforensics.target.parse import lines_of, number
from memforensics.target.process import Process
from memforensics.target.procfs import ProcFS
from memforensics.target.software import role_of, runtimes_of
from memforensics.units import NS_PER_S


def describe(process: Process, *, environ_address: int | None = None, fs_root: Path = Path("/")) -> Target:
    """The Target. What may not be read is None or empty. TargetGone and NoSuchProcess when the process left.

    With `environ_address` (of libc's `environ`) the environment is the live one, otherwise the one at exec.
    """
    stat = process.stat()
    words = process.read_text("cmdline").split("\0")[:-1]
    try:
        paths = {mapping.path for mapping in process.maps().mappings}
    except TargetError:
        raise
    except MemforensicsError:
        paths = set()
    return Target(
        pid=process.pid,
        start_ticks=process.start_ticks,
        start_wall_ns=start_wall_ns(process.proc, process.start_ticks),
        ppid=stat.ppid,
        comm=stat.comm,
        exe=_exe(process),
        cmdline=harmless_command(words),
        role=role_of(words),
        runtimes=runtimes_of(paths),
        cgroup=cgroup_of(process, fs_root=fs_root),
        environment=_environment(process, environ_address),
    )


def start_wall_ns(proc: ProcFS, start_ticks: int) -> int:
    """The start time of a process in Unix nanoseconds: boot time (btime in /proc/stat, whole seconds) plus ticks. 0 if
    the boot time cannot be read."""
    try:
        text = (proc.root / "stat").read_text(errors="surrogateescape")
    except OSError:
        return 0
    btime = next((number(line[6:]) for line in lines_of(text) if line.startswith("btime ")), None)
    if btime is None:
        return 0
    return btime * NS_PER_S + start_ticks * NS_PER_S // os.sysconf("SC_CLK_TCK")


def _exe(process: Process) -> str | None:
    try:
        return process.proc.read_link(process.pid, "exe")
    except (MemforensicsError, OSError):
        return None  # forbidden, or the process is exiting


def _environment(process: Process, environ_address: int | None) -> tuple[EnvVar, ...]:
    try:
        if environ_address is not None:
            return live_environ(process.memory, environ_address)
    except Unreadable:
        pass  # the program is changing the array: the block at exec is better than nothing
    except MemforensicsError:
        return ()
    try:
        return parse_environ(process.read_bytes("environ"))
    except (MemforensicsError, OSError):
        return ()
