"""Runs between memforensics and gdb, so that no target is left stopped. It is a program of its own:

    python -I -S guard.py --parent PID --target PID --deadline SECONDS [OPTIONS] -- gdb ARGUMENTS...

It is gdb's parent, in a session of its own, which a Ctrl-C of the terminal does not reach. When memforensics dies or
is stopped, or the deadline passes, it ends gdb by SIGTERM, so that gdb detaches. When this guard is killed, the kernel
sends gdb the same signal.

gdb attaches by PTRACE_ATTACH, which sends a SIGSTOP to each thread (ptrace(2)). If gdb is killed before all of these
are consumed, the kernel detaches the target, and the target stays stopped. So:

- When gdb is killed, this guard sends SIGCONT, which discards every SIGSTOP that is pending or being delivered
  (prepare_signal(), kernel/signal.c).
- When guard and gdb are killed together, the kernel sends SIGCONT. Both hold a pipe whose two ends are set to signal
  the target (fcntl(2): F_SETOWN, F_SETSIG, O_ASYNC), and the last exit closes one end before the other. No process has
  to survive, so cgroups, containers and sessions do not matter. It needs root, or the user of the target (sigio_perm(),
  fs/fcntl.c).

When gdb is killed, a hardware breakpoint stays in the debug registers of the threads, and the next hit would raise a
fatal SIGTRAP. The guard clears them.

SIGUSR1 means that gdb has detached properly. The target then gets no SIGCONT: if it is stopped, another process did it.
With --batch gdb ends by itself, and exit code 0 means the same.

In the arguments of gdb, {warm_up} is the PID of a process to which gdb attaches before the target: at its first attach
gdb forks a child to test ptrace, and no such child may hold the pipe while the target is attached.

It uses the standard library only, to start fast and to outlive memforensics.
"""

import argparse
import contextlib
import ctypes
import fcntl
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
BATCH_POLITE_S = 20.0  # with --batch gdb has changed code of the target, and to kill it may kill the target
_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1)
_libc = ctypes.CDLL(None, use_errno=True)


def state_of(pid: int) -> str:
    """The state letter of /proc/PID/stat; "" if the process is gone. The command name may hold any byte."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0].decode("ascii", "replace")
    except (OSError, IndexError):
        return ""


def spawn(command: list[str], death_signal: signal.Signals) -> int:
    """The PID of a child that gets the signal when this guard dies. Without a command it sleeps."""
    guard = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        _libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if os.getppid() == guard:
            if command:
                os.execvp(command[0], command)
            os.closerange(0, 3)
            while True:
                signal.pause()
    finally:
        os._exit(127)


class Target:
    """The process to which gdb attaches. If it is already stopped, another process did that and must continue it.
    Otherwise the kernel is set up here to continue it."""

    def __init__(self, pid: int) -> None:
        self._pidfd = None
        with contextlib.suppress(OSError):  # a kernel before 5.3, or it is gone
            self._pidfd = os.pidfd_open(pid)
        self._pid = pid
        self._ours = state_of(pid) != "T"
        self._ends: tuple[int, ...] = ()
        if self._ours:
            with contextlib.suppress(OSError):
                self._arm()

    def _arm(self) -> None:
        ends = os.pipe()
        for end in ends:
            os.set_inheritable(end, True)
            fcntl.fcntl(end, fcntl.F_SETSIG, signal.SIGCONT)  # first: without it the signal would be SIGIO, which kills
            fcntl.fcntl(end, fcntl.F_SETOWN, self._pid)
        self._ends = ends
        for end in ends:
            fcntl.fcntl(end, fcntl.F_SETFL, fcntl.fcntl(end, fcntl.F_GETFL) | os.O_ASYNC)

    def disarm(self) -> None:
        for end in self._ends:
            fcntl.fcntl(end, fcntl.F_SETFL, fcntl.fcntl(end, fcntl.F_GETFL) & ~os.O_ASYNC)

    def resume(self) -> None:
        """Continues the target if gdb left it stopped."""
        if self._ours:
            with contextlib.suppress(OSError):
                if self._pidfd is not None:
                    signal.pidfd_send_signal(self._pidfd, signal.SIGCONT)
                else:
                    os.kill(self._pid, signal.SIGCONT)


def watch(gdb: int, parents: list[int], deadline: float, polite_s: float) -> tuple[int, bool, bool]:
    """Waits until gdb ends, and ends it when nobody needs it any more. Returns its wait status, whether it detached
    properly, and whether it was told to end. The first of `parents` started this guard."""
    asked: float | None = None  # when gdb was asked to end
    detached = False
    while True:
        signalled = signal.sigtimedwait(_SIGNALS, TICK_S)
        number = signalled.si_signo if signalled is not None else 0
        detached = detached or number == signal.SIGUSR1
        ended, status = os.waitpid(gdb, os.WNOHANG)
        if ended:
            return status, detached or signal.SIGUSR1 in signal.sigpending(), asked is not None
        now = time.monotonic()
        told = number not in (0, signal.SIGCHLD, signal.SIGUSR1)
        orphaned = os.getppid() != parents[0] or any(state_of(pid) in ("T", "Z", "") for pid in parents)
        if asked is None and (told or orphaned or now > deadline):
            os.kill(gdb, signal.SIGTERM)
            asked = now
        elif asked is not None and now > asked + polite_s:
            os.kill(gdb, signal.SIGKILL)


def clear_debug_registers(pid: int) -> None:
    """Removes hardware breakpoints from every thread. A SIGTRAP that is being delivered is discarded."""
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


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parent", type=int, required=True, action="append")
    parser.add_argument("--target", type=int, required=True)
    parser.add_argument("--deadline", type=float, required=True)
    parser.add_argument("--hardware", action="store_true", help="gdb sets hardware breakpoints")
    parser.add_argument("--batch", action="store_true", help="gdb ends by itself, and sets breakpoints in code")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()

    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    with contextlib.suppress(PermissionError):
        os.setsid()
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    warm_up = spawn([], signal.SIGKILL)
    target = Target(options.target)
    gdb = spawn([word.replace("{warm_up}", str(warm_up)) for word in options.command], signal.SIGTERM)
    for descriptor in (0, 1):  # gdb's alone from here on: its end must show as end-of-file
        os.close(descriptor)
    polite_s = BATCH_POLITE_S if options.batch else POLITE_S
    status, detached, asked = watch(gdb, options.parent, time.monotonic() + options.deadline, polite_s)
    detached = detached or (options.batch and status == 0 and not asked)
    killed = os.WIFSIGNALED(status)
    if killed and options.hardware:
        clear_debug_registers(options.target)
    if not detached:
        target.resume()
    target.disarm()
    os.kill(warm_up, signal.SIGKILL)
    return 128 + os.WTERMSIG(status) if killed else os.WEXITSTATUS(status)


if __name__ == "__main__":
    raise SystemExit(main())
