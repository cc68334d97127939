"""stacks: a few full stacks with gdb, each pause measured."""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

from memforensics.case.model import Loss, ProbeStatus
from memforensics.case.views import StacksView
from memforensics.errors import ProbeFailed, UsageError
from memforensics.jobs.observe.recorder import Recorder, new_meta
from memforensics.probes.gdb.capture import TIMED_OUT, Capture, Stop
from memforensics.probes.gdb.python_frames import python_stacks
from memforensics.probes.hooks import entry_state
from memforensics.symbols.address_space import AddressSpace, MappedModule
from memforensics.target import Process, open_process
from memforensics.target.describe import describe

MAX_COUNT = 1000


def stacks(
    pid: int,
    *,
    on: str | None = None,
    function: str | None = None,
    condition: str | None = None,
    count: int = 1,
    timeout_s: float = 30.0,
    max_stopped_s: float = 5.0,
    record: Path | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> StacksView:
    """Captures `count` stacks at a system call (`on`) or at a function's entry (`function`).

    NoSuchProcess, NotATarget, TargetGone, PermissionNeeded, ToolMissing, ProbeFailed, UsageError. A case file, if any,
    keeps what was captured before the error.
    """
    if (on is None) == (function is None):
        raise UsageError("stacks needs either --on or --function", enable=f"memforensics stacks {pid} --on mmap")
    if not 1 <= count <= MAX_COUNT:
        raise UsageError(f"--count must be between 1 and {MAX_COUNT}")
    name = on or function or ""
    if not re.fullmatch(r"[\w.!:@~<>,&*() -]+", name) or (on is not None and not re.fullmatch(r"\w+", on)):
        raise UsageError(f"{name!r} is not the name of a system call or function")
    with contextlib.closing(open_process(pid)) as process, contextlib.ExitStack() as stack:
        recorder = stack.enter_context(Recorder(new_meta("stacks", pid), record)) if record is not None else None
        target = describe(process)
        space = AddressSpace(process)
        address = _entry_address(process, space, function) if function is not None else None
        if address is not None:
            warn(
                f"{function}: a hardware breakpoint stops every call. If gdb is killed with SIGKILL, a call before the "
                "breakpoint is removed can end the process. --on SYSCALL does not have this risk."
            )
        stop = Stop(
            function=name.rpartition("!")[2],
            address=address,
            condition=condition,
            count=count,
            timeout_s=timeout_s,
            max_stopped_s=max_stopped_s,
        )
        python, why_no_python = python_stacks(process, space)
        capture = Capture(process, stop, space=space, python=python)
        if why_no_python:
            capture.result.losses.append(Loss(probe="gdb", what=f"Python frames ({why_no_python})", count=1))
        try:
            result = capture.run()
        finally:
            if recorder is not None:
                got = capture.result
                recorder.put([target, *got.captures, *got.pauses, *got.losses])
        if recorder is not None:
            recorder.put([ProbeStatus(name="gdb", pid=pid, status="ok")])
    call = f"{name} where {condition}" if condition else name
    return StacksView(
        target,
        tuple(result.captures),
        tuple(result.pauses),
        tuple(result.losses),
        call=call,
        timeout_s=timeout_s,
        why_nothing=next((loss.what for loss in result.losses if loss.what != TIMED_OUT), ""),
    )


def _entry_address(process: Process, space: AddressSpace, name: str) -> int:
    """The run-time address of the entry of a function, `NAME` or `LIBRARY!NAME`. UsageError if there is none,
    ProbeFailed if its code differs from the file."""
    library, _, symbol_name = name.rpartition("!")
    found = _find_function(space, library, symbol_name)
    if found is None:
        raise UsageError(f"no function {name!r} in process {process.pid}", enable="--function LIBRARY!NAME")
    module, vaddr, size = found
    entry = entry_state(process, space, module, vaddr, size)
    if entry.state != "unchanged":
        what = {"patched": "was patched in memory", "unread": "cannot be compared with its file"}.get(
            entry.state, "already has a breakpoint"
        )
        raise ProbeFailed(
            f"cannot set a breakpoint at {module.name}!{symbol_name}: its code {what}",
            why=f"the file has {entry.original.hex() or '?'}, memory has {entry.live.hex() or '?'}",
            enable=f"memforensics hooks {process.pid}   (shows who patched it), or stop at a system call: --on mmap",
        )
    return entry.address


def is_library(text: str, name: str, path: str, soname: str | None) -> bool:
    """Whether the text names this library: its path, file name or soname, or the start of its file name before a dot or
    hyphen. libucs.so.0 and libucs both name libucs.so.0.0.0, and libucs-3ab1.so.0.0.0 of a wheel."""
    return text in (path, name, soname) or name.startswith((f"{text}.", f"{text}-"))


def _find_function(space: AddressSpace, library: str, name: str) -> tuple[MappedModule, int, int] | None:
    """The function, preferring an exported definition, because that is the one that other libraries call."""
    later: tuple[MappedModule, int, int] | None = None
    for module in space.modules:
        elf = space.elf(module)
        if elf is None or (library and not is_library(library, module.name, module.path, elf.soname)):
            continue
        symbol = elf.find_symbol(name)
        if symbol is None:
            continue
        if elf.defines(name) or library:
            return module, symbol.start, symbol.size
        later = later or (module, symbol.start, symbol.size)
    return later
