"""Keys pressed on a terminal while a screen refreshes, and Ctrl-C as a wish to end."""

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
    """A function that gives the keys pressed since the last call: a character each, or "up", "down", "enter". It waits
    for one for so many seconds. None when standard input is no terminal. The terminal is as before after the block."""
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
        if not sent:  # the terminal is gone, and would be ready to read for ever
            time.sleep(wait_s)
        return split_keys(sent.decode(errors="replace"))

    try:
        tty.setcbreak(terminal)
        yield pressed
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def split_keys(text: str) -> list[str]:
    """What a terminal sent, key by key. Escape sequences that have no name here are dropped."""
    sent = _KEY.findall(text)
    return [_NAMES.get(key, key) for key in sent if key in _NAMES or not key.startswith("\x1b")]


@contextlib.contextmanager
def interrupt_once() -> Iterator[Callable[[], bool]]:
    """In the block the first Ctrl-C, SIGTERM, SIGHUP or SIGQUIT is a wish, told by the function; the next one does what
    it does outside the block. Ignored signals stay ignored."""
    wished = False
    before = {number: signal.getsignal(number) for number in _ENDING}

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal wished
        if not wished:
            wished = True
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
        yield lambda: wished
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)
