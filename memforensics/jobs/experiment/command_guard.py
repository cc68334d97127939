"""Runs a command for memforensics and ends it with everything that it started. It is a program of its own:

    python -I -S command_guard.py PARENT FD   < {"command": [...], "env": {...}}

The guard writes the command's PID to the descriptor FD, or the negative errno if it cannot be started. It ends as the
command does: with its exit code, or by its signal.

The command has a session of its own. When it ends, when the guard gets a signal, or when memforensics (PARENT) has
ended for any reason, all descendants of the command get SIGTERM, and SIGKILL after TERM_SECONDS. The guard is a
subreaper (prctl(2)), so a process that was forked twice or left the session is still its descendant. If the guard is
killed, the kernel kills the command and its process group: the group owns a pipe that only the guard holds (F_SETOWN
and F_SETSIG of fcntl(2)).

It uses the standard library only, because it must start fast and outlive memforensics.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import signal
import sys
import time

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
TICK_S = 0.2
TERM_SECONDS = 3.0  # between SIGTERM and SIGKILL
KILL_SECONDS = 5.0  # for processes that the kernel cannot end at once
_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
_libc = ctypes.CDLL(None, use_errno=True)


def start(command: list[str], env: dict[str, str]) -> tuple[int, int]:
    """(PID of the command, 0), or (negative errno, PID to reap)."""
    guard = os.getpid()
    failed, fails = os.pipe()  # closed by exec; otherwise it carries the errno
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            _libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            if os.getppid() != guard:
                os._exit(127)
            for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.execvpe(command[0], command, {**os.environ, **env})
        except OSError as error:
            os.write(fails, str(error.errno).encode())
        finally:
            os._exit(127)
    os.close(fails)
    errno = os.read(failed, 16)
    os.close(failed)
    return (-int(errno), child) if errno else (child, 0)


def kill_with_us(group: int) -> None:
    """Makes the kernel kill that process group when this guard ends."""
    with contextlib.suppress(OSError):
        for end in os.pipe():  # closed on exec
            fcntl.fcntl(end, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(end, fcntl.F_SETOWN, -group)
            fcntl.fcntl(end, fcntl.F_SETFL, fcntl.fcntl(end, fcntl.F_GETFL) | os.O_ASYNC)


def descendants() -> list[int]:
    """All descendants of this guard."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(name))
    found: list[int] = []
    level = [os.getpid()]
    while level:
        level = [child for parent in level for child in children.get(parent, [])]
        found += level
    return found


def reap(statuses: dict[int, int]) -> bool:
    """Reaps ended children; whether any child is left."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return True
            statuses[pid] = status
    return False


def end_all(statuses: dict[int, int]) -> None:
    """Ends all descendants. Orphans become our children, so none escapes."""
    for number, seconds in ((signal.SIGTERM, TERM_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
        end = time.monotonic() + seconds
        signalled: set[int] = set()
        while reap(statuses) and time.monotonic() < end:
            for pid in descendants():
                if number == signal.SIGKILL or pid not in signalled:
                    signalled.add(pid)
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, number)
            signal.sigtimedwait((signal.SIGCHLD,), 0.05)


def main() -> int:
    parent, reply = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(reply, False)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    request = json.load(sys.stdin)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    command, failed = start(request["command"], request["env"])
    os.write(reply, str(command).encode())
    os.close(reply)
    if failed:
        return 127
    kill_with_us(command)
    for descriptor in (1, 2):  # only the command keeps them, so that its end shows as end-of-file
        os.dup2(null, descriptor)
    statuses: dict[int, int] = {}
    while reap(statuses) and command not in statuses and os.getppid() == parent:
        signalled = signal.sigtimedwait(_SIGNALS, TICK_S)
        if signalled is not None and signalled.si_signo != signal.SIGCHLD:
            break
    end_all(statuses)
    status = statuses.get(command, 0)
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        number = os.WTERMSIG(status)
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.kill(os.getpid(), number)
    return os.WEXITSTATUS(status)


if __name__ == "__main__":
    raise SystemExit(main())
