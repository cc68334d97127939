"""prove and ci are ended in every way. No process that their command started may stay."""

import contextlib
import os
import pty
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from processes import LEAKERS

from attack import attack
from attack.gdb_killed import until

WAYS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGKILL", "terminal", "guard")
SETTLE_S = 15.0  # SIGTERM, three seconds, SIGKILL; on a busy machine


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


@contextlib.contextmanager
def observing(*words: str) -> Iterator[tuple["subprocess.Popen[bytes]", list[int], int]]:
    """memforensics that runs experiment_escapes.py in a terminal of its own. (memforensics, the PIDs of the command's
    processes, the terminal)."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pids"
        command = [
            sys.executable,
            "-m",
            "memforensics",
            *words,
            "--",
            sys.executable,
            f"{LEAKERS}/experiment_escapes.py",
        ]
        master, slave = pty.openpty()
        popen = subprocess.Popen(
            ["setsid", "--ctty", *command],
            env={**os.environ, "PIDS": str(file)},
            cwd=folder,
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        pids: list[int] = []
        try:
            assert until(lambda: file.exists() and file.read_text().count("\n") == 3, 40), "the command did not start"
            pids = [int(line) for line in file.read_text().split()]
            yield popen, pids, master
        finally:
            os.close(master)
            popen.kill()
            popen.wait()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@attack("prove and ci ended by a signal, SIGKILL or a closed terminal, or their guard killed: nothing stays", runs=42)
def command_left(number: int) -> str | None:
    way = WAYS[number % len(WAYS)]
    words = ("prove", "--env", "A=1") if number % 2 else ("ci", "--warmup", "30s")
    with observing(*words) as (popen, pids, master):
        time.sleep(random.Random(number).uniform(0, 1))
        if way == "terminal":
            with open(os.devnull) as null:
                os.dup2(null.fileno(), master)
        elif way == "guard":
            os.kill(parent_of(pids[0]), signal.SIGKILL)
        else:
            popen.send_signal(signal.Signals[way])
        ours = pids[:2] if way == "guard" else pids  # without the guard the kernel ends only the process group
        until(lambda: not any(map(lives, ours)), SETTLE_S)
        left = [pid for pid in ours if lives(pid)]
        return f"{words[0]}, {way}: {len(left)} of {len(ours)} stay" if left else None
