"""One catalogue entry as a page of Markdown (which reads as plain text too), or as JSON-ready values."""

import inspect
from collections.abc import Iterator
from typing import Any

import msgspec

from memforensics.remedies.catalogue import Catalogue, Entry, Rung
from memforensics.remedies.catalogue import __doc__ as catalogue_format
from memforensics.remedies.conditions import (
    CmdlineCondition,
    Condition,
    EnvCondition,
    HeapCondition,
    HookCondition,
    HugePagesCondition,
    LayerCondition,
    ModuleCondition,
    RoleCondition,
    SiteCondition,
    UnreadCondition,
    VersionCondition,
)


def entry_object(entry: Entry) -> dict[str, Any]:
    """The entry, with its explanation in one line."""
    built: dict[str, Any] = msgspec.to_builtins(entry)
    return {**built, "explanation": entry.why}


def entry_page(entry: Entry, level: int = 1) -> str:
    """The page, headings from `level` on."""
    return "\n".join(_page(entry, "#" * level)) + "\n"


def catalogue_page(catalogue: Catalogue) -> str:
    """All entries on one page: docs/remedies.md."""
    lines = [
        "# The remedy catalogue",
        "",
        "Made from `memforensics/remedies/catalogue/*.toml` by `scripts/gen_docs.py`; edit those files, not this one.",
        "**An entry becomes a cause only when every required sign is seen in the process;** a sign that could not be",
        "read makes it possible at most, unless the entry says that the rest is proof enough.",
        "",
        "| id | layer | what |",
        "|---|---|---|",
        *(f"| [{entry.id}](#{entry.id}) | {entry.layer} | {entry.title} |" for entry in catalogue),
        "",
        "## An entry of your own",
        "",
        "`memforensics remedies test --folder DIR` checks a folder of such files, `list` and `show` take it too:",
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
            need += "; lowers the confidence where it cannot be read"
        yield f"- {describe(sign.when)} ({need})"
    if entry.remedies:
        yield ""
        yield f"{mark}# Remedies, in the order to try"
        yield ""
        for number, rung in enumerate(entry.remedies, 1):
            yield from _rung(number, rung)
    for text in entry.does_not_help:
        yield f"- {text}."
    yield ""
    yield f"{mark}# Sources"
    yield ""
    for source in entry.sources:
        yield f"- <{source}>"


def _rung(number: int, rung: Rung) -> Iterator[str]:
    when = "at a restart" if rung.scope == "restart" else "while it runs"
    yield f"{number}. `{rung.setting}` ({rung.kind}, takes effect {when}). {rung.text}"
    for caveat in rung.caveats:
        yield f"   - Mind: {caveat}"
    for need in rung.needs:
        yield f"   - Offered only where {describe(need)}."
    if rung.satisfied_up_to:
        yield f"   - In place already where the value is {rung.satisfied_up_to} or less."
    for veto in rung.vetoes:
        effect = "moves to the end" if veto.effect == "last" else "is not offered"
        yield f"   - Where {describe(veto.when)}, it {effect}: {veto.text}"
    yield f"   - Source: {rung.source}"


def describe(condition: Condition) -> str:
    """A condition in words."""
    match condition:
        case SiteCondition():
            inside = f", inside a hook of {_any(condition.inside)}" if condition.inside else ""
            frames = " and ".join(_code(frame) for frame in condition.frames)
            through = f" through {frames}" if frames else ""
            memory = f"at least {condition.share:.0%} of the outstanding {_any(condition.kinds)} memory"
            return f"{memory} comes{through}{inside}"
        case HookCondition():
            return f"{_any(condition.functions)} is hooked by {_code(condition.owner)}"
        case ModuleCondition():
            return f"{_code(condition.name)} is mapped"
        case VersionCondition():
            return f"the mapped {condition.product} ({_code(condition.name)}) has a version {condition.range}"
        case EnvCondition():
            return f"the environment has {_code(condition.name)} matching `{condition.value}`"
        case RoleCondition():
            return f"the process is {condition.role}"
        case CmdlineCondition():
            return condition.says
        case LayerCondition():
            return f"the growth is in the layer {_any(condition.layers)}"
        case HeapCondition():
            arenas = f", in {condition.arenas} arenas or more" if condition.arenas else ""
            return f"{condition.allocator} keeps at least {condition.retained_share:.0%} of its memory free{arenas}"
        case HugePagesCondition():
            return (
                f"huge pages make at least {condition.share:.0%} of the growth, and the mappings' size does not follow"
            )
        case UnreadCondition():
            return f"{condition.what}, which is not read yet"


def _any(names: tuple[str, ...]) -> str:
    return " or ".join(names)


def _code(pattern: str) -> str:
    return " or ".join(f"`{part.strip()}`" for part in pattern.split(" | "))
