"""stacks on a real process: exact arguments, frames and return values; the target survives the kill of gdb."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from processes import LEAKERS, Child, compiled, python, running

from memforensics.errors import NoSuchProcess, ProbeFailed, UsageError
from memforensics.jobs.stacks import stacks
from memforensics.target import open_process

pytestmark = [pytest.mark.live, pytest.mark.needs_gdb]

PRIME = 1299709  # gdb_chain.c


@pytest.fixture
def chain() -> Iterator[Child]:
    with running([compiled("gdb_chain.c")]) as child:
        yield child


def wait_until(fact: Callable[[], object], what: str, limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not fact():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def tracer_of(pid: int) -> int:
    return int(status_of(pid)["TracerPid"])


def assert_lives_and_loads(child: Child) -> None:
    """It runs, it is nobody's tracee, and dlopen (where gdb's own int3 would be) works."""
    wait_until(lambda: tracer_of(child.pid) == 0, "still traced")
    child.tell("load")
    assert child.wait_for("loaded") == "loaded"
    assert child.alive


def text_differences(pid: int) -> list[str]:
    """Executable mappings whose bytes in memory are not the file's."""
    process = open_process(pid)
    found = []
    for mapping in process.maps().mappings:
        if "x" in mapping.perms and mapping.inode:
            with process.open_mapped(mapping) as stream:
                stream.seek(mapping.offset)
                file_bytes = stream.read(mapping.size).ljust(mapping.size, b"\0")
            if process.memory.read(mapping.start, mapping.size) != file_bytes:
                found.append(mapping.path)
    process.close()
    return found


def test_catchpoint_gives_exact_arguments_frames_and_return_value(chain: Child) -> None:
    assert text_differences(chain.pid) == []

    view = stacks(chain.pid, on="mmap", condition=f"length == {PRIME}", count=3, timeout_s=20)

    assert len(view.captures) == 3
    for capture in view.captures:
        assert dict(capture.arguments) == {
            "addr": 0,
            "length": PRIME,
            "prot": 3,
            "flags": 0x22,
            "fd": -1,
            "offset": 0,
        }
        assert capture.returned is not None
        assert capture.returned % 4096 == 0
        names = [frame.function for frame in capture.stack.frames]
        assert names[0] in ("mmap", "mmap64")
        assert names[1:5] == ["inner", "middle", "outer", "work"]
        assert capture.stack.complete
        assert capture.tid != chain.pid  # the worker thread, not the main one
        assert capture.pause_ms > 0
    assert len(view.pauses) == 1 + 2 * 3  # the attach, each entry and each return
    assert view.longest_ms <= view.total_ms
    assert text_differences(chain.pid) == []
    assert_lives_and_loads(chain)


def test_python_frames_are_in_their_places() -> None:
    script = LEAKERS / "gdb_python.py"
    lines = {word.strip(): number for number, word in enumerate(script.read_text().splitlines(), 1)}
    with running(python("gdb_python.py")) as child:
        view = stacks(child.pid, on="mmap", condition=f"length == {PRIME}", timeout_s=20)
    (capture,) = view.captures
    frames = capture.stack.frames
    assert [(f.function, f.file, f.line) for f in frames if f.kind == "python"] == [
        ("innermost", str(script), lines["mmap.mmap(-1, SIZE).close()"]),
        ("through_a_callback", str(script), lines["innermost()"]),
        ("outermost", str(script), lines["sorted([1], key=through_a_callback)"]),
        ("main", str(script), lines["outermost()"]),
        ("<module>", str(script), lines["main()"]),
    ]
    assert not any(f.function == "_PyEval_EvalFrameDefault" for f in frames)
    assert capture.stack.complete
    assert not capture.stack.doubtful
    assert dict(capture.arguments)["flags"] == 0x21  # Python's mmap is shared


def test_without_a_condition_other_calls_are_captured_too(chain: Child) -> None:
    view = stacks(chain.pid, on="mmap", count=6, timeout_s=20)
    lengths = [dict(capture.arguments)["length"] for capture in view.captures]
    assert lengths.count(PRIME) == lengths.count(4096) == 3


def test_condition_that_is_never_true_ends_in_time_with_a_loss(chain: Child) -> None:
    view = stacks(chain.pid, on="mmap", condition="length == 1", timeout_s=1.0)
    assert view.captures == ()
    assert {loss.what.split(":")[0] for loss in view.losses} == {
        "requested captures timed out",
        "stops whose condition was false",
    }
    assert_lives_and_loads(chain)


def test_function_entry_by_hardware_breakpoint_changes_no_code(chain: Child) -> None:
    warnings: list[str] = []
    view = stacks(
        chain.pid, function="middle", condition=f"arg0 == {PRIME}", count=2, timeout_s=20, warn=warnings.append
    )
    assert [[frame.function for frame in c.stack.frames][:3] for c in view.captures] == [
        ["middle", "outer", "work"]
    ] * 2
    assert all(dict(c.arguments)["arg0"] == PRIME for c in view.captures)
    assert len(warnings) == 1
    assert text_differences(chain.pid) == []
    assert_lives_and_loads(chain)


def test_all_of_many_threads_go_on() -> None:
    with running([compiled("gdb_chain.c"), "7"]) as child:
        view = stacks(child.pid, on="mmap", condition=f"length == {PRIME}", count=10, timeout_s=30)
        assert len(view.captures) == 10
        assert {frame.function for c in view.captures for frame in c.stack.frames} >= {"inner", "middle", "outer"}
        assert_lives_and_loads(child)
        assert not re.match("[tT]", status_of(child.pid)["State"])


