"""Python stacks of live processes, from outside and in the kernel, against what the interpreter itself says."""

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import LEAKERS, Child, python, running
from processes import interpreters as every_version

from memforensics.errors import MemforensicsError
from memforensics.probes.ebpf.loader.engine import Engine
from memforensics.runtimes.cpython.code import CodeReader
from memforensics.runtimes.cpython.find import CPythonRuntime, find_runtime
from memforensics.runtimes.cpython.kernel import PROCESS, pack_process, pid_namespace
from memforensics.runtimes.cpython.offsets import known_versions
from memforensics.runtimes.cpython.stacks import ENTRY, SHIM, thread_stacks
from memforensics.symbols.address_space import AddressSpace
from memforensics.target import Process, open_process

pytestmark = pytest.mark.live
FOUND, TRUNCATED, TOO_MANY, SEVERAL = 1, 2, 8, 16  # struct py_stack.flags of pyframes.bpf.h
Expected = dict[int, tuple[str, list[tuple[str, str, int]]]]  # tid -> shape, frames


def interpreters() -> list[str]:
    """The running Python, pyenv's and the distribution's, of the versions that are known."""
    found = {os.path.realpath(path) for path in every_version().values()}
    found |= {os.path.realpath(path) for path in Path("/usr/bin").glob("python3.[0-9]*") if path.name.count("-") == 0}
    supported = {f"python{major}.{minor}" for major, minor in known_versions()}
    return sorted(path for path in found if Path(path).name in supported)


def label(path: str) -> str:
    return f"{Path(path).parts[-3]}-{Path(path).name}"


@pytest.fixture(params=interpreters(), ids=label)
def target(request: pytest.FixtureRequest) -> Iterator[tuple[Child, Expected]]:
    with running(python("cpy_stacks.py", interpreter=request.param), ready=None) as child:
        yield child, expected_stacks(child, 9)


def expected_stacks(child: Child, count: int) -> Expected:
    expected: Expected = {}
    while len(expected) < count:
        said: dict[str, Any] = json.loads(child.wait_for("stack ")[6:])
        expected[said["tid"]] = (said["shape"], [tuple(frame) for frame in said["frames"]])
    return expected


def opened(child: Child) -> tuple[Process, CPythonRuntime]:
    process = open_process(child.pid)
    runtime = find_runtime(process, AddressSpace(process))
    assert runtime is not None
    return process, runtime


def named(frames: Any) -> list[tuple[str, str, int]]:
    return [(frame.function, frame.file, frame.line) for frame in frames]


def test_stacks_from_outside_are_those_the_interpreter_tells(target: tuple[Child, Expected]) -> None:
    child, expected = target
    child.tell("late")
    expected |= expected_stacks(child, 1)
    process, runtime = opened(child)
    codes = CodeReader(process.memory, runtime.offsets)
    seen = {stack.tid: stack for stack in thread_stacks(runtime, process.memory)}
    assert set(expected) | {child.pid} == set(seen)
    for tid, (shape, frames) in expected.items():
        assert named(seen[tid].python_frames(codes)) == frames, shape
        assert seen[tid].steady
    assert {(shape, tuple(f[0] for f in frames[:9])) for shape, frames in expected.values()} >= {
        (shape, ("leaf", "f8", "f7", "f6", "f5", "f4", "f3", "f2", "f1")) for shape in ("plain", "late")
    }
    assert all(start < end and runtime.is_eval(start) for start, end in runtime.eval_ranges)
    process.close()


def test_stacks_agree_with_pystack(target: tuple[Child, Expected]) -> None:
    child, expected = target
    process, runtime = opened(child)
    pystack = Path(sys.executable).with_name("pystack")
    os.kill(child.pid, signal.SIGSTOP)
    try:
        said = subprocess.run(
            [pystack, "remote", "--no-block", str(child.pid)], capture_output=True, text=True, check=True
        ).stdout
        ours = {
            stack.tid: named(stack.python_frames(CodeReader(process.memory, runtime.offsets)))
            for stack in thread_stacks(runtime, process.memory)
        }
    finally:
        os.kill(child.pid, signal.SIGCONT)
    theirs: dict[int, list[tuple[str, int]]] = {}
    tid = 0
    for line in said.splitlines():
        if line.startswith("Traceback for thread "):
            tid = int(line.split()[3])
            theirs[tid] = []
        elif line.strip().startswith("(Python) File "):
            _, _, rest = line.partition('", line ')
            number, _, function = rest.partition(", in ")
            theirs[tid].insert(0, (function.strip(), int(number)))
    assert set(theirs) == set(ours) >= set(expected)
    for tid, frames in theirs.items():
        # pystack leaves out functions whose names are no Latin-1
        mine = [(name.rpartition(".")[2], line) for name, _, line in ours[tid] if max(map(ord, name)) < 256]
        assert mine == [(name.rpartition(".")[2], line) for name, line in frames]
    process.close()


Walk = tuple[int, list[tuple[int, int, int]]]  # flags; code, instruction, flags


def kernel_events(engine: Engine, wanted: set[int], rounds: int) -> dict[int, list[Walk]]:
    """tid -> (flags, frames) of its events, at least `rounds` for each wanted tid."""
    seen: dict[int, list[Walk]] = {tid: [] for tid in wanted}
    for _ in range(300):
        for event in engine.events(0.1):
            _, tid, count, flags = struct.unpack_from("<4I", event)
            frames = list(struct.Struct("<QiI").iter_unpack(event[16 : 16 + 16 * count]))
            seen.setdefault(tid, []).append((flags, frames))
        if all(len(seen[tid]) >= rounds for tid in wanted):
            break
    return seen


