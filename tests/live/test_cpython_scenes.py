"""Threads whose Python is not one plain stack: several interpreters, greenlets, forks. Each stack that is told is the
one that the interpreter said, or has frames less, and that is counted: never a wrong name."""

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import Child, compiled, python, running
from test_cpython_shapes import Named, of_python
from test_cpython_stacks import interpreters

from memforensics.case.model import AllocationSite, Loss
from memforensics.probes.base import Budget
from memforensics.probes.ebpf.mmap.probe import MmapTrace, mmap_trace
from memforensics.probes.ebpf.stacks.python_frames import DISAGREE, NAMELESS, SEVERAL
from memforensics.target import open_process

pytestmark = [pytest.mark.live, pytest.mark.needs_bpf]

PYTHONS = [python("cpy_scenes.py", interpreter=interpreter) for interpreter in interpreters()]
Expected = Counter[tuple[int, tuple[Named, ...]]]  # process, stack -> bytes


@contextlib.contextmanager
def traced(commands: list[list[Any]]) -> Iterator[tuple[list[Child], MmapTrace]]:
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(running(command)) for command in commands]
        processes = [stack.enter_context(contextlib.closing(open_process(child.pid))) for child in children]
        trace = mmap_trace()
        stack.callback(trace.close)
        trace.open(processes, Budget(seconds=4))
        yield children, trace


def played(child: Child, trace: MmapTrace, scene: str, forks: int = 0) -> Expected:
    expected: Expected = Counter()
    child.tell(scene)
    ends = Counter[str]()
    while ends["done"] < 1 or ends["child"] < forks:
        word, _, rest = child.read_line().partition(" ")
        ends[word] += 1
        if word == "map":
            said = json.loads(rest)
            frames = tuple((name, file, line) for name, file, line in said["frames"])
            expected[said["pid"], frames] += said["size"]
    engine = trace.programs.engine
    until = engine.written_until()
    while not engine.has_read(until):  # a poll takes a part of the events, and the end of a trace does not wait for all
        list(trace.poll())
    return expected


def told(trace: MmapTrace) -> tuple[list[AllocationSite], Counter[str]]:
    """The sites of what Python's mmap module mapped; and the losses."""
    evidence = list(trace.close())
    sites = [e for e in evidence if isinstance(e, AllocationSite) and e.shared and e.kind == "mmap"]
    return sites, Counter({e.what: e.count for e in evidence if isinstance(e, Loss)})


def by_stack(sites: list[AllocationSite]) -> Expected:
    found: Expected = Counter()
    for site in sites:
        found[site.pid, of_python(site.stack.frames)] += site.allocated_bytes
    return found


def is_within(stack: tuple[Named, ...], said: tuple[Named, ...]) -> bool:
    """The same frames, some without a name; or none."""
    return not stack or (
        len(stack) == len(said)
        and all(mine == theirs or mine[0] is None for mine, theirs in zip(stack, said, strict=True))
    )


def test_several_interpreters_of_one_thread_and_of_another() -> None:
    expected: Expected = Counter()
    with traced(PYTHONS) as (children, trace):
        for child in children:
            expected += played(child, trace, "other_thread")
        sites, losses = told(trace)
    found = by_stack(sites)
    assert sum(found.values()) == sum(expected.values())
    for pid, stack in found:
        assert any(pid == owner and is_within(stack, said) for owner, said in expected), stack
    for (pid, said), size in expected.items():
        if said[0][0] == "place":  # in the main interpreter, while there are six others
            assert found[pid, said] == size
    hidden = [site for site in sites if not of_python(site.stack.frames)]
    assert len(hidden) <= losses[SEVERAL] + losses[DISAGREE] + sum(not site.stack.complete for site in hidden)
    if any(name is None for _, stack in found for name, _, _ in stack):  # code that was gone when it was read
        assert losses[NAMELESS]


def libraries() -> list[Path]:
    """The shared libpythons of the interpreters here."""
    found = []
    for path in map(Path, interpreters()):
        for folder in (path.parents[1] / "lib", *path.parents[1].glob("lib/*-linux-gnu")):
            found += sorted(folder.glob(f"lib{path.name}.so.1.0"))
    return found


SETUP = """
def outer(size): return inner(size)
def inner(size): kept.append(mmap.mmap(-1, size))
kept = []
""".strip()


@pytest.mark.parametrize("library", libraries(), ids=lambda path: f"{path.parts[-3]}-{path.name}")
def test_python_inside_of_another_program(library: Path) -> None:
    """Initialized, finalized and initialized again. A thread that takes a new thread state for each call, some ten
    microseconds after the last, may be seen without its Python frames; that is counted."""
    setup = f"run import builtins, mmap; builtins.mmap = mmap; exec({SETUP!r}, builtins.__dict__)"
    home = str(library).partition("/lib/")[0]
    of_main_thread = 0
    with contextlib.ExitStack() as stack:
        child = stack.enter_context(running([compiled("cpy_embed.c"), library], env={"PYTHONHOME": home}))
        process = stack.enter_context(contextlib.closing(open_process(child.pid)))
        trace = mmap_trace()
        stack.callback(trace.close)
        trace.open(process, Budget(seconds=4))

        def do(*orders: str) -> None:
            for order in orders:
                child.tell(order)
                child.wait_for("done")
                list(trace.poll())

        do("init", setup)
        for _ in range(200):  # until it is noticed that there is a CPython now
            if trace.processes[child.pid].space.stacks.python.found:
                break
            do("run outer(4096)")
            time.sleep(0.05)
        for size in (1001 * 4096, 1003 * 4096, 1005 * 4096):
            do(f"run outer({size})", f"run outer({size})", f"ensure 7 outer({size + 4096})")
            do("finalize", "init", setup)
            of_main_thread += 2 * size
        sites, losses = told(trace)
    right = 0
    for site in sites:
        names = [name for name, _, _ in of_python(site.stack.frames)]
        if names:
            assert names in (["inner", "outer", "<module>"], ["inner", "outer", None]), site.stack
            right += site.allocated_bytes
        else:
            assert losses[DISAGREE]
    assert right >= of_main_thread


def test_forked_children_and_their_threads() -> None:
    expected: Expected = Counter()
    with traced(PYTHONS) as (children, trace):
        for child in children:
            expected += played(child, trace, "fork", forks=2)
        sites, _ = told(trace)
    assert len({pid for pid, _ in expected}) == 2 * len(children)
    assert by_stack(sites) == expected


def test_greenlets_have_their_own_python_stacks() -> None:
    """The native stack of a greenlet goes on into what another one left: it is cut where the Python chain ends."""
    pytest.importorskip("greenlet")
    with traced([[sys.executable, "-W", "ignore", *python("cpy_scenes.py")[1:]]]) as ((child,), trace):
        expected = played(child, trace, "greenlets")
        sites, losses = told(trace)
    assert by_stack(sites) == expected
    assert losses[DISAGREE]
    for site in sites:
        assert not [f.function for f in site.stack.frames if "_PyEval_EvalFrameDefault" in (f.function or "")]
