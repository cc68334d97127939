"""The unwinder on real, stopped-in-a-syscall processes with exactly known chains of calls."""

import contextlib
import dataclasses
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import Child, compiled, python, running

from memforensics.case.model import Stack
from memforensics.symbols.address_space import AddressSpace
from memforensics.symbols.names.symbolizer import Symbolizer
from memforensics.symbols.unwind.cfi import Rule
from memforensics.symbols.unwind.unwinder import Registers, Unwound, unwind
from memforensics.target import Process, open_process
from memforensics.target.memory import BytesMemory

pytestmark = pytest.mark.live

LEVELS = ["before_read", *(f"level_{n}" for n in range(12, 0, -1))]
OUTERMOST = ["__libc_start_call_main", "__libc_start_main", "_start"]
READ_SYSCALL = "0"
REGISTERS = ("-ex", "info registers " + " ".join(field.name for field in dataclasses.fields(Registers)))


def blocked_in_read(process: Process, tid: int) -> Registers:
    """pc and rsp of a thread once it is blocked in read(2), as /proc/PID/task/TID/syscall has them."""
    while True:
        words = process.read_text(f"task/{tid}/syscall").split()
        if words[0] == READ_SYSCALL:
            return Registers(rip=int(words[8], 16), rsp=int(words[7], 16))


@contextmanager
def stopped(mode: str, *flags: str) -> Iterator[tuple[Process, AddressSpace, Registers, Child]]:
    program = compiled("sym_chain.c", "-O2", "-fomit-frame-pointer", *flags)
    with running([program, mode]) as child:
        process = open_process(child.pid)
        try:
            tid = child.pid
            while mode == "thread" and (tid := process.threads()[-1]) == child.pid:
                pass
            registers = blocked_in_read(process, tid)
            yield process, AddressSpace(process), registers, child
        finally:
            process.close()


def names(space: AddressSpace, unwound: Unwound) -> list[str | None]:
    symbolizer = Symbolizer(space)
    return [symbolizer.unwound(frame).function for frame in unwound.frames]


def test_a_chain_unwinds_to_its_start_exactly() -> None:
    with stopped("chain") as (process, space, registers, _):
        unwound = unwind(registers, process.memory, space)
        assert unwound.why_ended == "outermost"
        assert names(space, unwound)[1:] == [*LEVELS, "main", *OUTERMOST]
        assert not any(frame.guessed for frame in unwound.frames)
        symbolizer = Symbolizer(space)
        leaf = symbolizer.unwound(unwound.frames[0])
    assert leaf.module is not None
    assert "libc" in Path(leaf.module).name


def test_lines_of_a_deleted_program_come_after_it_ended(tmp_path: Path) -> None:
    program = tmp_path / "program"
    shutil.copy(compiled("sym_chain.c", "-O2", "-fomit-frame-pointer"), program)
    with running([program, "chain"]) as child, contextlib.closing(open_process(child.pid)) as process:
        registers = blocked_in_read(process, child.pid)
        program.unlink()
        space = AddressSpace(process)
        symbolizer = Symbolizer(space)
        unwound = unwind(registers, process.memory, space)
        frames = tuple(symbolizer.unwound(frame) for frame in unwound.frames)
    stack, is_all = symbolizer.with_lines(Stack(frames=frames))
    assert is_all
    caller = stack.frames[1]
    source = (Path(__file__).parent.parent / "leakers" / "sym_chain.c").read_text().splitlines()
    assert caller.file is not None
    assert caller.line is not None
    assert Path(caller.file).name == "sym_chain.c"
    assert "read(0" in source[caller.line - 1]


def test_a_thread_ends_where_clone_began_it() -> None:
    with stopped("thread") as (process, space, registers, _):
        unwound = unwind(registers, process.memory, space)
        assert unwound.complete
        assert names(space, unwound)[1 : len(LEVELS) + 2] == [*LEVELS, "in_thread"]


@pytest.mark.parametrize("mode", ["handler", "altstack"])
def test_through_a_signal_handler(mode: str) -> None:
    with stopped(mode) as (process, space, registers, _):
        unwound = unwind(registers, process.memory, space)
        found = names(space, unwound)
        assert unwound.complete
        assert found[1 : len(LEVELS) + 2] == [*LEVELS, "on_signal"]
        trampoline = unwound.frames[len(LEVELS) + 2]
        assert trampoline.rule is not None
        assert trampoline.rule.signal_frame
        assert found[len(LEVELS) + 2] in ("<signal handler called>", "__restore_rt")
        assert found[-5:] == ["raises", "main", *OUTERMOST]


def test_what_a_signal_interrupted_is_looked_up_at_its_very_pc() -> None:
    """The fault is at a function's first byte: one byte before is another function."""
    with stopped("fault") as (process, space, registers, _):
        unwound = unwind(registers, process.memory, space)
        found = names(space, unwound)
        assert found[-5:] == ["faults_at_once", "main", *OUTERMOST]
        assert not unwound.frames[-5].is_return
        assert unwound.frames[-4].is_return


def test_a_copy_of_the_stacks_top_gives_the_same() -> None:
    with stopped("chain") as (process, space, registers, _):
        whole = unwind(registers, process.memory, space)
        copy = BytesMemory(registers.rsp, process.memory.read(registers.rsp, 2048))
        part = unwind(registers, copy, space)
    assert part.why_ended == "unreadable"
    assert not part.complete
    assert 3 < len(part.frames) < len(whole.frames)
    assert part.frames == whole.frames[: len(part.frames)]


