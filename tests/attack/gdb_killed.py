"""stacks is killed while gdb is attached. The target must continue, and no process of memforensics may stay."""

import contextlib
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from processes import TESTS, Child, compiled, python, running

from attack import attack

QUIET = ("--on", "mmap", "--if", "length == 1", "--timeout", "60s")
SETTLE_S = 3.0  # after it a target that does not answer is stopped


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def tracer_of(pid: int) -> int:
    return int(status_of(pid)["TracerPid"])


def parent_of(pid: int) -> int:
    return int(status_of(pid)["PPid"])


def until(fact: Callable[[], object], limit_s: float = 20.0) -> bool:
    """Whether the fact came true in time. It polls without a pause, because the attach takes only some milliseconds."""
    end = time.monotonic() + limit_s
    while not fact():
        if time.monotonic() > end:
            return False
    return True


def members(session: int) -> list[int]:
    """The processes of a session."""
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            if os.getsid(int(entry)) == session:
                found.append(int(entry))
    return found


@contextlib.contextmanager
def cgroup2() -> Iterator[Path]:
    """A mount of cgroup v2: an existing one, or one for the block."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, *_ = line.split()
        if kind == "cgroup2" and os.access(point, os.W_OK):
            yield Path(point)
            return
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "cgroup2", "none", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


@contextlib.contextmanager
def cgroup() -> Iterator[Path]:
    """A new cgroup. What is in it at the end is killed."""
    with cgroup2() as top:
        folder = top / f"memforensics-attack-{os.getpid()}"
        folder.mkdir()
        try:
            yield folder
        finally:
            (folder / "cgroup.kill").write_text("1")
            if not until(lambda: "populated 0" in (folder / "cgroup.events").read_text()):
                raise AssertionError("processes stay in the cgroup")
            folder.rmdir()


@contextlib.contextmanager
def stacks(pid: int, *words: str, inside: Path | None = None) -> Iterator["subprocess.Popen[bytes]"]:
    """`memforensics stacks` as a process, in the cgroup `inside`."""
    command = [sys.executable, "-m", "memforensics", "stacks", str(pid), *(words or QUIET)]
    if inside is not None:
        command = ["sh", "-c", f'echo $$ > {inside}/cgroup.procs && exec "$@"', "sh", *command]
    popen = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield popen
    finally:
        popen.kill()
        popen.wait()


@contextlib.contextmanager
def damaging_gdb() -> Iterator[dict[str, str]]:
    """An environment in which the output of `gdb` is damaged."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "gdb"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {TESTS}/fixtures/damaging_gdb.py "$@"\n')
        program.chmod(0o755)
        gdb = shutil.which("gdb")
        assert gdb is not None
        yield {"GDB": gdb, "PATH": f"{folder}:{os.environ['PATH']}"}


def left_wrong(target: Child) -> str | None:
    """What is wrong with a target after an attack. None if it runs and nothing traces it."""
    if not until(lambda: tracer_of(target.pid) == 0, 10):
        return f"still traced by {tracer_of(target.pid)}"
    target.tell("load")  # the main thread answers, and its dlopen hits any breakpoint that gdb left in ld.so
    assert target.popen.stdout is not None
    if not select.select([target.popen.stdout], [], [], SETTLE_S)[0]:
        return f"does not answer, state {status_of(target.pid)['State']}"
    target.wait_for("loaded")
    states = {status_of(int(task))["State"][0] for task in os.listdir(f"/proc/{target.pid}/task")}
    return f"threads in state {states}" if states & set("tT") else None


def attached(pid: int) -> tuple[int, int]:
    """The PIDs of gdb and its guard, once gdb traces the target."""
    assert until(lambda: tracer_of(pid)), "gdb did not attach"
    gdb = tracer_of(pid)
    return gdb, parent_of(gdb)


@contextlib.contextmanager
def heap(pid: int) -> Iterator["subprocess.Popen[bytes]"]:
    """`memforensics heap --memray` as a process."""
    command = [sys.executable, "-m", "memforensics", "heap", str(pid), "--memray", "--yes", "--duration", "1s"]
    popen = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield popen
    finally:
        popen.kill()
        popen.wait()


def python_left_wrong(target: Child) -> str | None:
    """What is wrong with ex_python_heap.py after an attack. None if it still sleeps 50 times a second."""
    if not until(lambda: tracer_of(target.pid) == 0, 25):
        return f"still traced by {tracer_of(target.pid)}"
    time.sleep(0.1)  # for a pending stop
    before = int(status_of(target.pid)["voluntary_ctxt_switches"])
    if until(lambda: int(status_of(target.pid).get("voluntary_ctxt_switches", 0)) > before + 10, SETTLE_S):
        return None
    return f"state {status_of(target.pid)['State']}"


