"""The case file: SQLite in WAL mode. It grows during the observation, and after a SIGKILL it is readable up to the last
commit.

Each kind of evidence has one table. A scalar field of the dataclass is a column with the same name; nested values are
JSON text. So pandas and sqlite3 can read it directly: `select t_ns, rss_anon from sample where pid = 42`. Records with
a key (a site, a target, the status of a probe) replace their older version; all others are appended.

A case may come from an untrusted source. Each row is checked against its type when it is read; rows that do not fit are
left out and counted as a loss of the case.
"""

import dataclasses
import os
import re
import sqlite3
import types
import typing
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby, repeat
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import structs

from memforensics.case import model
from memforensics.errors import CaseError, CaseExists
from memforensics.text import utf8_all

SCHEMA_VERSION = 1
APPLICATION_ID = 0x4D465243  # "MFRC"
_CHECKPOINT_PAGES = 100  # of 4 KiB: the most that is in the log alone
_CLOSE_WAIT_MS = 200  # for a reader to finish
_WAL_HEADER = b"\x02\x02"  # bytes 18 and 19 of a database in WAL mode (sqlite.org/fileformat2)

# SQLite quotes a damaged schema in its messages, and sqlite3 fails to decode them where they are not UTF-8.
SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)

T = TypeVar("T")

# Kind of evidence -> the key fields of a record (empty: append only), and its field of Case.
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
    model.ReferenceCheck: (("pid", "site_id"), "reference_checks"),
    model.ProbeStatus: (("name", "pid"), "probes"),
    model.Loss: (("probe", "what"), "losses"),
    model.Pause: ((), "pauses"),
    model.Cost: (("probe",), "costs"),
    model.VariantRun: (("root_pid",), "runs"),
}
_MAPPING_FIELDS = model.Mapping.__struct_fields__
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
    for name, annotation in hints.items():
        scalar = _scalar_type(annotation)
        out.append(_Column(name, _COLUMN_TYPES.get(scalar, "TEXT") if scalar else "TEXT", scalar, annotation))
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


_MAPPING_REST = _columns(model.Mapping)[2:]  # all but start and end