def test_functions_without_cfi_are_guessed_and_marked() -> None:
    with stopped("nocfi") as (process, space, registers, _):
        unwound = unwind(registers, process.memory, space)
        found = names(space, unwound)
    assert unwound.complete
    assert found[1:] == ["before_read", "no_cfi_2", "no_cfi_1", *LEVELS[1:], "main", *OUTERMOST]
    assert [name for name, frame in zip(found, unwound.frames, strict=True) if frame.guessed] == [
        "no_cfi_1",
        "level_12",
    ]


@pytest.mark.parametrize("strip", [(), ("-s",)])
def test_a_whole_program_without_cfi(strip: tuple[str, ...]) -> None:
    flags = ("-fno-asynchronous-unwind-tables", "-fno-unwind-tables")
    with stopped("chain", *flags, *strip) as (process, space, registers, child):
        unwound = unwind(registers, process.memory, space)
        found = names(space, unwound)
        program = os.readlink(f"/proc/{child.pid}/exe")
        own = [frame for frame in unwound.frames if frame.module and frame.module.path == program]
    assert unwound.complete
    assert len(own) == len(LEVELS) + 2  # and main and _start
    assert all(frame.guessed for frame in own[1:-1])
    if not strip:
        assert found[1:] == [*LEVELS, "main", *OUTERMOST]


def test_a_tail_call_between_functions_without_cfi() -> None:
    """Whoever is on the stack called another function than the one that runs; what that one jumped to, it reached."""
    flags = ("-O2", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables")
    with running([compiled("sym_tail.c", *flags)]) as child:
        process = open_process(child.pid)
        try:
            space = AddressSpace(process)
            unwound = unwind(blocked_in_read(process, child.pid), process.memory, space)
            found = names(space, unwound)
        finally:
            process.close()
    assert unwound.complete
    assert found[1:] == ["last", *["descend"] * 4, "main", *OUTERMOST]


class WithoutCfiOf(AddressSpace):
    """A space in which one library has no unwind table."""

    blind = ""

    def rule(self, pc: int) -> Rule | None:
        found = self.find(pc)
        return None if found is not None and self.blind and self.blind in found[0].name else super().rule(pc)


def test_a_real_rust_wheel_without_its_cfi() -> None:
    """Five Rust frames in a row between two pieces of CPython: guessed, they are what CFI says."""
    pytest.importorskip("rpds")
    with running(python("sym_rust_hash.py")) as child:
        process = open_process(child.pid)
        try:
            registers = blocked_in_read(process, child.pid)
            space = WithoutCfiOf(process)
            expected = unwind(registers, process.memory, space)
            space.blind = "rpds"
            guessed = unwind(registers, process.memory, space)
        finally:
            process.close()
    in_rust = [frame for frame in expected.frames if frame.module is not None and "rpds" in frame.module.name]
    assert expected.complete
    assert len(in_rust) >= 3
    assert not any(frame.guessed for frame in expected.frames)
    assert [frame.pc for frame in guessed.frames] == [frame.pc for frame in expected.frames]
    assert sum(frame.guessed for frame in guessed.frames) == len(in_rust)


@pytest.mark.needs_gdb
@pytest.mark.parametrize("mode", ["chain", "thread", "handler", "fault", "aligned"])
def test_gdb_sees_the_same_pcs(mode: str) -> None:
    """gdb also shows functions that were inlined (with their caller's pc) or left by a tail call (with a pc that is on
    no stack), and prints no pc where one is exact."""
    quiet = ["-iex", "set may-insert-breakpoints off", "-iex", "set debuginfod enabled off"]
    whole = ["-iex", "set backtrace past-main on", "-iex", "set backtrace past-entry on"]
    with stopped(mode) as (process, space, _, child):
        commands = [
            "-ex",
            "thread 2" if mode == "thread" else "thread 1",
            *REGISTERS,
            "-ex",
            "echo chain:\\n",
            "-ex",
            "bt",
        ]
        report = subprocess.run(
            ["gdb", "-nx", "-batch", *quiet, *whole, "-p", str(child.pid), *commands],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        shown, _, report = report.partition("chain:\n")
        values = dict(re.findall(r"^(r\w+) +(0x[0-9a-f]+) ", shown, re.MULTILINE))
        unwound = unwind(Registers(**{name: int(text, 16) for name, text in values.items()}), process.memory, space)
    assert unwound.complete
    if mode == "aligned":
        assert "deref-rbp" in {frame.rule.cfa_base for frame in unwound.frames if frame.rule is not None}
    theirs = [int(pc, 16) for pc in re.findall(r"^#\d+ +(0x[0-9a-f]+) in ", report, re.MULTILINE)]
    ours = [frame.pc for frame in unwound.frames]
    both = [pc for pc in ours if pc in theirs]
    assert len(both) > len(LEVELS)
    assert both == [pc for pc in dict.fromkeys(theirs) if pc in ours], report
    without_pc = len(re.findall(r"^#\d+ +(?!0x)", report, re.MULTILINE))
    assert len(ours) - len(both) <= without_pc, report
