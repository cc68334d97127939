"""Hostile names of a target (comm, arguments, file names, mapped files) do not act on the terminal."""

import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Child, running

pytestmark = [pytest.mark.live, pytest.mark.needs_root]

# The title of the window, its clipboard, a bell, the cursor up, a line turned round, an 8-bit control, a new line.
HOSTILE = "\x1b]0;owned\x07\x1b]52;c;b3duZWQ=\x07\x1b[2A\u202e\x9b31m\nx"
PROGRAM = """
import ctypes, mmap, sys
ctypes.CDLL(None).prctl(15, {comm!r}.encode()[:15], 0, 0, 0)
with open({file!r}, "rb") as file:
    kept = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
print("ready", flush=True)
while True:
    for _ in range(50):
        mmap.mmap(-1, 65536).close()
    import time; time.sleep(0.05)
"""
# What rich writes itself: colours, the cursor, a line erased.
OURS = re.compile(rb"\x1b\[(?:[0-9;]*m|\?25[lh]|2K|1A|[0-9]+F|J|K|H)|\r|\n|\t")
CONTROL = re.compile(rb"[\x00-\x1f\x7f]|\xe2\x80[\xaa-\xae]|\xe2\x81[\xa6-\xa9]|\xc2[\x80-\x9f]")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    folder = tmp_path_factory.mktemp("hostile")
    file = folder / HOSTILE.replace("/", "_")
    file.write_bytes(bytes(4096))
    script = folder / (HOSTILE.replace("/", "_") + ".py")
    script.write_text(PROGRAM.format(comm=HOSTILE, file=str(file)))
    with running([sys.executable, "-u", script, HOSTILE, f"--model={HOSTILE}"]) as child:
        yield child


def on_terminal(*words: object) -> bytes:
    """What a command writes on a terminal of 100 columns, stderr included."""
    control, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "memforensics", *map(str, words)],
        stdin=terminal, stdout=terminal, stderr=terminal, env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(terminal)
    out = b""
    while process.poll() is None or select.select([control], [], [], 0.2)[0]:
        if select.select([control], [], [], 0.2)[0]:
            try:
                out += os.read(control, 65536)
            except OSError:
                break
    os.close(control)
    process.wait(60)
    return out


@pytest.mark.parametrize(
    "words",
    [
        "snapshot {}",
        "watch {} --duration 3s",
        "hooks {}",
        "snapshot --name nothing-of-that-name",
        "snapshot",
        "snapshot --cmdline python",
        "doctor",
        pytest.param("diagnose {} --duration 8s", marks=pytest.mark.needs_bpf),
        pytest.param("trace-mmap {} --duration 3s", marks=pytest.mark.needs_bpf),
        pytest.param("stacks {} --on mmap --count 1", marks=pytest.mark.needs_gdb),
    ],
)
def test_only_our_own_escapes_reach_the_terminal(hostile: Child, words: str) -> None:
    out = on_terminal(*words.format(hostile.pid).split())
    assert len(out) > 20
    rest = OURS.sub(b"", out)
    found = CONTROL.search(rest)
    assert found is None, rest[max(0, found.start() - 60) : found.end() + 60]


def test_error_with_a_hostile_file_name_is_one_line(tmp_path: Path) -> None:
    missing = tmp_path / HOSTILE.replace("/", "_")
    out = on_terminal("report", missing)
    assert CONTROL.search(OURS.sub(b"", out)) is None
    assert b"there is no case file" in out


def test_pattern_detects_the_hostile_program() -> None:
    """Otherwise the tests above could not fail."""
    assert CONTROL.search(OURS.sub(b"", HOSTILE.encode())) is not None