class CaseFile:
    """An open case file. `create` makes a new one (mode 0600), `open` opens an existing one.

    While it is written, a write-ahead log is in the same folder; `close` merges the log into the file and removes it.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path, *, write: bool) -> None:
        self._db, self.path, self._write = connection, path, write

    @classmethod
    def create(cls, path: Path, meta: model.CaseMeta) -> "CaseFile":
        """A new, empty case. CaseExists if the file exists, CaseError if it cannot be created."""
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600))
        except FileExistsError as error:
            raise CaseExists(
                f"{path} already exists", why="a case is never overwritten", enable=f"mv {path} {path}.old"
            ) from error
        except OSError as error:
            raise CaseError(f"cannot create {path}", why=error.strerror or str(error)) from error
        db = sqlite3.connect(path, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("BEGIN")
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            for statement in _schema():
                db.execute(statement)
            db.execute("INSERT INTO meta (json) VALUES (?)", (_json(meta),))
            db.execute("COMMIT")
            # so that the file without its log, copied after a crash, is a case too
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        except SQLITE_ERRORS as error:
            db.close()
            for leftover in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
                leftover.unlink(missing_ok=True)  # just created, and empty
            raise CaseError(f"cannot create {path}", why=str(error), enable="choose another folder") from error
        return cls(db, path, write=True)

    @classmethod
    def open(cls, path: Path, *, write: bool = False) -> "CaseFile":
        """An existing case, read-only or for changes (`write`). CaseError if it is not a case, or has a newer schema.

        Reading creates no other file, and includes the log of a killed or a running writer.
        """
        if path.exists() and not path.is_file():
            raise CaseError(f"{path} is not a case file", why="it is not a regular file")
        if not path.is_file():
            make_one = "memforensics diagnose PID --record FILE   (makes one)"
            raise CaseError(f"there is no case file {path}", enable=make_one)
        if not os.access(path, os.R_OK):
            raise CaseError(f"cannot read {path}", why="permission denied", enable="run with sudo, or chown the file")
        try:
            db = _open_for_changes(path) if write else _open_read_only(path)
        except (*SQLITE_ERRORS, OSError) as error:
            raise CaseError(f"cannot read {path}", why=str(error)) from error
        try:
            _check(db, path)
            if write:
                db.execute("PRAGMA journal_mode = WAL")
        except SQLITE_ERRORS as error:
            db.close()
            raise CaseError(f"{path} is not a case file, or is damaged", why=str(error)) from error
        except CaseError:
            db.close()
            raise
        return cls(db, path, write=write)

    def put(self, records: Iterable[object]) -> None:
        """Appends the records, or replaces those with equal keys, in one transaction."""
        with self._transaction():
            for record in records:
                self._put_one(record)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException as error:  # also at Ctrl-C between two records
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            if not isinstance(error, sqlite3.Error):
                raise
            raise CaseError(
                f"cannot write to {self.path}",
                why=f"{error}; everything up to the last commit is kept",
                enable="free disk space, or choose another file: --record FILE",
            ) from error

    def rewrite_stacks(self, change: Callable[[model.Stack], model.Stack]) -> int:
        """Replaces each stored stack by `change(stack)`, in one transaction. Returns the number of changed stacks."""
        changed = 0
        with self._transaction():
            for table, columns in _TABLES.values():
                column = next((c for c in columns if c.annotation is model.Stack), None)
                if column is None:
                    continue
                try:
                    rows = self._db.execute(f"SELECT id, {column.name} FROM {table}").fetchall()
                    stacks = [(row, stack) for row, text in rows if (stack := _stack(text)) is not None]
                except SQLITE_ERRORS as error:
                    raise self._damaged(error) from error
                new = [(_json(now), row) for row, stack in stacks if (now := change(stack)) != stack]
                self._db.executemany(f"UPDATE {table} SET {column.name} = ? WHERE id = ?", new)
                changed += len(new)
        return changed

    def copy_to(self, path: Path) -> None:
        """Copies the case to a new file. CaseError if the file exists, or cannot be created."""
        with CaseFile.create(path, self.meta()) as other:
            try:
                self._db.backup(other._db)
            except SQLITE_ERRORS as error:
                raise CaseError(f"cannot write {path}", why=str(error), enable="choose another folder") from error

    def drop(self, kind: type, keys: Iterable[tuple[int, int]]) -> None:
        """Removes samples or snapshots by (pid, t_ns). The file keeps its size; new records reuse the space."""
        table, unwanted = _TABLES[kind][0], set(keys)
        with self._transaction():
            rows = self._db.execute(f"SELECT id, pid, t_ns FROM {table}")
            ids = [(row_id,) for row_id, pid, t_ns in rows if (pid, t_ns) in unwanted]
            self._db.executemany(f"DELETE FROM {table} WHERE id = ?", ids)
            if kind is model.Snapshot:
                marks = ", ".join("?" * len(ids))
                self._db.execute(f"DELETE FROM mapping WHERE snapshot_id IN ({marks})", [row_id for (row_id,) in ids])

    def load(self, *, kinds: Collection[type] = tuple(KINDS)) -> model.Case:
        """The whole case, or some kinds of evidence, as of one commit, also while a writer appends. Damaged rows are
        left out and counted in `losses`. CaseError if the file is damaged."""
        damaged: Counter[str] = Counter()
        try:
            self._db.execute("BEGIN")
            try:
                meta = self.meta()
                fields: dict[str, tuple[Any, ...]] = {
                    field: tuple(self._load_kind(kind, damaged)) for kind, (_, field) in KINDS.items() if kind in kinds
                }
            finally:
                self._db.execute("ROLLBACK")
        except SQLITE_ERRORS as error:
            raise self._damaged(error) from error
        lost = [
            model.Loss(
                probe="case", what=f"damaged rows of {table}", count=count, reduce="use another copy of the case"
            )
            for table, count in damaged.items()
        ]
        if lost:
            fields["losses"] = (*fields.get("losses", ()), *lost)
        return model.Case(meta=meta, **fields)

    def meta(self) -> model.CaseMeta:
        """How the case was made."""
        try:
            row = self._db.execute("SELECT json FROM meta").fetchone()
            if row is None:
                raise CaseError(f"{self.path} is empty", why="its writer ended before the first commit")
            return typing.cast(model.CaseMeta, _from_json(row[0], model.CaseMeta))
        except (*SQLITE_ERRORS, _Damaged) as error:
            raise self._damaged(error) from error

    def counts(self) -> dict[str, int]:
        """Table -> number of rows. 0 for tables that are newer than the file."""
        names = [*(table for table, _ in _TABLES.values()), "mapping"]
        try:
            stored = {row[0] for row in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            return {
                name: int(self._db.execute(f"SELECT count(*) FROM {name}").fetchone()[0]) if name in stored else 0
                for name in names
            }
        except SQLITE_ERRORS as error:
            raise self._damaged(error) from error

    def rows(self, table: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Column names and rows of one table, as stored. CaseError if there is no such table."""
        if table not in {*(name for name, _ in _TABLES.values()), "mapping"}:
            raise CaseError(f"a case has no table {table!r}", enable=f"use one of: {', '.join(sorted(self.counts()))}")
        try:
            cursor = self._db.execute(f"SELECT * FROM {table}")
            return [column[0] for column in cursor.description], cursor.fetchall()
        except SQLITE_ERRORS as error:
            raise self._damaged(error) from error

    def span(self, table: str, column: str) -> tuple[int, int] | None:
        """Smallest and largest integer of a column. None if it has none."""
        try:
            row = self._db.execute(
                f"SELECT min({column}), max({column}) FROM {table} WHERE typeof({column}) = 'integer'"
            ).fetchone()
        except SQLITE_ERRORS as error:
            raise self._damaged(error) from error
        return None if row[0] is None else (row[0], row[1])

    def targets(self) -> tuple[model.Target, ...]:
        """The processes alone."""
        try:
            return tuple(self._load_kind(model.Target, Counter()))
        except SQLITE_ERRORS as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> CaseError:
        return CaseError(f"{self.path} is damaged", why=str(error))

    def close(self) -> None:
        """Merges the log into the file. The log stays if another process has the file open, or the disk is full."""
        if self._write:
            self._write = False
            with suppress(*SQLITE_ERRORS):
                self._db.execute(f"PRAGMA busy_timeout = {_CLOSE_WAIT_MS}")
                self._db.execute("PRAGMA journal_mode = DELETE")
        self._db.close()

    def __enter__(self) -> "CaseFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _put_one(self, record: object) -> None:
        table, columns = _TABLES[type(record)]
        if isinstance(record, model.Snapshot):
            columns = tuple(column for column in columns if column.name != "mappings")  # they have their own table
        values = [_to_sql(getattr(record, column.name), column) for column in columns]
        names = ", ".join(_quoted(column.name for column in columns))
        marks = ", ".join("?" * len(columns))
        cursor = self._db.execute(f"INSERT OR REPLACE INTO {table} ({names}) VALUES ({marks})", values)
        if isinstance(record, model.Snapshot):
            self._put_mappings(cursor.lastrowid, record.mappings)

    def _put_mappings(self, snapshot_id: int | None, mappings: Sequence[model.Mapping]) -> None:
        """Inserts tens of thousands of mappings. Works by column for speed: columns without values are left out, and
        values are converted one by one only if SQLite rejects one."""
        values: dict[str, Sequence[Any]] = dict(
            zip(_MAPPING_FIELDS, zip(*map(structs.astuple, mappings), strict=True), strict=bool(mappings))
        )
        read = [c for c in _MAPPING_REST if any(value is not None for value in values.get(c.name, ()))]
        # addresses as text: SQLite's integers are signed, and [vsyscall] is above 2**63
        places = [list(map(format, values.get(name, ()), repeat("x"))) for name in ("start", "end")]
        names = ", ".join(_quoted(["snapshot_id", "start", "end", *(column.name for column in read)]))
        insert = f"INSERT INTO mapping ({names}) VALUES (?, ?, ?{', ?' * len(read)})"
        plain = [values[column.name] for column in read]
        self._db.execute("SAVEPOINT plain")
        try:
            self._db.executemany(insert, zip(repeat(snapshot_id), *places, *plain, strict=False))
        except (OverflowError, UnicodeEncodeError):
            self._db.execute("ROLLBACK TO plain")
            each = [[_to_sql(value, column) for value in values[column.name]] for column in read]
            self._db.executemany(insert, zip(repeat(snapshot_id), *places, *each, strict=False))
        self._db.execute("RELEASE plain")

    def _load_kind(self, kind: type[T], damaged: "Counter[str]") -> Iterator[T]:
        """The records of one kind. Damaged rows are counted in `damaged`, by table."""
        table, columns = _TABLES[kind]
        stored = {row[1] for row in self._db.execute(f"PRAGMA table_info({table})")}
        if not stored:
            return  # this kind of evidence is newer than the file
        columns = tuple(c for c in columns if c.name in stored)  # a field that is newer than the file has its default
        names = ", ".join(_quoted(column.name for column in columns))
        mappings = self._load_mappings(damaged) if kind is model.Snapshot else {}
        for row_id, *values in self._db.execute(f"SELECT id, {names} FROM {table} ORDER BY id"):
            try:
                fields = {c.name: _from_sql(v, c) for c, v in zip(columns, values, strict=True) if c.name != "mappings"}
            except _Damaged:
                damaged[table] += 1
                continue
            if kind is model.Snapshot:
                fields["mappings"] = mappings.get(row_id, ())
            yield kind(**fields)

    def _load_mappings(self, damaged: "Counter[str]") -> dict[int, tuple[model.Mapping, ...]]:
        """Snapshot ID -> mappings. The rows of a snapshot are adjacent, because one transaction wrote them."""
        stored = {row[1] for row in self._db.execute("PRAGMA table_info(mapping)")}
        columns = [c for c in _MAPPING_REST if c.name in stored]
        odd = " OR ".join(
            [
                "typeof(start) != 'text' OR typeof(\"end\") != 'text' OR start || \"end\" GLOB '*[^0-9a-f]*'",
                'length(start) > 16 OR length("end") > 16 OR length(start) * length("end") = 0',
                *(f'typeof("{c.name}") NOT IN {_stored_as(c)}' for c in columns),
            ]
        )
        is_odd = self._db.execute(f"SELECT EXISTS (SELECT 1 FROM mapping WHERE {odd})").fetchone()[0]
        names = [c.name for c in columns]
        rows = self._db.execute(
            f'SELECT snapshot_id, start, "end", {", ".join(_quoted(names))} FROM mapping ORDER BY rowid'
        )
        out: dict[int, tuple[model.Mapping, ...]] = {}
        for snapshot_id, of_one in groupby(rows, itemgetter(0)):
            found = []
            for _, start, end, *rest in of_one:
                try:
                    fields = zip(names, map(_from_sql, rest, columns) if is_odd else rest, strict=True)
                    place = (_address(start), _address(end)) if is_odd else (int(start, 16), int(end, 16))
                    found.append(model.Mapping(start=place[0], end=place[1], **dict(fields)))
                except _Damaged:
                    damaged["mapping"] += 1
            out[snapshot_id] = tuple(found)
        return out


