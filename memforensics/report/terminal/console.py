"""The only console that writes to a terminal. Text from a process, a file or a host cannot move the cursor, set the
title, write to the clipboard or reverse the direction of a line."""

from collections.abc import Iterable

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from memforensics.text import safe_lines


class Console(RichConsole):
    """rich's, which shows every character that does not print as its escape (\\x1b). What rich itself writes to colour
    and to move the cursor passes."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text = segment.text
            if segment.control or text.isprintable() or text == "\n":
                yield segment
            else:
                yield Segment(safe_lines(text), segment.style)
