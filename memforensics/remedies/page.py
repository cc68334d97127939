"""Catalogue entries as Markdown, which also reads as plain text, or as JSON-ready values."""

import inspect
from collections.abc import Iterator
from typing import Any

import msgspec

from memforensics.remedies.catalogue import Catalogue, Entry, RemedyEntry
from memforensics.remedies.catalogue import __doc__ as catalogue_format


def entry_object(entry: Entry) -> dict[str, Any]:
    """The entry as JSON-ready values, with its explanation in one line."""
    built: dict[str, Any] = msgspec.to_builtins(entry)
    return {**built, "explanation": entry.why}


def entry_page(entry: Entry, level: int = 1) -> str:
    """The page of one entry. `level`: of its first heading."""
    return "\n".join(_page(entry, "#" * level)) + "\n"


def catalogue_page(catalogue: Catalogue) -> str:
    """All entries on one page: docs/remedies.md."""
    lines = [
        "# The remedy catalogue",
        "",
        "Made from `memforensics/remedies/catalogue/*.toml` by `scripts/gen_docs.py`; edit those files, not this one.",
        "**An entry becomes a cause only if the process shows every required sign.** If a required sign could not be",
        "read, the report mentions the entry as possible, unless the entry accepts the other signs as proof.",
        "",
        "| id | layer | what |",
        "|---|---|---|",
        *(f"| [{entry.id}](#{entry.id}) | {entry.layer} | {entry.title} |" for entry in catalogue),
        "",
        "## An entry of your own",
        "",
        "`memforensics remedies test --folder DIR` checks a folder of such files. `list` and `show` take it too.",
        "",
        "```text",
        *(inspect.cleandoc(catalogue_format or "").splitlines()),
        "```",
        "",
    ]
    return "\n".join(lines) + "\n" + "\n".join(entry_page(entry, 2) for entry in catalogue)


def _page(entry: Entry, mark: str) -> Iterator[str]:
    yield f"{mark} {entry.id}"
    yield ""
    yield f"**{entry.title}.** Layer `{entry.layer}`."
    yield ""
    yield entry.why
    yield ""
    yield f"{mark}# Signs"
    yield ""
    for sign in entry.signs:
        need = "required" if sign.need == "required" else "adds to the confidence"
        if sign.need == "required" and sign.when_unknown == "lower":
            need += "; lowers the confidence if it cannot be read"
        yield f"- {sign.when.describe()} ({need})"
    if entry.remedies:
        yield ""
        yield f"{mark}# Remedies, in the order to try"
        yield ""
        for number, remedy in enumerate(entry.remedies, 1):
            yield from _remedy_lines(number, remedy)
    for text in entry.does_not_help:
        yield f"- {text}."
    yield ""
    yield f"{mark}# Sources"
    yield ""
    for source in entry.sources:
        yield f"- <{source}>"


def _remedy_lines(number: int, remedy: RemedyEntry) -> Iterator[str]:
    when = "after a restart" if remedy.scope == "restart" else "at once"
    yield f"{number}. `{remedy.setting}` ({remedy.kind}, takes effect {when}). {remedy.text}"
    for caveat in remedy.caveats:
        yield f"   - Note: {caveat}"
    for need in remedy.needs:
        yield f"   - Offered only if {need.describe()}."
    if remedy.satisfied_up_to:
        yield f"   - Already in place if the value is {remedy.satisfied_up_to} or less."
    for veto in remedy.vetoes:
        effect = "moves to the end" if veto.effect == "last" else "is not offered"
        yield f"   - If {veto.when.describe()}, it {effect}: {veto.text}"
    yield f"   - Source: {remedy.source}"