def test_target_with_a_tracer_is_refused_with_its_name(chain: Child) -> None:
    with ExitStack() as stack:
        gdb = stack.enter_context(
            running(
                ["gdb", "--nx", "--quiet", "-iex", "set may-insert-breakpoints off", "-p", str(chain.pid)], ready=None
            )
        )
        wait_until(lambda: tracer_of(chain.pid) == gdb.pid, "gdb did not attach")
        with pytest.raises(ProbeFailed, match=f"gdb .PID {gdb.pid}. already traces"):
            stacks(chain.pid, on="mmap")


def test_wrong_options_are_refused_before_the_target_stops(chain: Child) -> None:
    for words in (
        {"on": "mmap", "function": "malloc"},
        {},
        {"on": "nosuchcall"},
        {"on": "mmap", "condition": "system(1)"},
        {"on": "mmap", "condition": "length = 3"},
        {"function": "no_such_function_anywhere"},
        {"on": "mmap", "count": 0},
    ):
        with pytest.raises(UsageError):
            stacks(chain.pid, **words)
    assert_lives_and_loads(chain)


def test_no_such_process() -> None:
    with pytest.raises(NoSuchProcess):
        stacks(2**22 - 1, on="mmap")


class Command:
    """`memforensics stacks` as a process of its own, stopping the target at every mmap."""

    def __init__(self, pid: int, *words: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "memforensics", "stacks", str(pid), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        self.popen.kill()
        self.popen.communicate()


ENDLESS = ("--on", "mmap", "--count", "1000", "--timeout", "60s", "--max-stopped", "60s")
QUIET = ("--on", "mmap", "--if", "length == 1", "--timeout", "60s")


@pytest.mark.parametrize("words", [ENDLESS, QUIET], ids=["capturing", "waiting"])
@pytest.mark.parametrize("victim", ["gdb", "memforensics", "guard", "ctrl-c", "ctrl-z"])
def test_target_survives_the_kill_of_any_part(chain: Child, victim: str, words: tuple[str, ...]) -> None:
    with Command(chain.pid, *words) as command:
        wait_until(lambda: tracer_of(chain.pid), "gdb did not attach")
        gdb = tracer_of(chain.pid)
        guard = int(Path(f"/proc/{gdb}/stat").read_text().rpartition(")")[2].split()[1])
        assert guard != command.popen.pid
        time.sleep(0.2)  # into the middle of it
        if victim == "ctrl-c":
            command.popen.send_signal(signal.SIGINT)
        elif victim == "ctrl-z":
            command.popen.send_signal(signal.SIGSTOP)
        else:
            os.kill({"gdb": gdb, "memforensics": command.popen.pid, "guard": guard}[victim], signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{gdb}").exists(), "gdb stayed behind")
        wait_until(lambda: status_of(chain.pid)["State"][0] not in "Tt", "left stopped")
        assert_lives_and_loads(chain)
        assert text_differences(chain.pid) == []
        command.popen.send_signal(signal.SIGCONT)
        _, errors = command.popen.communicate(timeout=20)
        assert b"Traceback" not in errors
        expected = {"gdb": 3, "guard": 3, "memforensics": -signal.SIGKILL, "ctrl-c": 130, "ctrl-z": 3}[victim]
        assert command.popen.returncode == expected, errors.decode()


@pytest.mark.parametrize("victim", ["gdb", "memforensics"])
def test_kill_of_the_owner_leaves_no_breakpoint_in_threads(chain: Child, victim: str) -> None:
    with Command(chain.pid, "--function", "libc.so.6!dlopen", "--timeout", "60s") as command:
        wait_until(lambda: tracer_of(chain.pid) and "S" in status_of(chain.pid)["State"], "gdb did not attach")
        gdb = tracer_of(chain.pid)
        guard = int(Path(f"/proc/{gdb}/stat").read_text().rpartition(")")[2].split()[1])
        time.sleep(0.3)
        os.kill(gdb if victim == "gdb" else command.popen.pid, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{guard}").exists() or victim == "gdb", "the guard stayed behind")
        command.popen.communicate(timeout=20)
        wait_until(lambda: tracer_of(chain.pid) == 0, "still traced")
        assert_lives_and_loads(chain)  # it calls dlopen, where the breakpoint was


def test_exit_of_the_target_is_reported(chain: Child) -> None:
    with Command(chain.pid, *QUIET) as command:
        wait_until(lambda: tracer_of(chain.pid), "gdb did not attach")
        chain.popen.kill()
        _, errors = command.popen.communicate(timeout=20)
        assert command.popen.returncode == 3
        assert b"is gone" in errors


def test_json_has_the_documented_keys(chain: Child) -> None:
    with Command(chain.pid, "--on", "mmap", "--if", f"length == {PRIME}", "--json") as command:
        output, errors = command.popen.communicate(timeout=30)
    assert command.popen.returncode == 0, errors.decode()
    report = json.loads(output)
    (capture,) = report["captures"]
    assert capture["arguments"]["length"] == PRIME
    assert {"stack", "arguments", "returned", "pause_ms"} <= capture.keys()
    assert report["pause_ms"]["total"] >= report["pause_ms"]["longest"] > 0
