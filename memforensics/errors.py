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

import os
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
