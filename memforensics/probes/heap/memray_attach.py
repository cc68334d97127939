"""memray, attached to a live process by gdb. Only on request, because it runs code in the target.

memray 1.20 (memray/commands/attach.py and _attach.gdb) does this to the target: gdb stops it for about a quarter of a
second, sets breakpoints on the allocator, waits until one is hit, then makes it dlopen memray's injector and import
memray. So the target's own Python must have memray. The guard (`probes/gdb/guard.py`) ends gdb properly when any
process above it dies, and makes the kernel continue the target when all of them are killed. If gdb is killed while its
breakpoints are set, the target dies at the next one.
"""

import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from memforensics.case.model import AllocationSite, Frame, HeapProfile, Loss, Pause, Stack
from memforensics.errors import NotATarget, PermissionNeeded, ProbeFailed, TargetError, ToolMissing
from memforensics.probes.gdb import guard
from memforensics.probes.gdb.session import check_runs
from memforensics.target import Process
from memforensics.target.parse import status_numbers
from memforensics.text import basename

NAME = "memray"
WARNING = (
    "memray runs code inside the process: gdb stops it for about a quarter of a second and makes it load memray, "
    "which stays loaded, slows its allocations while it tracks, and prints a line on its stderr"
)
MAX_SITES = 200
_ATTACH_LIMIT_S = 60.0  # memray waits for the target's next allocation
_FLUSH_LIMIT_S = 60.0
_STOP_POLL_S = 0.002


@dataclass(frozen=True, slots=True)
class Profiled:
    """The result of memray. `sites`: those with the most outstanding bytes, by Python stack."""

    profile: HeapProfile
    sites: tuple[AllocationSite, ...]
    pause: Pause
    losses: tuple[Loss, ...]


def require(process: Process) -> None:
    """Raises if memray cannot attach: ToolMissing (memray, gdb), NotATarget (no Python), ProbeFailed (another debugger,
    stopped by a signal, another mount namespace), PermissionNeeded."""
    if importlib.util.find_spec("memray") is None:
        raise ToolMissing(
            "memray is not installed in the Python of memforensics", enable=f"{sys.executable} -m pip install memray"
        )
    if shutil.which("gdb") is None:
        raise ToolMissing("gdb is not installed", why="memray attaches through it", enable="sudo apt-get install gdb")
    tracer = next(iter(status_numbers(process.status(), "TracerPid")), 0)
    if tracer:
        raise ProbeFailed(
            f"process {tracer} already traces process {process.pid}",
            why="a process can have one debugger",
            enable=f"end that debugger (process {tracer})",
        )
    check_runs(process)
    names = {basename(mapping.path) for mapping in process.maps().mappings}
    if not any(name.startswith(("python", "libpython")) for name in names):
        raise NotATarget(f"process {process.pid} is not a Python process", why="it maps neither python nor libpython")
    if process.proc.read_link(process.pid, "ns/mnt") != os.readlink("/proc/self/ns/mnt"):
        raise ProbeFailed(
            f"process {process.pid} has another file system",
            why="it runs in a container, and memray passes its library and its results through files",
            enable="run memforensics inside that container",
        )


def profile(process: Process, seconds: float, *, on_tracking: Callable[[], None] = lambda: None) -> Profiled:
    """Attaches memray, lets it track for `seconds` (whole seconds, at least one), and reads its file.

    ProbeFailed when memray cannot attach (`why` is its own message), TargetGone. An interrupt ends the tracking first.
    """
    require(process)
    whole_seconds = max(1, round(seconds))
    _, owner, *_ = status_numbers(process.status(), "Uid") or (0, os.geteuid())
    with tempfile.TemporaryDirectory(prefix="memforensics-memray-") as folder:
        if owner != os.geteuid():
            os.chown(folder, owner, -1)  # the target itself writes the file
        file = Path(folder) / "allocations.bin"
        began_ns = time.monotonic_ns()
        pause = _attach(process, file, whole_seconds)
        on_tracking()
        try:
            _wait_until_written(process, file, whole_seconds)
        except KeyboardInterrupt:
            _detach(process)
            raise
        return _read(file, process.pid, began_ns, pause)


def _attach(process: Process, file: Path, seconds: int) -> Pause:
    """Runs `memray attach` and measures how long the target is stopped (its state is read every 2 ms)."""
    stopped_s, last, deadline = 0.0, time.monotonic(), time.monotonic() + _ATTACH_LIMIT_S
    with _memray(process, "attach", "--duration", str(seconds), "-o", str(file)) as running:
        while running.poll() is None:
            now = time.monotonic()
            if _is_stopped(process):
                stopped_s += now - last
            if now > deadline:
                raise ProbeFailed(
                    f"memray could not attach to process {process.pid} in {_ATTACH_LIMIT_S:.0f} s",
                    why="it waits for the process to allocate memory in Python; an idle process never does",
                    enable="send it a request and try again",
                )
            last = now
            time.sleep(_STOP_POLL_S)
        said = running.communicate()[0]
    if running.returncode:
        process.check()
        raise _failed(process, said)
    return Pause(pid=process.pid, t_ns=time.monotonic_ns(), probe=NAME, ms=stopped_s * 1000)


