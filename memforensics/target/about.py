"""What one process is: command line, program, role, runtimes, cgroup, environment, start."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from memforensics.case.model import EnvVar, Runtime, Target
from memforensics.errors import MemforensicsError, TargetError
from memforensics.target.cgroup import cgroup_of
from memforensics.target.cmdline import harmless_command
from memforensics.target.environ import live_environ, parse_environ
from memforensics.target.memory import Unreadable
from memforensics.target.parse import lines_of, number
from memforensics.target.process import Process
from memforensics.target.procfs import ProcFS
from memforensics.target.roles import role_of
from memforensics.units import NS_PER_S

# File name of a mapped file -> runtime; group 1 is its version, where the name tells it.
_RUNTIMES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"libpython(\d+\.\d+)t?\.so.*", "cpython"),
        (r"python(\d+\.\d+)t?", "cpython"),
        (r".*\.cpython-(\d)(\d+)t?-.*\.so", "cpython"),
        (r"libc\.so\.6|libc-(\d+\.\d+)\.so", "glibc"),
        (r"ld-musl-.*|libc\.musl-.*", "musl"),
        (r"libjvm\.so", "jvm"),
        (r"libjemalloc.*\.so.*", "jemalloc"),
        (r"libtcmalloc.*\.so.*", "tcmalloc"),
        (r"libmimalloc.*\.so.*", "mimalloc"),
        (r"libtorch_cpu.*\.so", "torch"),
        (r"libonnxruntime\.so(?:\.(\d+\.\d+\.\d+))?", "onnxruntime"),
        (r"libucs(?:-[0-9a-f]+)?\.so.*", "ucx"),
        (r"node", "node"),
    )
)


def about(process: Process, *, environ_address: int | None = None, fs_root: Path = Path("/")) -> Target:
    """The Target. What is not for us to read stays None or empty; TargetGone and NoSuchProcess when it left.

    With `environ_address` (of libc's `environ`) the environment is the live one, else that at exec time.
    """
    stat = process.stat()
    words = tuple(word for word in process.read_text("cmdline").split("\0"))[:-1]
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
    """When a process started, in Unix nanoseconds: boot time (/proc/stat btime, whole seconds) + ticks. 0 when the
    kernel does not tell its boot time."""
    try:
        text = (proc.root / "stat").read_text(errors="surrogateescape")
    except OSError:
        return 0
    btime = next((number(line[6:]) for line in lines_of(text) if line.startswith("btime ")), None)
    if btime is None:
        return 0
    return btime * NS_PER_S + start_ticks * NS_PER_S // os.sysconf("SC_CLK_TCK")


def runtimes_of(paths: Iterable[str]) -> tuple[Runtime, ...]:
    """What the names of the mapped files tell of what runs inside, one a name, the better-known version kept."""
    found: dict[str, Runtime] = {}
    for path in sorted(paths):
        name = os.path.basename(path.removesuffix(" (deleted)"))
        for pattern, runtime in _RUNTIMES:
            match = pattern.fullmatch(name)
            if match is None:
                continue
            version = ".".join(group for group in match.groups() if group) or None
            known = found.get(runtime)
            if known is None or (known.version is None and version is not None):
                found[runtime] = Runtime(name=runtime, version=version, path=path)
            break
    return tuple(found[name] for name in sorted(found))


def _exe(process: Process) -> str | None:
    try:
        return process.proc.read_link(process.pid, "exe")
    except (MemforensicsError, OSError):
        return None  # not for us, or it is leaving: the rest still stands


def _environment(process: Process, environ_address: int | None) -> tuple[EnvVar, ...]:
    try:
        if environ_address is not None:
            return live_environ(process.memory, environ_address)
    except Unreadable:
        pass  # the program was just growing the array: the block at exec time is better than nothing
    except MemforensicsError:
        return ()
    try:
        return parse_environ(process.read_bytes("environ"))
    except (MemforensicsError, OSError):
        return ()
