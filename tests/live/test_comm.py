"""A process whose name is not UTF-8 and looks like the end of a name: every command works, and its JSON is valid."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli import memforensics
from processes import Child, running

pytestmark = pytest.mark.live
PROGRAM = r"""
import ctypes
ctypes.CDLL(None).prctl(15, b"\xff\xc3) S\r(\xe2\x80\xae x", 0, 0, 0)
print("ready", flush=True)
input()
"""


@pytest.fixture(scope="module")
def target() -> Iterator[Child]:
    with running([sys.executable, "-c", PROGRAM]) as child:
        yield child


@pytest.mark.parametrize(
    "command",
    ["snapshot {pid}", "watch {pid} --duration 1s", "doctor {pid}", "hooks {pid}", "watch --name {name} --duration 1s"],
)
@pytest.mark.parametrize("form", ["", "--json"])
def test_every_command_accepts_a_process_with_a_hostile_name(command: str, form: str, target: Child) -> None:
    name = os.fsdecode((Path("/proc") / str(target.pid) / "comm").read_bytes()[:-1])
    words = [word.format(pid=target.pid, name=name) for word in command.split()]
    done = memforensics(*words, *form.split())
    assert done.returncode in (0, 4), done.stderr
    assert done.stdout
    if form:
        for text in done.stdout.splitlines() if words[0] == "watch" else [done.stdout]:
            json.loads(text)