@contextlib.contextmanager
def _memray(process: Process, command: str, *words: str) -> Iterator["subprocess.Popen[str]"]:
    """`memray attach` or `memray detach`, ended after the block, and gdb with it. The only program that it finds is a
    `gdb` of ours: the guard, which runs the real one. gdb first attaches to a process of the guard, see there."""
    gdb = shutil.which("gdb")
    assert gdb is not None
    start = [sys.executable, "-I", "-S", guard.__file__]
    options = [f"--parent={os.getpid()}", f"--target={process.pid}", f"--deadline={_ATTACH_LIMIT_S + 5}", "--batch"]
    warm_up = ("set auto-solib-add off", "attach {warm_up}", "detach", "file")
    options += ["--", gdb, "-nx", *(word for line in warm_up for word in ("-iex", line))]
    # Not in the folder that the target writes to: what is here is run.
    with tempfile.TemporaryDirectory(prefix="memforensics-gdb-") as folder:
        program = Path(folder) / "gdb"
        program.write_text(f'#!/bin/sh\nexec {shlex.join(start)} --parent=$PPID {shlex.join(options)} "$@"\n')
        program.chmod(0o700)
        # A session of its own: Ctrl-C at our terminal must not hit memray.
        popen = subprocess.Popen(
            [sys.executable, "-m", "memray", command, "--method", "gdb", *words, str(process.pid)],
            env={**os.environ, "PATH": folder},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert popen.stdout is not None
        try:
            yield popen
        finally:
            popen.terminate()  # the guard then ends gdb, which takes its breakpoints out and lets the target go
            popen.wait()
            popen.stdout.close()
            _wait_until_let_go(process)


def _wait_until_let_go(process: Process) -> None:
    end = time.monotonic() + guard.BATCH_POLITE_S
    with contextlib.suppress(TargetError, PermissionNeeded, OSError):
        while any(status_numbers(process.status(), "TracerPid")) and time.monotonic() < end:
            time.sleep(0.01)


def _is_stopped(process: Process) -> bool:
    try:
        return process.stat().state in "tT"
    except (TargetError, PermissionNeeded):
        return False


def _failed(process: Process, said: str) -> ProbeFailed:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    why = lines[-1] if lines else "it printed nothing"
    missing = "No module named" in said
    return ProbeFailed(
        f"memray could not start in process {process.pid}",
        why=why,
        enable="install memray into the Python that the process itself runs (pip install memray), and restart it"
        if missing
        else "memforensics doctor",
    )


def _detach(process: Process) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired), _memray(process, "detach") as running:
        running.communicate(timeout=_ATTACH_LIMIT_S)


def _wait_until_written(process: Process, file: Path, seconds: int) -> None:
    """Waits until the target has closed the file, which is complete then. TargetGone, ProbeFailed."""
    deadline = time.monotonic() + seconds + _FLUSH_LIMIT_S
    while _holds_open(process, file):
        if time.monotonic() > deadline:
            raise ProbeFailed("memray did not stop tracking", enable=f"python -m memray detach {process.pid}")
        time.sleep(0.1)
    process.check()


def _holds_open(process: Process, file: Path) -> bool:
    folder = process.proc.root / str(process.pid) / "fd"
    try:
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                if os.readlink(folder / name) == str(file):
                    return True
    except OSError as error:
        raise process.proc.explain(error, process.pid, "fd") from error
    return False


def _read(file: Path, pid: int, began_ns: int, pause: Pause) -> Profiled:
    import memray

    ended_ns = time.monotonic_ns()
    stats = _stats(file)
    try:
        reader = memray.FileReader(str(file))
        records = list(reader.get_leaked_allocation_records(merge_threads=True))
        tracked_s = (reader.metadata.end_time - reader.metadata.start_time).total_seconds()
        peak = reader.metadata.peak_memory
    except OSError as error:
        raise ProbeFailed(
            "memray's file cannot be read", why=str(error), enable="one memray version in both"
        ) from error
    records.sort(key=lambda record: -record.size)
    sites = tuple(
        AllocationSite(
            pid=pid,
            site_id=number,
            kind="malloc",
            stack=_stack(r.stack_trace()),
            outstanding_bytes=r.size,
            outstanding_count=r.n_allocations,
            allocated_bytes=r.size,  # outstanding only: memray's file has no sum of freed bytes by stack
            allocated_count=r.n_allocations,
            freed_bytes=0,
            freed_count=0,
            first_ns=began_ns,
            last_ns=ended_ns,
        )
        for number, r in enumerate(records[:MAX_SITES])
    )
    kept = HeapProfile(
        pid=pid,
        t_ns=ended_ns,
        tool=f"memray {version(NAME)}",
        seconds=tracked_s,
        allocated_bytes=int(stats["total_bytes_allocated"]),
        allocated_count=int(stats["total_num_allocations"]),
        outstanding_bytes=sum(record.size for record in records),
        peak_bytes=peak,
    )
    left = len(records) - len(sites)
    losses = (Loss(probe=NAME, what=f"sites beyond the {MAX_SITES} largest, not kept", count=left),) if left > 0 else ()
    return Profiled(kept, sites, pause, losses)


def _stack(trace: list[tuple[str, str, int]]) -> Stack:
    return Stack(frames=tuple(Frame(kind="python", function=name, file=file, line=line) for name, file, line in trace))


def _stats(file: Path) -> dict[str, Any]:
    """`memray stats --json`, memray's own sums."""
    out = file.with_suffix(".json")
    done = subprocess.run(
        [sys.executable, "-m", "memray", "stats", "--json", "-o", str(out), str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        loaded: dict[str, Any] = json.loads(out.read_text())
    except (OSError, ValueError) as error:
        raise ProbeFailed("memray's statistics cannot be read", why=done.stderr.strip()[-200:] or str(error)) from error
    return loaded