def _check(db: sqlite3.Connection, path: Path) -> None:
    """CaseError if it is not a case, or has a newer schema; sqlite3.Error if it is not a database."""
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if not tables and application in (0, APPLICATION_ID):
        raise CaseError(
            f"{path} is empty",
            why="its writer ended before the first commit, or it was copied without its log",
            enable=f"copy {path.name}-wal too",
        )
    if application != APPLICATION_ID:
        raise CaseError(f"{path} is not a memforensics case", why="it is an SQLite file of another program")
    if version > SCHEMA_VERSION:
        raise CaseError(
            f"{path} was written by a newer memforensics (case schema {version}, this one reads {SCHEMA_VERSION})",
            enable="pip install --upgrade memforensics",
        )


def _schema() -> Iterator[str]:
    yield "CREATE TABLE meta (json TEXT NOT NULL)"
    for kind, (key, _) in KINDS.items():
        table, columns = _TABLES[kind]
        lines = [f'"{column.name}" {column.sql_type}' for column in columns]
        yield f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, {', '.join(lines)})"
        if key:
            # coalesce: in SQLite, NULLs differ from each other; here, NULL addresses compare equal
            unique = ", ".join(f"coalesce({name}, '')" for name in _quoted(key))
            yield f"CREATE UNIQUE INDEX {table}_key ON {table} ({unique})"
    mapping = ", ".join(
        f"{quoted} {column.sql_type if column.name not in ('start', 'end') else 'TEXT'}"
        for quoted, column in zip(_quoted(_MAPPING_FIELDS), _columns(model.Mapping), strict=True)
    )
    yield f"CREATE TABLE mapping (snapshot_id INTEGER NOT NULL, {mapping})"


