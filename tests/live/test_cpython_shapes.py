"""Every shape of Python stack, traced as `trace-mmap` does it, on every interpreter here: function, file and line at
the event, against what the interpreter itself says and, on the same process, what pystack says.

One trace over one process of each interpreter; most of the threads began before it, some after.
"""

import concurrent.futures
import contextlib
import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from processes import Child, python, running
from test_cpython_stacks import interpreters, label

from memforensics.case.model import AllocationSite, Frame, Loss
from memforensics.probes.base import Budget
from memforensics.probes.ebpf.mmap.probe import mmap_trace
from memforensics.probes.ebpf.stacks.python_frames import DISAGREE, NAMELESS, SEVERAL
from memforensics.target import open_process

pytestmark = [pytest.mark.live, pytest.mark.needs_bpf]

ROUNDS = 5
LIMIT = 128  # Python frames that the kernel walks
EVAL = "_PyEval_EvalFrameDefault"
TRUNCATED = "stacks whose outermost Python frames are missing: more than 128"
Walked = tuple[str, str, str, int]  # kind, function, file, line
Named = tuple[str | None, str | None, int | None]  # function, file, line


@dataclass
class Shape:
    """One kind of stack: its threads' stacks as they said, and the sites of its size."""

    name: str
    size: int
    said: list[tuple[Named, ...]] = field(default_factory=list)
    tids: list[int] = field(default_factory=list)
    sites: list[AllocationSite] = field(default_factory=list)


@dataclass
class Seen:
    """One interpreter's process. `pystack`: stacks by tid, leaf first."""

    shapes: dict[str, Shape] = field(default_factory=dict)
    sites: list[AllocationSite] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    pystack: dict[int, list[Walked]] = field(default_factory=dict)


def start(children: dict[str, Child], seen: dict[str, Seen], *, every: int) -> None:
    """Starts the threads of every so many-th shape, and reads what they say."""
    for child in children.values():
        child.tell(f"start {every}")
    for one, child in children.items():
        while not (line := child.read_line()).startswith("started"):
            if line.startswith("stack "):
                said: dict[str, Any] = json.loads(line[6:])
                shape = seen[one].shapes.setdefault(said["shape"], Shape(said["shape"], said["size"]))
                shape.said.append(tuple((name, file, number) for name, file, number in said["frames"]))
                shape.tids.append(said["tid"])


@pytest.fixture(scope="module")
def all_seen() -> dict[str, Seen]:
    seen = {interpreter: Seen() for interpreter in interpreters()}
    with contextlib.ExitStack() as stack:
        children = {
            one: stack.enter_context(running(python("cpy_shapes.py", interpreter=one), ready=None)) for one in seen
        }
        processes = [stack.enter_context(contextlib.closing(open_process(c.pid))) for c in children.values()]
        start(children, seen, every=1)
        trace = mmap_trace()
        stack.callback(trace.close)
        trace.open(processes, Budget(seconds=4))
        start(children, seen, every=3)
        for _ in range(ROUNDS):
            for child in children.values():
                child.tell("map 1")
            for child in children.values():
                child.wait_for("mapped")
                list(trace.poll())
        evidence = list(trace.close())
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            for one, stacks in zip(seen, pool.map(pystack, [child.pid for child in children.values()]), strict=True):
                seen[one].pystack = stacks
    by_pid = {child.pid: seen[one] for one, child in children.items()}
    for item in evidence:
        if isinstance(item, AllocationSite):
            by_pid[item.pid].sites.append(item)
        elif isinstance(item, Loss):
            for each in seen.values():
                each.losses.append(item)
    for each in seen.values():
        for shape in each.shapes.values():
            shape.sites = [
                s for s in each.sites if s.allocated_count and s.allocated_bytes == shape.size * s.allocated_count
            ]
    return seen


@pytest.fixture(params=interpreters(), ids=label)
def seen(request: pytest.FixtureRequest, all_seen: dict[str, Seen]) -> Seen:
    return all_seen[request.param]


