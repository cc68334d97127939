"""The identity of a process with its live environment, which needs its symbols; and how this program is started."""

import os
import shutil
import sys
from pathlib import Path

from memforensics.case.model import Target
from memforensics.errors import MemforensicsError
from memforensics.symbols.address_space import AddressSpace
from memforensics.target import Process
from memforensics.target.describe import describe

_ENVIRON = ("environ", "__environ", "_environ")  # glibc's three names of one variable (posix/environ.c)


def identify(process: Process) -> Target:
    """The Target. Its environment is the live one if libc's `environ` can be found and read, else that at exec."""
    return describe(process, environ_address=_environ_address(process))


def _environ_address(process: Process) -> int | None:
    try:
        space = AddressSpace(process)
    except MemforensicsError:
        return None  # describe() reports what is forbidden
    for module in space.modules:
        if not module.name.startswith(("libc.", "libc-", "ld-musl")):
            continue
        elf = space.elf(module)
        symbol = next((s for s in map(elf.find_symbol, _ENVIRON) if s is not None), None) if elf else None
        if symbol is not None:
            return space.address(module, symbol.start)
    return None


def program_name() -> str:
    """How to start this program, for the commands that a report prints: by its name if the shell finds it, else by its
    path; under sudo with sudo and the full path, because sudo has its own search path."""
    started = Path(sys.argv[0]).absolute()
    if started.name == "__main__.py":
        name = f"{sys.executable} -m memforensics"
    elif started.name != "memforensics":
        name = "memforensics"  # used as a library
    elif os.geteuid() == 0 and "SUDO_UID" in os.environ:
        name = str(started)
    else:
        found = shutil.which("memforensics")
        name = "memforensics" if found is not None and Path(found).resolve() == started.resolve() else str(started)
    return f"sudo {name}" if os.geteuid() == 0 and "SUDO_UID" in os.environ else name
