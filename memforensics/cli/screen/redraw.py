"""A screen that is redrawn in place; only lines that changed are written.

rich lays out a part once, as long as it is the same object, and only lines that differ from the screen are written. A
tick that changes two figures costs a fraction of a full redraw.
"""

import sys
from collections.abc import Sequence
from typing import TextIO

from rich.console import RenderableType

from memforensics.report.terminal.console import Console
from memforensics.report.terminal.watch import Part

_PROMPT_LINES = 2  # kept free below the last screen, so that its first line stays visible
_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"  # the cursor


class Screen:
    """Call `show` in a with block, which restores the cursor; the last screen stays."""

    def __init__(self, console: Console | None = None, out: TextIO | None = None) -> None:
        self.console, self._out = console or Console(), out or sys.stdout
        self._laid_out: dict[int, tuple[RenderableType, list[str]]] = {}  # by id; the reference keeps the id valid
        self._used: dict[int, tuple[RenderableType, list[str]]] = {}  # those of this frame
        self._size = (0, 0)
        self._lines: list[str] = []

    @property
    def width(self) -> int:
        return self.console.width

    @property
    def height(self) -> int:
        return self.console.height

    def show(self, parts: Sequence[Part], *, last: bool = False) -> None:
        """Draws the parts from top to bottom. Parts that do not fit are shortened or left out; the rest is cut off.
        `last`: redraws everything, because nothing is drawn over it later."""
        size = self.console.size
        if size != self._size:
            self._laid_out.clear()
        self._used = {}
        room = max(size.height - (1 + _PROMPT_LINES if last else 1), 1)
        lines = [line for chosen in self._fit(parts, room) for line in self._lines_of(chosen)][:room]
        self._laid_out = self._used
        is_full = size != self._size or last
        text = self._full(lines) if is_full else self._changed(lines)
        self._size, self._lines = (size.width, size.height), lines
        self._out.write(text)
        self._out.flush()

    def _fit(self, parts: Sequence[Part], room: int) -> list[RenderableType]:
        """The parts that fit, shortened where needed."""
        chosen: list[RenderableType | None] = [part.shown for part in parts]
        steps: list[tuple[int, int, RenderableType | None]]
        steps = [(part.shortened, at, part.short) for at, part in enumerate(parts) if part.short is not None]
        steps += [(part.left_out, at, None) for at, part in enumerate(parts) if part.left_out]
        for _, at, instead in sorted(steps, key=lambda step: (-step[0], -step[1])):
            if sum(len(self._lines_of(each)) for each in chosen if each is not None) <= room:
                break
            chosen[at] = instead
        return [each for each in chosen if each is not None]

    def _lines_of(self, part: RenderableType) -> list[str]:
        if id(part) not in self._used:
            self._used[id(part)] = self._laid_out.get(id(part)) or (part, self._lay_out(part))
        return self._used[id(part)][1]

    def __enter__(self) -> "Screen":
        self._out.write(_HIDE)
        return self

    def __exit__(self, *_: object) -> None:
        self._out.write(_SHOW)
        self._out.flush()

    def _lay_out(self, part: RenderableType) -> list[str]:
        with self.console.capture() as caught:
            self.console.print(part)
        return [line.rstrip() for line in caught.get().removesuffix("\n").split("\n")]

    def _full(self, lines: Sequence[str]) -> str:
        return _up(len(self._lines)) + "\x1b[J" + "".join(f"{line}\n" for line in lines)

    def _changed(self, lines: Sequence[str]) -> str:
        """The escape sequences that rewrite the changed lines."""
        if lines == self._lines:
            return ""
        out = [_up(len(self._lines))]
        for place, line in enumerate(lines):
            is_same = place < len(self._lines) and self._lines[place] == line
            out.append("\n" if is_same else f"\x1b[2K{line}\n")
        return "".join(out) + "\x1b[J"


def _up(lines: int) -> str:
    """Moves to the start of the line so many above."""
    return f"\x1b[{lines}F" if lines else "\r"