def pystack(pid: int) -> dict[int, list[Walked]]:
    command: list[str | Path] = [Path(sys.executable).with_name("pystack"), "remote", "--native", str(pid)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    stacks: dict[int, list[Walked]] = {}
    tid = 0
    for line in said.splitlines():
        if line.startswith("Traceback for thread "):
            tid = int(line.split()[3])
        kind, _, rest = line.strip().partition(' File "')
        if kind in ("(Python)", "(C)"):
            file, _, rest = rest.partition('", line ')
            number, _, function = rest.partition(", in ")
            if kind == "(C)":
                function = function.partition(" (")[0].partition("@")[0]
            stacks.setdefault(tid, []).insert(0, (kind, function.strip(), file, int(number)))
    return stacks


def of_python(frames: tuple[Frame, ...]) -> tuple[Named, ...]:
    return tuple((frame.function, frame.file, frame.line) for frame in frames if frame.kind == "python")


def test_function_file_and_line_are_those_that_the_interpreter_says(seen: Seen) -> None:
    assert len(seen.shapes) > 60
    for shape in seen.shapes.values():
        told: Counter[tuple[Named, ...]] = Counter()
        for site in shape.sites:
            told[of_python(site.stack.frames)] += site.allocated_count
        assert told == Counter({said[:LIMIT]: times * ROUNDS for said, times in Counter(shape.said).items()}), (
            shape.name
        )


def test_no_eval_frame_is_left_and_nothing_disagrees(seen: Seen) -> None:
    for shape in seen.shapes.values():
        for site in shape.sites:
            assert site.stack.doubtful is (shape.name == "too_deep"), shape.name
            if site.stack.complete and not site.stack.doubtful:
                assert not [f.function for f in site.stack.frames if f.function and f.function.startswith(EVAL)]
    losses = {loss.what: loss.count for loss in seen.losses}
    assert not losses.keys() & {DISAGREE, NAMELESS, SEVERAL}
    assert losses[TRUNCATED] >= len(interpreters())


def test_a_thread_that_starts_another_is_seen_where_it_does(seen: Seen) -> None:
    """To 3.11 it has two thread states then: that of the other one too."""
    starting = [site for site in seen.sites if "pthread_create" in {frame.function for frame in site.stack.frames}]
    assert starting
    for site in starting:
        names = [name.rpartition(".")[2] for name, _, _ in of_python(site.stack.frames) if name]
        assert names[:2] == ["start", "start"] or "start_joinable_thread" in names or names[0] == "start", names


def test_pystack_agrees(seen: Seen) -> None:
    """Frame by frame; and the native frames that both know stand between the same Python frames."""
    whole = 0
    for shape in seen.shapes.values():
        for site in shape.sites:
            mine = of_python(site.stack.frames)
            tid = next(tid for tid, said in zip(shape.tids, shape.said, strict=True) if said[:LIMIT] == mine)
            theirs = from_the_leaf(seen.pystack[tid])
            assert (
                comparable(theirs)[:LIMIT]
                == [(bare(name), file, line) for name, file, line in mine if is_latin_1(name)][
                    : len(comparable(theirs))
                ]
            ), shape.name
            if site.stack.complete and not site.stack.doubtful:
                whole += 1
                ours = [
                    (("(Python)" if f.kind == "python" else "(C)"), f.function or "???", f.file or "", f.line or 0)
                    for f in site.stack.frames
                ]
                assert_same_order(from_the_leaf(ours), theirs, shape.name)
    assert whole > len(seen.shapes) / 2


def from_the_leaf(frames: list[Walked]) -> list[Walked]:
    """Without what is called by the Python function `leaf`: it waits where it mapped."""
    first = next(i for i, (kind, function, _, _) in enumerate(frames) if (kind, function) == ("(Python)", "leaf"))
    return frames[first:]


def comparable(frames: list[Walked]) -> list[Named]:
    """Without the interpreter's own frame after a specialized __init__ (3.13), which pystack shows and no traceback."""
    named = [(bare(function), file, line) for kind, function, file, line in frames if kind == "(Python)"]
    return [frame for frame in named if frame[:2] != ("__init__", "__init__")]


def bare(function: str | None) -> str:
    return (function or "").rpartition(".")[2]


def is_latin_1(function: str | None) -> bool:
    """pystack leaves out functions whose names are not."""
    return max(map(ord, function or " ")) < 256


def assert_same_order(ours: list[Walked], theirs: list[Walked], shape: str) -> None:
    """pystack leaves out some native functions, and tells inlined ones too: of those that both name, each stands
    between the same two Python frames."""
    known = {function for kind, function, _, _ in theirs if kind == "(C)"} - {"???"}
    for mine, other in zip(runs(ours), runs(theirs), strict=True):
        assert mine & known <= other, shape


def runs(frames: list[Walked]) -> list[set[str]]:
    """The native functions between each two Python frames (with a name that pystack can tell), leaf first."""
    found: list[set[str]] = [set()]
    for kind, function, file, _ in frames:
        if kind == "(C)":
            found[-1].add(function)
        elif is_latin_1(function) and function != file:
            found.append(set())
    return found