def _open_for_changes(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, isolation_level=None)


def _open_read_only(path: Path) -> sqlite3.Connection:
    """A read-only connection that creates no file, also in a read-only folder. sqlite3.Error, OSError.

    SQLite reads a log (WAL) through an index file, which it creates if there is none. Without a log, the file is opened
    as immutable. A log without an index has no running writer, because a writer keeps its index open: it is read with
    an index in memory, which SQLite uses for exclusive connections. The exclusive lock needs a writable file, so that
    connection takes no locks."""
    place = path.resolve()
    wal, index = (place.with_name(f"{place.name}{end}") for end in ("-wal", "-shm"))
    alone = wal.exists() and not index.exists()
    how = "&vfs=unix-none" if alone else ""
    if not wal.exists():
        with open(place, "rb") as file:
            how = "&immutable=1" if file.read(20)[18:] == _WAL_HEADER else ""
    db = sqlite3.connect(f"{place.as_uri()}?mode=ro{how}", uri=True, isolation_level=None)
    if alone:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
    return db


def _quoted(names: Iterable[str]) -> list[str]:
    return [f'"{name}"' for name in names]  # "end", "offset" and "order" are SQL keywords


def _to_sql(value: Any, column: _Column) -> Any:
    if value is None:
        return None
    if column.scalar is None:
        return _json(value)
    if column.scalar is int and not -(2**63) <= value < 2**63:
        return hex(value)  # SQLite's integers are signed; an INTEGER column stores this text unchanged
    return utf8_all(value)  # text of /proc may have bytes that are not UTF-8, which SQLite rejects


