"""A screen that is drawn again and again in place, and of which only what changed is drawn.

rich lays a part out once, as long as it is the same object; of the lines that come of it, those that differ from what
stands there are written. A tick that changes two figures costs a fraction of drawing all.
"""

import sys
from collections.abc import Sequence
from typing import TextIO

from rich.console import RenderableType

from memforensics.report.console import Console

_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"  # the cursor


class Screen:
    """`show` parts; the last screen stays. Use it in a with block, which gives the cursor back."""

    def __init__(self, console: Console | None = None, out: TextIO | None = None) -> None:
        self.console, self._out = console or Console(), out or sys.stdout
        self._laid_out: dict[int, tuple[RenderableType, list[str]]] = {}  # by id, its own while it is held
        self._size = (0, 0)
        self._lines: list[str] = []

    @property
    def width(self) -> int:
        return self.console.width

    def show(self, parts: Sequence[RenderableType], *, last: bool = False) -> None:
        """Top to bottom; what does not fit below is left out (`last`: is not, as nothing is drawn over it any more)."""
        size = self.console.size
        if size != self._size:
            self._laid_out.clear()
        laid_out = {id(part): self._laid_out.get(id(part)) or (part, self._lay_out(part)) for part in parts}
        self._laid_out = laid_out
        lines = [line for part in parts for line in laid_out[id(part)][1]]
        if not last:
            lines = lines[: size.height - 1]
        anew = size != self._size or last
        text = self._anew(lines) if anew else self._changed(lines)
        self._size, self._lines = (size.width, size.height), lines
        self._out.write(text)
        self._out.flush()

    def __enter__(self) -> "Screen":
        self._out.write(_HIDE)
        return self

    def __exit__(self, *_: object) -> None:
        self._out.write(_SHOW)
        self._out.flush()

    def _lay_out(self, part: RenderableType) -> list[str]:
        with self.console.capture() as caught:
            self.console.print(part)
        return caught.get().removesuffix("\n").split("\n")

    def _anew(self, lines: Sequence[str]) -> str:
        return _up(len(self._lines)) + "\x1b[J" + "".join(f"{line}\n" for line in lines)

    def _changed(self, lines: Sequence[str]) -> str:
        """From the line below the last, up and down again."""
        if lines == self._lines:
            return ""
        out = [_up(len(self._lines))]
        for place, line in enumerate(lines):
            is_same = place < len(self._lines) and self._lines[place] == line
            out.append("\n" if is_same else f"\x1b[2K{line}\n")
        return "".join(out) + "\x1b[J"


def _up(lines: int) -> str:
    """To the beginning of a line so many above."""
    return f"\x1b[{lines}F" if lines else "\r"
