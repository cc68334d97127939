"""A command is interrupted several times. It must print no traceback and exit with the code of an interrupt."""

import contextlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from processes import compiled, running

from attack import attack
from attack.gdb_killed import left_wrong, until

COMMANDS = (
    ("stacks", "--on", "mmap", "--count", "1000", "--timeout", "60s", "--max-stopped", "60s"),
    ("watch", "--interval", "200ms"),
    ("trace-mmap", "--duration", "60s"),
    ("diagnose", "--duration", "60s"),
)


def handles_signals(pid: int) -> bool:
    """Whether memforensics has installed its signal handlers. Before that Python handles the signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:\t")[2].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@attack("Ctrl-C or SIGTERM twenty times within a second: exit code 130, no traceback", runs=40)
def interrupted_often(number: int) -> str | None:
    rng = random.Random(number)
    name, *words = COMMANDS[number % len(COMMANDS)]
    which = signal.SIGTERM if number // len(COMMANDS) % 2 else signal.SIGINT
    with running([compiled("gdb_chain.c")]) as target:
        command = [sys.executable, "-m", "memforensics", name, str(target.pid), *words]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as popen:
            assert until(lambda: handles_signals(popen.pid))
            time.sleep(rng.uniform(0, 4))
            for _ in range(20):
                with contextlib.suppress(ProcessLookupError):
                    popen.send_signal(which)
                time.sleep(rng.uniform(0, 0.1))
            _, errors = popen.communicate(timeout=60)
        if popen.returncode != 130 or "Traceback" in errors or "ignored" in errors:
            return f"{name}, {which.name}: exit code {popen.returncode}: {errors[-400:]}"
        return left_wrong(target)
