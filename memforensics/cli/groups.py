"""Command groups and their help."""

from collections.abc import Sequence
from typing import Any

from typer.core import TyperGroup

WIDTH = 120  # the most columns of help


class Group(TyperGroup):
    """A group whose help shows the whole first sentence of each command."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = [
            (name, command.get_short_help_str(limit=1000))
            for name in self.list_commands(ctx)
            if (command := self.get_command(ctx, name)) is not None
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def epilog(examples: Sequence[str]) -> str:
    """Examples as --help shows them; \\b keeps the line breaks."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples)


def group_with_default(name: str) -> type[TyperGroup]:
    """A group with a default command: `case FILE` is `case list FILE`."""

    class WithDefault(Group):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
                args = [name, *args]
            return super().parse_args(ctx, args)

    return WithDefault
