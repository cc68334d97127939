"""Stands between memforensics and gdb so that a target is never left behind stopped. Runs as a program of its own:

    python -I gdb_guard.py --parent PID --target PID --deadline SECONDS [--hardware] -- gdb ARGUMENTS...

It is gdb's parent, in a session of its own (a Ctrl-C of the terminal does not reach it), and ends gdb politely, so
that gdb detaches, when memforensics dies, is stopped or when the deadline passes. Should this guard be killed, the
kernel sends gdb the same polite signal. When gdb itself is killed, the kernel detaches the target (ptrace(2)), but
two things may stay: a SIGSTOP that gdb had sent to a thread, and a hardware breakpoint in a thread's debug registers
(the kernel keeps it; the next hit would be a deadly SIGTRAP). Both are cleared here.

Standard library only, no import of the project: it must start fast and outlive it.
"""

import argparse
import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
# include/uapi/linux/ptrace.h and sys/user.h of x86-64: offsetof(struct user, u_debugreg[7])
PTRACE_POKEUSER, PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT = 6, 17, 0x4206, 0x4207
DR7_OFFSET = 848 + 7 * 8
WALL = 0x40000000
TICK_S = 0.2
POLITE_S = 3.0
_libc = ctypes.CDLL(None, use_errno=True)


def state_of(pid: int) -> str:
    """The state letter of /proc/PID/stat; "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def spawn(command: list[str]) -> int:
    """gdb as a child that gets SIGTERM when this guard dies; its pid."""
    guard = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if os.getppid() == guard:
            os.execvp(command[0], command)
    finally:
        os._exit(127)


def watch(gdb: int, parent: int, deadline: float) -> int:
    """Until gdb ended; its wait status. Ends it when nobody needs it any more."""
    asked: float | None = None  # when gdb was asked to end
    while True:
        signalled = signal.sigtimedwait((signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGINT), TICK_S)
        ended, status = os.waitpid(gdb, os.WNOHANG)
        if ended:
            return status
        now = time.monotonic()
        told = signalled is not None and signalled.si_signo != signal.SIGCHLD
        orphaned = os.getppid() != parent or state_of(parent) in ("T", "Z", "")
        if asked is None and (told or orphaned or now > deadline):
            os.kill(gdb, signal.SIGTERM)
            asked = now
        elif asked is not None and now > asked + POLITE_S:
            os.kill(gdb, signal.SIGKILL)


def clear_debug_registers(pid: int) -> None:
    """Takes hardware breakpoints out of every thread. A SIGTRAP that is just being delivered is swallowed."""
    try:
        threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return
    for tid in threads:
        if _ptrace(PTRACE_SEIZE, tid) != 0:
            continue
        _ptrace(PTRACE_INTERRUPT, tid)
        for _ in range(1000):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(tid, os.WNOHANG | WALL)[0]:
                    break
            time.sleep(0.001)
        _ptrace(PTRACE_POKEUSER, tid, DR7_OFFSET, 0)
        _ptrace(PTRACE_DETACH, tid)


def _ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> int:
    return int(
        _libc.ptrace(ctypes.c_long(request), ctypes.c_long(tid), ctypes.c_void_p(address), ctypes.c_void_p(data))
    )


def wake(pid: int, seconds: float) -> None:
    """Continues the target should it be found stopped within that time. One that runs gets no signal."""
    end = time.monotonic() + seconds
    while True:
        if state_of(pid) == "T":
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        if time.monotonic() > end:
            return
        time.sleep(0.01)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--target", type=int, required=True)
    parser.add_argument("--deadline", type=float, required=True)
    parser.add_argument("--hardware", action="store_true")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()

    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGINT))
    with contextlib.suppress(PermissionError):
        os.setsid()
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    was_stopped = state_of(options.target) == "T"
    gdb = spawn(options.command)
    for descriptor in (0, 1):  # gdb's alone from here on: its end must show as end-of-file
        os.close(descriptor)
    status = watch(gdb, options.parent, time.monotonic() + options.deadline)
    killed = os.WIFSIGNALED(status)
    if killed and options.hardware:
        clear_debug_registers(options.target)
    if not was_stopped:
        wake(options.target, 0.5 if killed else 0.0)
    return 128 + os.WTERMSIG(status) if killed else os.WEXITSTATUS(status)


if __name__ == "__main__":
    raise SystemExit(main())
