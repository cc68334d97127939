"""The case file: SQLite in WAL mode, appended while watching, readable after a SIGKILL up to the last commit.

One table a kind of evidence. A scalar field of the dataclass is a column of its own, with its name and unit; nested
values are JSON text. So pandas and sqlite3 read it as it is: `select t_ns, rss_anon from sample where pid = 42`.
Records with a key (a site, a target, a probe's status) replace their older version; all others append.
"""

import dataclasses
import os
import sqlite3
import types
import typing
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from memforensics.case import model
from memforensics.errors import CaseError

SCHEMA_VERSION = 1
APPLICATION_ID = 0x4D465243  # "MFRC"

T = TypeVar("T")

# Kind of evidence -> the fields that identify one record (empty: append only), and the field of Case that holds it.
KINDS: dict[type, tuple[tuple[str, ...], str]] = {
    model.Target: (("pid",), "targets"),
    model.Module: (("pid", "path"), "modules"),
    model.Sample: ((), "samples"),
    model.Snapshot: ((), "snapshots"),
    model.AllocationSite: (("pid", "site_id"), "sites"),
    model.TraceSummary: (("pid", "began_ns"), "traces"),
    model.Hook: (("pid", "function", "mechanism", "target_address"), "hooks"),
    model.HookAudit: (("pid",), "hook_audits"),
    model.CapturedStack: ((), "captures"),
    model.HeapState: ((), "heaps"),
    model.HeapProfile: ((), "heap_profiles"),
    model.ProbeStatus: (("name", "pid"), "probes"),
    model.Loss: (("probe", "what"), "losses"),
    model.Pause: ((), "pauses"),
    model.Cost: (("probe",), "costs"),
    model.VariantRun: (("root_pid",), "runs"),
}
_MAPPING_FIELDS = tuple(f.name for f in dataclasses.fields(model.Mapping))
_COLUMN_TYPES = {int: "INTEGER", float: "REAL", str: "TEXT", bool: "INTEGER"}


@dataclasses.dataclass(frozen=True, slots=True)
class _Column:
    name: str
    sql_type: str
    scalar: type | None  # None: JSON text
    annotation: Any


def _columns(kind: type) -> tuple[_Column, ...]:
    hints = typing.get_type_hints(kind)
    out = []
    for field in dataclasses.fields(kind):
        annotation = hints[field.name]
        scalar = _scalar_type(annotation)
        out.append(_Column(field.name, _COLUMN_TYPES.get(scalar, "TEXT") if scalar else "TEXT", scalar, annotation))
    return tuple(out)


