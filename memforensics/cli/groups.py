"""Help and groups of commands."""

from collections.abc import Sequence
from typing import Any

from typer.core import TyperGroup


def epilog(examples: Sequence[str]) -> str:
    """Examples as --help shows them; \\b keeps the lines as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples)


def group_with_default(name: str) -> type[TyperGroup]:
    """A group of commands, one of which is meant where none is named: `case FILE` is `case list FILE`."""

    class Group(TyperGroup):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
                args = [name, *args]
            return super().parse_args(ctx, args)

    return Group
