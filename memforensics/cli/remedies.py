"""`memforensics remedies list | show | test`."""

from pathlib import Path
from typing import Annotated

import typer

from memforensics.cli.common import JsonOption, print_json, say
from memforensics.cli.groups import Group, epilog
from memforensics.errors import UsageError

_LIST = ("memforensics remedies list", "memforensics remedies list --json")
_SHOW = ("memforensics remedies show ucx-invq",)
_TEST = ("memforensics remedies test --folder ./our-remedies",)
group = typer.Typer(
    cls=Group,
    help="List, show and check the catalogue of known causes and their remedies.",
    epilog=epilog((_LIST[0], *_SHOW, *_TEST)),
    no_args_is_help=True,
    rich_markup_mode=None,
)
FolderOption = Annotated[
    Path | None, typer.Option("--folder", metavar="DIR", help="Also use your own entries, one .toml file each.")
]


@group.command("list", epilog=epilog(_LIST))
def list_entries(folder: FolderOption = None, as_json: JsonOption = False) -> None:
    """List the known causes."""
    from memforensics.remedies.catalogue import load_catalogue

    entries = load_catalogue(folder)
    if as_json:
        print_json([{"id": entry.id, "title": entry.title, "layer": entry.layer} for entry in entries])
        return
    width = max(len(entry.id) for entry in entries)
    for entry in entries:
        say(f"{entry.id:<{width}}  {entry.layer:<20} {entry.title}")


@group.command("show", epilog=epilog(_SHOW))
def show(
    id: Annotated[str, typer.Argument(metavar="ID", help="The ID that `remedies list` prints.")],
    folder: FolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one cause: why memory grows, its signs, the remedies in order, the sources."""
    from memforensics.remedies.catalogue import load_catalogue
    from memforensics.remedies.page import entry_object, entry_page

    entries = {entry.id: entry for entry in load_catalogue(folder)}
    if id not in entries:
        raise UsageError(f"the catalogue has no entry {id!r}", enable="memforensics remedies list")
    if as_json:
        print_json(entry_object(entries[id]))
    else:
        say(entry_page(entries[id]), end="")


@group.command("test", epilog=epilog(_TEST))
def check(folder: FolderOption = None) -> None:
    """Check every entry, including those in your own folder. Exit code 2: an entry is wrong; the message says which."""
    from memforensics.remedies.catalogue import load_catalogue

    entries = load_catalogue(folder)
    say(f"{len(entries)} entries are correct")