def _scalar_type(annotation: Any) -> type | None:
    """int, float, str or bool for such a type, its Optional, or a Literal of such; else None."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(annotation) if a is not type(None)]
        return _scalar_type(inner[0]) if len(inner) == 1 else None
    if typing.get_origin(annotation) is typing.Literal:
        return type(typing.get_args(annotation)[0])
    return annotation if annotation in _COLUMN_TYPES else None


_TABLES: dict[type, tuple[str, tuple[_Column, ...]]] = {
    kind: ("".join("_" + c.lower() if c.isupper() else c for c in kind.__name__).lstrip("_"), _columns(kind))
    for kind in KINDS
}


class CaseFile:
    """An open case file. `create` makes one (mode 0600), `open` reads an existing one."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._db, self.path = connection, path

    @classmethod
    def create(cls, path: Path, meta: model.CaseMeta) -> "CaseFile":
        """A new, empty case. CaseError when there is a file already, or none can be made there."""
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600))
        except FileExistsError as error:
            raise CaseError(
                f"{path} exists already", why="a case is never overwritten", enable=f"mv {path} {path}.old"
            ) from error
        except OSError as error:
            raise CaseError(f"cannot create {path}", why=error.strerror or str(error)) from error
        db = sqlite3.connect(path, isolation_level=None)
        self = cls(db, path)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute("BEGIN")
        for statement in _schema():
            db.execute(statement)
        db.execute("INSERT INTO meta (json) VALUES (?)", (_json(meta),))
        db.execute("COMMIT")
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        return self

    @classmethod
    def open(cls, path: Path) -> "CaseFile":
        """An existing case, to read. CaseError when it is none, or of a newer memforensics."""
        if not path.is_file():
            raise CaseError(f"there is no case file {path}", enable="memforensics diagnose PID --record FILE makes one")
        try:
            # A case on a read-only medium, or another user's, has no place for the WAL's index: read it as it lies.
            mode = "mode=ro" if os.access(path.parent, os.W_OK) else "mode=ro&immutable=1"
            db = sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True, isolation_level=None)
            application = db.execute("PRAGMA application_id").fetchone()[0]
            version = db.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise CaseError(f"{path} is not a case file", why=str(error)) from error
        if application != APPLICATION_ID:
            db.close()
            raise CaseError(f"{path} is not a memforensics case", why="it is an SQLite file of another program")
        if version > SCHEMA_VERSION:
            db.close()
            raise CaseError(
                f"{path} was written by a newer memforensics (case schema {version}, this one reads {SCHEMA_VERSION})",
                enable="pip install --upgrade memforensics",
            )
        return cls(db, path)

    def put(self, records: Iterable[object]) -> None:
        """Appends (or, for a record with a key, replaces) and commits, all or nothing."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for record in records:
                self._put_one(record)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise CaseError(
                f"cannot write to {self.path}",
                why=f"{error}; everything up to the last commit is kept",
                enable="free space there, or choose another place: --record FILE",
            ) from error

    def load(self) -> model.Case:
        """Everything in it."""
        row = self._db.execute("SELECT json FROM meta").fetchone()
        if row is None:
            raise CaseError(f"{self.path} is empty", why="its writer was ended before the first commit")
        try:
            meta = msgspec.json.decode(row[0], type=model.CaseMeta)
            fields: dict[str, tuple[Any, ...]] = {
                field: tuple(self._load_kind(kind)) for kind, (_, field) in KINDS.items()
            }
        except (sqlite3.DatabaseError, msgspec.MsgspecError) as error:
            raise CaseError(f"{self.path} is damaged", why=str(error)) from error
        return model.Case(meta=meta, **fields)

    def counts(self) -> dict[str, int]:
        """Table -> rows, for listing."""
        names = [table for table, _ in _TABLES.values()]
        return {name: int(self._db.execute(f"SELECT count(*) FROM {name}").fetchone()[0]) for name in names}

    def rows(self, table: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Column names and rows of one table, as stored. CaseError when there is no such table."""
        if table not in {name for name, _ in _TABLES.values()} | {"mapping"}:
            raise CaseError(
                f"a case has no table {table!r}",
                enable=f"one of: {', '.join(sorted(self.counts()))}, mapping",
            )
        cursor = self._db.execute(f"SELECT * FROM {table}")
        return [column[0] for column in cursor.description], cursor.fetchall()

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> "CaseFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _put_one(self, record: object) -> None:
        table, columns = _TABLES[type(record)]
        values = [_to_sql(getattr(record, column.name), column) for column in columns]
        if isinstance(record, model.Snapshot):
            values = [None if column.name == "mappings" else v for column, v in zip(columns, values, strict=True)]
        names = ", ".join(_quoted(column.name for column in columns))
        marks = ", ".join("?" * len(columns))
        cursor = self._db.execute(f"INSERT OR REPLACE INTO {table} ({names}) VALUES ({marks})", values)
        if isinstance(record, model.Snapshot):
            self._db.executemany(
                f"INSERT INTO mapping (snapshot_id, {', '.join(_quoted(_MAPPING_FIELDS))})"
                f" VALUES (?{', ?' * len(_MAPPING_FIELDS)})",
                (
                    # addresses as text: SQLite's integers are signed, [vsyscall] stands above 2**63
                    (
                        cursor.lastrowid,
                        f"{m.start:x}",
                        f"{m.end:x}",
                        *(getattr(m, n) for n in _MAPPING_FIELDS[2:]),
                    )
                    for m in record.mappings
                ),
            )

    def _load_kind(self, kind: type[T]) -> Iterator[T]:
        table, columns = _TABLES[kind]
        names = ", ".join(_quoted(column.name for column in columns))
        for row_id, *values in self._db.execute(f"SELECT rowid, {names} FROM {table} ORDER BY rowid"):
            fields = {c.name: _from_sql(v, c) for c, v in zip(columns, values, strict=True) if c.name != "mappings"}
            if kind is model.Snapshot:
                fields["mappings"] = tuple(self._load_mappings(row_id))
            yield kind(**fields)

    def _load_mappings(self, snapshot_id: int) -> Iterator[model.Mapping]:
        query = f"SELECT {', '.join(_quoted(_MAPPING_FIELDS))} FROM mapping WHERE snapshot_id = ? ORDER BY rowid"
        for start, end, *rest in self._db.execute(query, (snapshot_id,)):
            row = dict(zip(_MAPPING_FIELDS[2:], rest, strict=True))
            yield model.Mapping(start=int(start, 16), end=int(end, 16), **row)


def _schema() -> Iterator[str]:
    yield "CREATE TABLE meta (json TEXT NOT NULL)"
    for kind, (key, _) in KINDS.items():
        table, columns = _TABLES[kind]
        lines = [f'"{column.name}" {column.sql_type}' for column in columns]
        if key:
            lines.append(f"UNIQUE ({', '.join(_quoted(key))})")
        yield f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, {', '.join(lines)})"
    mapping = ", ".join(
        f"{quoted} {column.sql_type if column.name not in ('start', 'end') else 'TEXT'}"
        for quoted, column in zip(_quoted(_MAPPING_FIELDS), _columns(model.Mapping), strict=True)
    )
    yield f"CREATE TABLE mapping (snapshot_id INTEGER NOT NULL, {mapping})"
    yield "CREATE INDEX mapping_by_snapshot ON mapping (snapshot_id)"


def _quoted(names: Iterable[str]) -> list[str]:
    return [f'"{name}"' for name in names]  # "end", "offset", "order" are words of SQL


def _to_sql(value: Any, column: _Column) -> Any:
    if value is None:
        return None
    if column.scalar is None:
        return _json(value)
    if column.scalar is str:
        # /proc text may hold bytes that are no UTF-8 (surrogates); SQLite takes none
        return value.encode("utf-8", "backslashreplace").decode() if not value.isascii() else value
    return value


def _from_sql(value: Any, column: _Column) -> Any:
    if value is None:
        return None
    if column.scalar is None:
        return msgspec.json.decode(value, type=column.annotation)
    if column.scalar is bool:
        return bool(value)
    return value


def _json(value: object) -> str:
    return msgspec.json.encode(_clean(value)).decode()


def _clean(value: object) -> object:
    """JSON-ready, lone surrogates escaped."""
    built = msgspec.to_builtins(value)
    return _clean_built(built)


def _clean_built(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list | tuple):
        return [_clean_built(v) for v in value]
    if isinstance(value, dict):
        return {_clean_built(k): _clean_built(v) for k, v in value.items()}
    return value