class _Damaged(Exception):
    """A stored value does not have the type of its column."""


_LONG_NUMBER = re.compile(r"[\[:,]\s*-?(?:[0-9]{20}|[0-9.]{1,400}[eE])")
_HEX = re.compile(r"-?0x[0-9a-f]{1,16}|[0-9a-f]{1,16}")


def _from_sql(value: Any, column: _Column) -> Any:
    """The value of a column. _Damaged if it does not have the column's type."""
    if column.scalar is None:
        return None if value is None and _takes_none(column.annotation) else _from_json(value, column.annotation)
    if column.scalar is bool and value in (0, 1):
        value = bool(value)
    elif column.scalar is int and isinstance(value, str):
        value = _address(value)
    elif column.scalar is int and isinstance(value, float):
        raise _Damaged("not an integer")
    elif isinstance(value, float) and not _is_bounded(value):
        raise _Damaged("a number out of range")
    try:
        return msgspec.convert(value, column.annotation)
    except msgspec.MsgspecError as error:
        raise _Damaged(str(error)) from error


def _from_json(text: Any, annotation: Any) -> Any:
    if not isinstance(text, str):
        raise _Damaged("not text")
    try:
        value = msgspec.json.decode(text, type=annotation)
        if _LONG_NUMBER.search(text) and not _is_bounded(msgspec.to_builtins(value)):
            raise _Damaged("a number out of range")
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise _Damaged(str(error)) from error
    return value


def _is_bounded(value: object) -> bool:
    """Whether all numbers are in the range that this module writes: integers below 2**64, floats below 1e18."""
    if isinstance(value, dict):
        return all(map(_is_bounded, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_bounded, value))
    return not isinstance(value, int | float) or abs(value) < (1e18 if isinstance(value, float) else 1 << 64)


def _address(text: Any) -> int:
    """The value of an integer that is stored as hexadecimal text."""
    if not isinstance(text, str) or not _HEX.fullmatch(text):
        raise _Damaged("not a hexadecimal number")
    return int(text, 16)


def _stack(text: Any) -> model.Stack | None:
    """None if it is damaged."""
    try:
        return typing.cast(model.Stack, _from_json(text, model.Stack))
    except _Damaged:
        return None


def _takes_none(annotation: Any) -> bool:
    return type(None) in typing.get_args(annotation)


def _stored_as(column: _Column) -> str:
    """The SQLite types of the column's values, as an SQL list."""
    name = "integer" if column.scalar is int else "text"
    return f"('{name}', 'null')" if _takes_none(column.annotation) else f"('{name}')"


def _json(value: object) -> str:
    return msgspec.json.encode(utf8_all(msgspec.to_builtins(value))).decode()