@attack("`kill -9` of memforensics, guard and gdb, 0 to 40 ms after the attach: the target continues", runs=50)
def all_killed(number: int) -> str | None:
    delay_s = random.Random(number).uniform(0, 0.040)
    with running([compiled("gdb_chain.c"), "3"]) as target, stacks(target.pid) as popen:
        gdb, guard = attached(target.pid)
        time.sleep(delay_s)
        for pid in (popen.pid, guard, gdb):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wrong = left_wrong(target)
        if wrong is None and not until(lambda: not members(guard), 5):
            wrong = f"left behind: {members(guard)}"
        return wrong and f"{delay_s * 1000:.1f} ms after the attach: {wrong}"


@attack("cgroup.kill of all that memforensics started, 0 to 40 ms after the attach: the target continues", runs=50)
def cgroup_killed(number: int) -> str | None:
    delay_s = random.Random(number).uniform(0, 0.040)
    with running([compiled("gdb_chain.c"), "3"]) as target, cgroup() as folder:
        with stacks(target.pid, inside=folder):
            _, guard = attached(target.pid)
            time.sleep(delay_s)
            (folder / "cgroup.kill").write_text("1")
            wrong = left_wrong(target)
            if wrong is None and not until(lambda: not members(guard), 5):
                wrong = f"left behind: {members(guard)}"
        return wrong and f"{delay_s * 1000:.1f} ms after the attach: {wrong}"


@attack("`kill -9` of gdb in the attach; the target's name is sometimes not UTF-8: the target continues", runs=20)
def odd_name_gdb_killed(number: int) -> str | None:
    delay_s = random.Random(number).uniform(0, 0.040)
    with running([compiled("gdb_chain.c"), "3", "rename"]) as target, stacks(target.pid) as popen:
        gdb, _ = attached(target.pid)
        time.sleep(delay_s)
        os.kill(gdb, signal.SIGKILL)
        wrong = left_wrong(target)
        return wrong or (None if popen.wait(20) == 3 else f"exit code {popen.returncode}")


@attack("damaged output of gdb: one clear error or a result, and the target continues", runs=50)
def damaged_output(number: int) -> str | None:
    with running([compiled("gdb_chain.c"), "3"]) as target, damaging_gdb() as env:
        command = [sys.executable, "-m", "memforensics", "stacks", str(target.pid), "--on", "mmap", "--timeout", "3s"]
        rarity = random.Random(number).choice((3, 10, 30))
        done = subprocess.run(
            command,
            env={**os.environ, **env, "DAMAGE": str(number), "RARITY": str(rarity)},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
        )
        if done.returncode not in (0, 2, 3, 4) or "Traceback" in done.stderr or "report it" in done.stderr:
            return f"exit code {done.returncode}: {done.stderr[-300:]}"
        return left_wrong(target)


@attack(
    "`kill -9` of `heap --memray`, memray, guard and gdb, 0 to 40 ms after the attach: the target continues", runs=10
)
def memray_killed(number: int) -> str | None:
    delay_s = random.Random(number).uniform(0, 0.040)
    with running(python("ex_python_heap.py", "100")) as target, heap(target.pid) as popen:
        gdb, guard = attached(target.pid)
        memray = parent_of(guard)
        time.sleep(delay_s)
        for pid in (popen.pid, memray, guard, gdb):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wrong = python_left_wrong(target)
        if wrong is None and not until(lambda: not members(guard) and not members(memray), 5):
            wrong = f"left behind: {members(guard)}, {members(memray)}"
        return wrong and f"{delay_s * 1000:.1f} ms after the attach: {wrong}"


@attack("`kill -9` of `heap --memray` alone, 0 to 400 ms after the attach: gdb detaches, the target continues", runs=10)
def memray_orphaned(number: int) -> str | None:
    delay_s = random.Random(number).uniform(0, 0.400)
    with running(python("ex_python_heap.py", "100")) as target, heap(target.pid) as popen:
        _, guard = attached(target.pid)
        memray = parent_of(guard)
        time.sleep(delay_s)
        popen.kill()
        wrong = python_left_wrong(target)
        if wrong is None and not until(lambda: not members(guard) and not members(memray), 20):
            wrong = f"left behind: {members(guard)}, {members(memray)}"
        return wrong and f"{delay_s * 1000:.1f} ms after the attach: {wrong}"
