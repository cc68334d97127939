"""The error tree. Each class owns its exit code and says what happened, why, and the command that helps.

    MemforensicsError            3
    ├── UsageError               2   the words of the command are off
    ├── TargetError              3
    │   ├── NoSuchProcess            never there, or its PID is free
    │   ├── TargetGone               it left (or became another process) while it was observed
    │   ├── NotATarget               a kernel thread, a zombie
    │   └── UnknownForm              a file of /proc/PID that does not read as the kernel writes it
    ├── PermissionNeeded         3   there, but not for us; names the privilege
    ├── ToolMissing              3   bcc, bpftrace, gdb, memray, tracefs
    ├── ProbeFailed              3   there and allowed, and still it did not work
    ├── CaseError                3   a case file that cannot be read or written
    │   └── CaseExists               there is a file of that name
    └── Interrupted            130   Ctrl-C; the case is kept

Only `memforensics.__main__` turns one into an exit. A leaf: imports nothing of the project.
"""

import errno
import os
import resource
import shlex
import sys
from pathlib import Path


class MemforensicsError(Exception):
    """What happened (one line), why (may be empty), and `enable`: the exact command or setting that helps."""

    exit_code = 3

    def __init__(self, what: str, *, why: str = "", enable: str = "") -> None:
        super().__init__(what)
        self.what, self.why, self.enable = what, why, enable

    def __str__(self) -> str:
        return f"{self.what} ({self.why})" if self.why else self.what


class UsageError(MemforensicsError):
    exit_code = 2


class TargetError(MemforensicsError):
    """Something about the process itself."""


class NoSuchProcess(TargetError):
    def __init__(self, pid: int) -> None:
        super().__init__(f"no process has PID {pid}", enable="leave the PID out: the command then lists likely targets")
        self.pid = pid


class TargetGone(TargetError):
    """The process left, or exec replaced it, or its PID was given to another while it was observed."""

    def __init__(self, pid: int, how: str = "it exited") -> None:
        super().__init__(f"process {pid} is gone: {how}")
        self.pid, self.how = pid, how


class NotATarget(TargetError):
    """A kernel thread or a zombie: there is no memory of its own to look at."""


class UnknownForm(TargetError):
    """A file of /proc/PID that is cut off, damaged, or of a kernel that writes it otherwise."""

    def __init__(self, name: str, why: str = "") -> None:
        super().__init__(f"/proc/PID/{name} does not have its usual form", why=why)


class PermissionNeeded(MemforensicsError):
    """EACCES or EPERM. `privilege` is the name of what is missing, such as CAP_SYS_PTRACE. What helps is this command
    under sudo (`as_root`), or `grant`: what gives the privilege without it."""

    def __init__(self, what: str, *, privilege: str, why: str = "", enable: str = "", grant: str = "") -> None:
        grant = grant or f"grant {privilege}; see: memforensics doctor"
        if not enable:
            enable = f"{as_root()}   (or {grant})" if os.geteuid() != 0 else grant
        super().__init__(what, why=why or f"needs {privilege}", enable=enable)
        self.privilege = privilege


class ToolMissing(MemforensicsError):
    """A program, library or file system that the command needs is not here."""


class ProbeFailed(MemforensicsError):
    """A probe that is available did not work."""


class CaseError(MemforensicsError):
    """A case file that cannot be opened, is not one, or is of a newer version."""


class CaseExists(CaseError):
    """A new case would overwrite a file."""


class Interrupted(MemforensicsError):
    exit_code = 130

    def __init__(self, case_path: str | None = None) -> None:
        super().__init__(f"interrupted; what was collected is in {case_path}" if case_path else "interrupted")


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Of libraries that were refused memory or descriptors, and say so in their own words.
_NO_MEMORY_WORDS = ("failed to map segment", "Cannot allocate memory", "can't start new thread", "cannot allocate")


def refusal(error: BaseException) -> MemforensicsError | None:
    """What the system refused us, where an exception, or one that it came from, says so: no file descriptor, no
    memory, no room for the output. None for any other."""
    at: BaseException | None = error
    while at is not None:
        number = at.errno if isinstance(at, OSError) else None
        if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in str(at):
            most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            why = f"this process may have {most} open" if number != errno.ENFILE else "of the whole system"
            return MemforensicsError("too many open files", why=why, enable="ulimit -n 4096")
        if isinstance(at, MemoryError) or number == errno.ENOMEM or any(w in str(at) for w in _NO_MEMORY_WORDS):
            return MemforensicsError(
                "not enough memory for memforensics", why=str(at), enable="ulimit -v unlimited, or a larger limit"
            )
        if isinstance(at, OSError) and number in _NO_ROOM:
            where = str(at.filename) if at.filename else "standard output"
            return MemforensicsError(f"cannot write to {where}", why=at.strerror or str(at))
        at = at.__cause__ or at.__context__
    return None


def as_root() -> str:
    """The command line of this process under sudo. The program has its full path: sudo has a PATH of its own, without
    the folder of a virtual environment."""
    program, *words = sys.argv
    path = Path(program)
    if path.name == "__main__.py":
        command = [sys.executable, "-m", "memforensics", *words]
    elif path.name == "memforensics":
        command = [str(path.absolute()), *words]
    else:
        return "sudo memforensics ..."  # a library call
    return shlex.join(["sudo", *command])
