"""Checks of one process: its user, its program, its debugger, and whether its memory can be read."""

import os
import struct
from collections.abc import Iterator

from memforensics.case.views import Check
from memforensics.errors import MemforensicsError
from memforensics.probes.host.machine import pod_setting
from memforensics.target import Process
from memforensics.target.parse import status_numbers

_MACHINES = {0x3E: "x86-64", 0xB7: "aarch64", 0x03: "i386"}  # e_machine, elf.h


def check_target(process: Process) -> Iterator[Check]:
    """All checks of one live process, which may be opened without access to its memory."""
    status = process.status()
    owner = next(iter(status_numbers(status, "Uid")[1:]), None)
    ours = owner == os.geteuid()
    about = process.stat()
    yield Check(
        f"process {process.pid}",
        True,
        f"{about.comm}, uid {'?' if owner is None else owner}, {about.threads} threads",
        essential=True,
    )
    yield _memory(process, ours)
    yield _machine(process)
    tracer = next(iter(status_numbers(status, "TracerPid")), 0)
    yield Check(
        "debugger",
        not tracer,
        f"traced by process {tracer}" if tracer else "none attached",
        f"end the debugger (process {tracer}) for `stacks`; everything else works with it" if tracer else "",
    )
    yield _namespace(process)


def _memory(process: Process, ours: bool) -> Check:
    name = "its memory"
    try:
        first = process.maps().mappings[0]
        process.memory.read(first.start, 1)
    except MemforensicsError as error:
        why = f"{error.what}; it runs as {'our own user' if ours else 'another user'}"
        return Check(name, False, why, "sudo memforensics ...; in a container: " + pod_setting("CAP_SYS_PTRACE"), True)
    except (IndexError, OSError) as error:
        return Check(name, False, f"no mapping could be read: {error}", "", True)
    return Check(name, True, "maps and mem can be read", essential=True)


def _machine(process: Process) -> Check:
    try:
        with open(process.proc.root / str(process.pid) / "exe", "rb") as program:
            header = program.read(20)
        machine = struct.unpack_from("<H", header, 18)[0]
    except (OSError, struct.error) as error:
        return Check("program", False, f"its file cannot be read: {error}", "sudo memforensics ...")
    word = _MACHINES.get(machine, f"e_machine {machine:#x}")
    wide = header[4:5] == b"\x02"
    ok = machine in (0x3E, 0xB7) and wide
    return Check(
        "program",
        ok,
        f"{'64' if wide else '32'}-bit {word}",
        "" if ok else "stacks and hooks are for x86-64 programs",
        True,
    )


def _namespace(process: Process) -> Check:
    try:
        same = process.proc.read_link(process.pid, "ns/pid") == os.readlink("/proc/self/ns/pid")
    except (MemforensicsError, OSError):
        return Check("its PID namespace", True, "cannot be read")
    return Check("its PID namespace", True, "ours" if same else "a container's, inside ours: there it has another PID")
