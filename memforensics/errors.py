"""The error tree. Each class has an exit code; each error says what happened, why, and which command helps.

    MemforensicsError            3
    ├── UsageError               2   the command line is wrong
    ├── TargetError              3
    │   ├── NoSuchProcess            no process has that PID
    │   ├── TargetGone               it exited, or was replaced by exec, while it was observed
    │   ├── NotATarget               a kernel thread or a zombie
    │   └── UnknownForm              a file of /proc/PID that cannot be parsed
    ├── PermissionNeeded         3   the process may not be read; names the privilege
    ├── ToolMissing              3   bcc, bpftrace, gdb, memray or tracefs is missing
    ├── ProbeFailed              3   an available probe did not work
    ├── CaseError                3   a case file that cannot be read or written
    │   └── CaseExists               a file of that name exists
    └── Interrupted            130   Ctrl-C; the case is kept

Only `memforensics.cli.app` and `memforensics.__main__` turn an error into an exit. This module imports nothing of the
project.
"""

import errno
import os
import resource
import shlex
import sys
from pathlib import Path

LIST_TARGETS = "memforensics diagnose   (without a PID, it lists likely targets)"


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
        super().__init__(f"no process has PID {pid}", enable=LIST_TARGETS)
        self.pid = pid


class TargetGone(TargetError):
    """The process exited, was replaced by exec, or its PID was given to another process while it was observed."""

    def __init__(self, pid: int, how: str = "it exited") -> None:
        super().__init__(f"process {pid} is gone: {how}")
        self.pid, self.how = pid, how


class NotATarget(TargetError):
    """A kernel thread or a zombie: it has no memory of its own."""


class UnknownForm(TargetError):
    """A file of /proc/PID that is truncated, damaged, or in the format of another kernel."""

    def __init__(self, name: str, why: str = "") -> None:
        super().__init__(f"/proc/PID/{name} cannot be parsed", why=why)


class PermissionNeeded(MemforensicsError):
    """EACCES or EPERM. `privilege` names what is missing, such as CAP_SYS_PTRACE. The help is this command under sudo
    (`as_root`), or `grant`: how to get the privilege without sudo."""

    def __init__(self, what: str, *, privilege: str, why: str = "", enable: str = "", grant: str = "") -> None:
        grant = grant or f"grant {privilege}; see: memforensics doctor"
        if not enable:
            enable = f"{as_root()}   (or {grant})" if os.geteuid() != 0 else grant
        super().__init__(what, why=why or f"needs {privilege}", enable=enable)
        self.privilege = privilege


class ToolMissing(MemforensicsError):
    """A program, library or file system that the command needs is missing."""


class ProbeFailed(MemforensicsError):
    """An available probe did not work."""


class CaseError(MemforensicsError):
    """A case file that cannot be opened, is not a case, or is of a newer version."""


class CaseExists(CaseError):
    """A new case would overwrite an existing file."""


class Interrupted(MemforensicsError):
    exit_code = 130

    def __init__(self, case_path: str | None = None) -> None:
        super().__init__(f"interrupted; the evidence so far is in {case_path}" if case_path else "interrupted")


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Messages of libraries that got no memory.
_NO_MEMORY_WORDS = ("failed to map segment", "Cannot allocate memory", "can't start new thread", "cannot allocate")


def refusal(error: BaseException) -> MemforensicsError | None:
    """The error to report if the exception, or one of its causes, says that the system refused a resource: a file
    descriptor, memory, or disk space. None for any other exception."""
    at: BaseException | None = error
    while at is not None:
        number = at.errno if isinstance(at, OSError) else None
        if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in str(at):
            most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            why = f"its limit is {most}" if number != errno.ENFILE else "the whole system has reached its limit"
            return MemforensicsError("too many open files", why=why, enable="ulimit -n 4096")
        if isinstance(at, MemoryError) or number == errno.ENOMEM or any(w in str(at) for w in _NO_MEMORY_WORDS):
            return MemforensicsError(
                "not enough memory for memforensics", why=str(at), enable="ulimit -v unlimited, or a larger limit"
            )
        if isinstance(at, OSError) and number in _DISK_FULL:
            where = str(at.filename) if at.filename else "standard output"
            return MemforensicsError(f"cannot write to {where}", why=at.strerror or str(at))
        at = at.__cause__ or at.__context__
    return None


def as_root() -> str:
    """The command line of this process under sudo. The program has its full path, because the PATH of sudo does not
    contain a virtual environment."""
    program, *words = sys.argv
    path = Path(program)
    if path.name == "__main__.py":
        command = [sys.executable, "-m", "memforensics", *words]
    elif path.name == "memforensics":
        command = [str(path.absolute()), *words]
    else:
        return "sudo memforensics ..."  # a library call
    return shlex.join(["sudo", *command])
