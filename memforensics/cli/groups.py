"""Help and groups of commands."""

from collections.abc import Sequence
from typing import Any

from typer.core import TyperGroup

WIDTH = 120  # columns that help uses at most; longer lines are hard to read


class Group(TyperGroup):
    """A group whose help shows each command's first sentence whole, on as many lines as it takes."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = [
            (name, command.get_short_help_str(limit=1000))
            for name in self.list_commands(ctx)
            if (command := self.get_command(ctx, name)) is not None
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def epilog(examples: Sequence[str]) -> str:
    """Examples as --help shows them; \\b keeps the lines as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples)


def group_with_default(name: str) -> type[TyperGroup]:
    """A group of commands, one of which is meant where none is named: `case FILE` is `case list FILE`."""

    class WithDefault(Group):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
                args = [name, *args]
            return super().parse_args(ctx, args)

    return WithDefault
