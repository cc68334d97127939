"""memforensics on a real terminal (tmux): reads its screen and presses keys."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path


class Terminal:
    """Runs memforensics with these arguments."""

    def __init__(self, folder: Path, *words: str | int, columns: int = 110, lines: int = 34) -> None:
        self._socket = str(folder / "tmux")
        command = f"{sys.executable} -m memforensics {' '.join(map(str, words))}; echo exit code $?; sleep 60"
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", str(columns), "-y", str(lines), command)

    def _tmux(self, *words: str) -> str:
        kept = {name: value for name, value in os.environ.items() if name not in ("TMUX", "COLUMNS", "LINES")}
        done = subprocess.run(
            ["tmux", "-S", self._socket, *words],
            env={**kept, "TERM": "xterm", "LANG": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def screen(self) -> str:
        return self._tmux("capture-pane", "-p")

    def press(self, *keys: str) -> None:
        self._tmux("send-keys", *keys)

    def wait_for(self, pattern: str, timeout: float = 40.0) -> "re.Match[str]":
        end = time.monotonic() + timeout
        while not (found := re.search(pattern, self.screen(), re.MULTILINE | re.DOTALL)):
            assert time.monotonic() < end, (pattern, self.screen())
            time.sleep(0.05)
        return found

    def close(self) -> None:
        self._tmux("kill-server")


@contextlib.contextmanager
def terminal(folder: Path, *words: str | int, columns: int = 110, lines: int = 34) -> Iterator[Terminal]:
    it = Terminal(folder, *words, columns=columns, lines=lines)
    try:
        yield it
    finally:
        it.close()