@contextlib.contextmanager
def walking(packed: dict[int, bytes]) -> Iterator[Engine]:
    """The test's own BPF program, armed for these processes."""
    engine = Engine(str(LEAKERS / "cpy_walk.bpf.c"), {})
    try:
        engine.open_ring("events")
        table = engine.table("py_processes", struct.Struct("<I"), PROCESS)
        for pid, value in packed.items():
            assert table.put(struct.pack("<I", pid), value)
        engine.attach({"syscalls:sys_enter_mmap": "on_mmap"})
        yield engine
    finally:
        engine.close()


@pytest.mark.needs_bpf
def test_the_kernel_walks_the_same_stacks(target: tuple[Child, Expected]) -> None:
    child, expected = target
    process, runtime = opened(child)
    with walking({child.pid: pack_process(runtime)}) as engine:
        child.tell("late")  # a thread that starts after the attach
        expected |= expected_stacks(child, 1)
        engine.events()
        seen = kernel_events(engine, set(expected), rounds=20)
    codes = CodeReader(process.memory, runtime.offsets)
    for tid, (shape, frames) in expected.items():
        assert_walks(seen[tid], codes, frames, shape)
        marks = [mark for _, _, mark in seen[tid][-1][1]]
        assert marks[-1] in (ENTRY, SHIM)
        if runtime.version < (3, 11):
            assert set(marks) == {ENTRY}
    process.close()


def assert_walks(walks: list[Walk], codes: CodeReader, frames: list[tuple[str, str, int]], shape: str) -> None:
    """Every walk from the leaf function is exactly `frames`; nearly all are from there."""
    named_walks = Counter(
        (flags, tuple(named(codes.frame(code, at) for code, at, mark in raw if not mark & SHIM)))
        for flags, raw in walks
        if flags
    )
    from_leaf = {walk: times for walk, times in named_walks.items() if walk[1][:1] == tuple(frames[:1])}
    assert list(from_leaf) == [(FOUND, tuple(frames))], shape
    assert sum(from_leaf.values()) >= 15


@pytest.mark.needs_bpf
def test_a_sub_interpreter_comes_before_the_main_one(target: tuple[Child, Expected]) -> None:
    child, _ = target
    process, runtime = opened(child)
    child.tell("sub")
    ((tid, (_, frames)),) = expected_stacks(child, 1).items()
    with walking({child.pid: pack_process(runtime)}) as engine:
        flags, raw = kernel_events(engine, {tid}, rounds=5)[tid][-1]
    codes = CodeReader(process.memory, runtime.offsets)
    frames_of = [codes.frame(code, at) for code, at, mark in raw if not mark & SHIM]
    names = [frame and frame.function for frame in frames_of]
    assert flags == FOUND | SEVERAL
    assert names[: len(frames)] == [frame[0] for frame in frames]
    assert "in_sub_interpreter" in [name for name in names[len(frames) :] if name]
    process.close()


@pytest.mark.needs_bpf
def test_thread_ids_of_a_pid_namespace_of_its_own() -> None:
    command = ["unshare", "--pid", "--fork", "--kill-child", *python("cpy_stacks.py")]
    with running(command, ready=None) as outer:
        expected = expected_stacks(outer, 9)
        pid = int(Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text())
        process = open_process(pid)
        runtime = find_runtime(process, AddressSpace(process))
        assert runtime is not None
        inner_tids = {tid: inner_tid(pid, tid) for tid in process.threads()}
        assert pid_namespace(process) != (0, 0)
        with walking({pid: pack_process(runtime, pid_namespace(process))}) as engine:
            seen = kernel_events(engine, {tid for tid in inner_tids if tid != pid}, rounds=20)
        codes = CodeReader(process.memory, runtime.offsets)
        for tid, inner in inner_tids.items():
            if inner in expected:
                assert_walks(seen[tid], codes, expected[inner][1], expected[inner][0])
        process.close()


def inner_tid(pid: int, tid: int) -> int:
    """A thread's number in its own PID namespace."""
    status = Path(f"/proc/{pid}/task/{tid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1])


@pytest.mark.needs_bpf
def test_losses_of_the_kernels_walk_are_told() -> None:
    """More than 128 frames: the outermost are missing. More than 256 thread states: old threads are not found."""
    with running(python("cpy_stacks.py"), ready=None) as child:
        expected = expected_stacks(child, 9)
        (old,) = [tid for tid, (shape, _) in expected.items() if shape == "plain"]
        child.tell("idle 300")
        child.wait_for("idle")
        child.tell("deeper 300")
        ((deep, (_, frames)),) = expected_stacks(child, 1).items()
        process, runtime = opened(child)
        with walking({child.pid: pack_process(runtime)}) as engine:
            seen = kernel_events(engine, {deep, old}, rounds=3)
        codes = CodeReader(process.memory, runtime.offsets)
        assert all(walk == (TOO_MANY, []) for walk in seen[old])
        for flags, raw in seen[deep]:
            assert (flags, len(raw)) == (FOUND | TRUNCATED, 128)
            assert named(codes.frame(code, at) for code, at, _ in raw) == frames[:128]
        from_outside = {stack.tid: stack for stack in thread_stacks(runtime, process.memory)}
        assert len(from_outside) == 9 + 300 + 1 + 1
        assert named(from_outside[deep].python_frames(codes)) == frames
        process.close()


def test_a_process_without_python_has_no_runtime() -> None:
    with running(["/bin/cat"], ready=None) as child:
        process = open_process(child.pid)
        try:
            assert find_runtime(process, AddressSpace(process)) is None
        except MemforensicsError as error:
            pytest.fail(str(error))
        finally:
            process.close()
