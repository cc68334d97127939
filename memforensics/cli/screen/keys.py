"""Keys pressed while a screen refreshes, and Ctrl-C as a request to end."""

import contextlib
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Protocol

_NAMES = {"\x1b[A": "up", "\x1b[B": "down", "\x1bOA": "up", "\x1bOB": "down", "\r": "enter", "\n": "enter"}
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_KEY = re.compile("\x1b\\[[0-9;]*[ -/]*[@-~]|\x1bO.|\x1b|.", re.DOTALL)


class ReadKeys(Protocol):
    def __call__(self, wait_s: float = 0.0) -> list[str]: ...


@contextlib.contextmanager
def keys() -> Iterator[ReadKeys | None]:
    """A function that returns the keys pressed since the last call: characters, or "up", "down", "enter". It waits up
    to `wait_s` for the first one. None if standard input is not a terminal. Leaving the block restores the terminal."""
    import termios
    import tty

    if not sys.stdin.isatty():
        yield None
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def pressed(wait_s: float = 0.0) -> list[str]:
        if not select.select([terminal], [], [], wait_s)[0]:
            return []
        sent = os.read(terminal, 1024)
        if not sent:  # the terminal is gone; select would return at once for ever
            time.sleep(wait_s)
        return split_keys(sent.decode(errors="replace"))

    try:
        tty.setcbreak(terminal)
        yield pressed
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def split_keys(text: str) -> list[str]:
    """The keys in the text that a terminal sent. Unknown escape sequences are dropped."""
    sent = _KEY.findall(text)
    return [_NAMES.get(key, key) for key in sent if key in _NAMES or not key.startswith("\x1b")]


@contextlib.contextmanager
def interrupt_once() -> Iterator[Callable[[], bool]]:
    """In the block, the first Ctrl-C, SIGTERM, SIGHUP or SIGQUIT is only noted: the function then returns True. The
    next one acts as usual. Ignored signals stay ignored."""
    requested = False
    before = {number: signal.getsignal(number) for number in _ENDING}

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if not requested:
            requested = True
            return
        usual = before[signal.Signals(number)]
        if callable(usual):
            usual(number, frame)
        else:
            raise KeyboardInterrupt

    for number, usual in before.items():
        if usual != signal.SIG_IGN:
            signal.signal(number, note)
    try:
        yield lambda: requested
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)
