"""The catalogue of known causes: one TOML file per cause, checked strictly.

id            the file's name without .toml
title         one line
layer         where the memory is
certainty     "V": verified in the cited sources. "P": plausible; such an entry is never reported as a cause
role          "cause" (default), or "conflict": settings that do not work together, which are only mentioned
verdict       the verdict of a growing finding with this cause: leak, bounded or retention; without it: no change
strength      0 to 1: confidence from the required signs alone
explanation   why memory grows, in about three sentences
sources       URLs that describe it

[[signs]]     need = "required" | "adds", weight (adds), when_unknown = "possible" | "lower" (required), says, when
[[remedies]]  in the order to try: kind, name, value, text, scope, caveats, source
              satisfied_by (a regular expression for the whole value) or satisfied_up_to (a size in UCX's spelling):
              values of the variable with which the remedy is already in place
  [[remedies.needs]]    a version condition: the remedy is offered only if the mapped library has such a version
  [[remedies.vetoes]]   effect = "last" | "drop", text, when
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
import msgspec.toml

from memforensics.case.model import Layer, Remedy, RemedyKind
from memforensics.errors import UsageError
from memforensics.remedies.conditions import Condition, VersionCondition


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Sign(_Part, frozen=True, kw_only=True):
    """A condition that indicates the cause. An unmet required sign excludes the entry. An unknown required sign makes
    the entry only possible, or with `when_unknown = "lower"` lowers the confidence."""

    when: Condition
    need: Literal["required", "adds"] = "required"
    weight: float = 0.0
    when_unknown: Literal["possible", "lower"] = "possible"
    says: str | None = None


class Veto(_Part, frozen=True, kw_only=True):
    """A condition that makes a remedy unsuitable for this process."""

    when: Condition
    effect: Literal["last", "drop"]
    text: str


class RemedyEntry(_Part, frozen=True, kw_only=True):
    """One remedy of an entry."""

    kind: RemedyKind
    name: str
    value: str
    text: str
    scope: Literal["restart", "live"]
    source: str
    caveats: tuple[str, ...] = ()
    satisfied_by: str | None = None
    satisfied_up_to: str | None = None
    needs: tuple[VersionCondition, ...] = ()
    vetoes: tuple[Veto, ...] = ()

    @property
    def setting(self) -> str:
        """E.g. `UCX_RCACHE_MAX_UNRELEASED=1024`, `UCX >= 1.21.0`."""
        return f"{self.name}={self.value}" if self.kind == "env" else f"{self.name} {self.value}".strip()

    def is_in_place(self, value: str) -> bool:
        """Whether this value of the variable already has the effect of the remedy."""
        if self.satisfied_up_to is not None:
            size, limit = parse_memunits(value), parse_memunits(self.satisfied_up_to)
            return size is not None and limit is not None and size <= limit
        return re.fullmatch(self.satisfied_by or re.escape(self.value), value) is not None

    def remedy(self, *more_caveats: str) -> Remedy:
        return Remedy(
            kind=self.kind,
            name=self.name,
            value=self.value,
            text=self.text,
            scope=self.scope,
            caveats=self.caveats + more_caveats,
            source=self.source,
        )


class Entry(_Part, frozen=True, kw_only=True):
    """One cause of the catalogue."""

    id: str
    title: str
    layer: Layer
    certainty: Literal["V", "P"]
    explanation: str
    sources: tuple[str, ...]
    signs: tuple[Sign, ...]
    remedies: tuple[RemedyEntry, ...] = ()
    role: Literal["cause", "conflict"] = "cause"
    verdict: Literal["leak", "bounded", "retention"] | None = None
    strength: float = 0.6
    does_not_help: tuple[str, ...] = ()

    @property
    def why(self) -> str:
        """The explanation in one line."""
        return " ".join(self.explanation.split())


# UCX, src/ucs/sys/string.c, ucs_str_to_memunits: sscanf("%ld%c%c"), B to T in either case, a second letter only "b".
_MEMUNITS = re.compile(r"\s*(\d+)(?:([bkmgt])(?:b.*)?)?", re.IGNORECASE | re.DOTALL)
_MEMUNITS_FACTORS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_memunits(text: str) -> int | None:
    """A size in UCX's spelling (1024, 64k, 8MB), in bytes. None for `inf`, `auto`, and sizes that UCX rejects
    (1.5G)."""
    found = _MEMUNITS.fullmatch(text)
    return int(found[1]) * _MEMUNITS_FACTORS[(found[2] or "").lower()] if found else None


Catalogue = tuple[Entry, ...]
PACKAGED = Path(__file__).with_name("catalogue")
MAX_ENTRY_BYTES = 64 * 1024
MAX_LINE = 4096  # characters. tomllib's time grows with the square of the dots in a key
MAX_ENTRIES = 1000  # of one folder


def load_catalogue(extra: Path | None = None) -> Catalogue:
    """The packaged entries and those of the folder `extra`, sorted by id. An entry of `extra` replaces a packaged entry
    with the same id. UsageError names the file and the error."""
    entries = {entry.id: entry for entry in _entries(PACKAGED)}
    if extra is not None:
        if not extra.is_dir():
            raise UsageError(f"there is no folder {extra}", enable="name a folder of .toml files")
        entries |= {entry.id: entry for entry in _entries(extra)}
    return tuple(entries[name] for name in sorted(entries))


def parse_entry(text: str, name: str) -> Entry:
    """The entry in the text of one file. UsageError names the file (`name`) and the error."""
    try:
        if max(map(len, text.split("\n"))) > MAX_LINE:
            raise ValueError(f"a line has more than {MAX_LINE} characters")
        entry = msgspec.toml.decode(text, type=Entry)  # tomllib, on 3.10 tomli
        _check(entry)
    except (msgspec.MsgspecError, ValueError, re.error, RecursionError) as error:
        raise UsageError(f"{name} is not a catalogue entry", why=str(error)) from error
    return entry


def _entries(folder: Path) -> Iterator[Entry]:
    try:
        files = sorted(folder / name for name in os.listdir(folder) if name.endswith(".toml"))
    except OSError as error:
        raise UsageError(f"cannot read {folder}", why=error.strerror or str(error)) from error
    if len(files) > MAX_ENTRIES:
        raise UsageError(f"{folder} has {len(files)} .toml files", why=f"at most {MAX_ENTRIES} are read")
    for file in files:
        try:
            text = _text(file)
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else None
            raise UsageError(f"cannot read {file}", why=why or str(error)) from error
        entry = parse_entry(text, str(file))
        if f"{entry.id}.toml" != file.name:
            raise UsageError(f"{file} is not a catalogue entry", why=f"its id {entry.id!r} is not its file's name")
        yield entry


def _text(file: Path) -> str:
    """The text of a regular file, which links may lead to. OSError for any other, and for one that is too large."""
    if not file.is_file():  # to open a FIFO waits for its writer
        file.stat()
        raise OSError("it is not a regular file")
    with open(file, "rb") as stream:
        data = stream.read(MAX_ENTRY_BYTES + 1)
    if len(data) > MAX_ENTRY_BYTES:
        raise OSError(f"it is larger than {MAX_ENTRY_BYTES >> 10} KiB")
    return data.decode("utf-8")


def _check(entry: Entry) -> None:
    """ValueError for errors that the types do not exclude."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", entry.id):
        raise ValueError(f"id {entry.id!r}: lower case letters, digits and hyphens only")
    if not any(sign.need == "required" for sign in entry.signs):
        raise ValueError("no sign is required, so the entry would match every finding")
    if not 0 <= entry.strength <= 1 or any(not 0 <= sign.weight <= 1 for sign in entry.signs):
        raise ValueError("strength and weight must be 0 to 1")
    if entry.certainty == "V" and not entry.sources:
        raise ValueError('certainty "V" needs a source')
    for remedy in entry.remedies:
        if not remedy.source:
            raise ValueError(f"the remedy {remedy.name} has no source")
        re.compile(remedy.satisfied_by or "")
        if remedy.satisfied_up_to is not None and parse_memunits(remedy.satisfied_up_to) is None:
            raise ValueError(f"satisfied_up_to {remedy.satisfied_up_to!r} is not a size")
