"""The case file: what is written comes back, and damaged files and rows are handled. All files are real."""

import contextlib
import os
import sqlite3
import stat
import types
import typing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fixtures.constructed import PID, case, snapshot, target, ucx_hook
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from memforensics.case import model
from memforensics.case.store import APPLICATION_ID, KINDS, SCHEMA_VERSION, CaseFile
from memforensics.errors import CaseError
from memforensics.jobs.case.conclude import conclude_case
from memforensics.jobs.case.contents import listing
from memforensics.report.render import render

META = case().meta


def sample(n: int) -> model.Sample:
    return model.Sample(pid=PID, t_ns=n, rss_anon=n * 4096, rss_file=0, rss_shmem=0)


def written(path: Path, *records: object) -> Path:
    with CaseFile.create(path, META) as file:
        file.put(records)
    return path


def loaded(path: Path) -> model.Case:
    with CaseFile.open(path) as file:
        return file.load()


# --- what goes in comes out ------------------------------------------------------------------------------------

# Text that can be kept as it is: what cannot (lone surrogates) has its own test.
SCALARS: dict[object, st.SearchStrategy[Any]] = {
    str: st.text(st.characters(codec="utf-8"), max_size=12),
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(-1e17, 1e17),
    bool: st.booleans(),
    type(None): st.none(),
}


def values_of(annotation: Any) -> st.SearchStrategy[Any]:
    """Any value of a type of the case model."""
    if annotation in SCALARS:
        return SCALARS[annotation]
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return st.sampled_from(parts)
    if origin is tuple and parts[-1] is Ellipsis:
        return st.lists(values_of(parts[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values_of, parts))
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(values_of, parts))
    fields = {name: values_of(part) for name, part in typing.get_type_hints(annotation).items()}
    if annotation is model.Mapping:
        fields |= {"start": st.integers(0, 2**64 - 1), "end": st.integers(0, 2**64 - 1)}
    return st.builds(annotation, **fields)


@pytest.mark.parametrize("kind", list(KINDS), ids=lambda kind: kind.__name__)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_each_kind_of_evidence_round_trips(kind: type, data: st.DataObject, tmp_path: Path) -> None:
    record = data.draw(values_of(kind))
    path = tmp_path / "a.case"
    path.unlink(missing_ok=True)
    assert getattr(loaded(written(path, record)), KINDS[kind][1]) == (record,)


def test_a_whole_case_round_trips(tmp_path: Path) -> None:
    minute = case(snapshots=(snapshot(),))
    records = [record for _, field in KINDS.values() for record in getattr(minute, field)]
    assert loaded(written(tmp_path / "a.case", *records)) == minute


def test_every_field_of_a_case_has_a_table() -> None:
    fields = set(model.Case.__dataclass_fields__) - {"meta"}
    assert fields == {field for _, field in KINDS.values()}


def test_bytes_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    odd = "/tmp/\udcff\udc80\0\n"
    shot = snapshot()
    shot = replace(shot, mappings=(structs.replace(shot.mappings[0], path=odd),))
    path = written(tmp_path / "a.case", target(comm=odd, cmdline=(odd,)), shot)
    back = loaded(path)
    assert back.targets[0].comm == back.targets[0].cmdline[0] == "/tmp/\\udcff\\udc80\0\n"
    assert back.snapshots[0].mappings[0].path == "/tmp/\\udcff\\udc80\0\n"


def test_a_record_with_a_key_replaces_its_older_version(tmp_path: Path) -> None:
    site = case().sites[0]
    newer = replace(site, outstanding_count=site.outstanding_count + 1)
    hook = replace(ucx_hook(), target_address=None)
    status = model.ProbeStatus(name="hooks", pid=PID, status="ok")
    path = written(tmp_path / "a.case", site, newer, hook, hook, status, replace(status, status="partial"))
    back = loaded(path)
    assert back.sites == (newer,)
    assert back.hooks == (hook,)
    assert [p.status for p in back.probes] == ["partial"]


def test_samples_append(tmp_path: Path) -> None:
    assert len(loaded(written(tmp_path / "a.case", sample(1), sample(1))).samples) == 2


# --- all or nothing ----------------------------------------------------------------------------------------------


def _then(error: BaseException) -> Iterator[object]:
    yield sample(2)
    raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("probe")], ids=repr)
def test_an_interrupted_put_leaves_nothing_and_the_next_works(tmp_path: Path, error: BaseException) -> None:
    with CaseFile.create(tmp_path / "a.case", META) as file:
        file.put([sample(1)])
        with pytest.raises(type(error)):
            file.put(_then(error))
        file.put([sample(3)])
    assert [s.t_ns for s in loaded(tmp_path / "a.case").samples] == [1, 3]


def test_a_foreign_record_is_an_error_and_the_next_works(tmp_path: Path) -> None:
    with CaseFile.create(tmp_path / "a.case", META) as file:
        with pytest.raises(KeyError):
            file.put([sample(1), object()])
        file.put([sample(2)])
    assert [s.t_ns for s in loaded(tmp_path / "a.case").samples] == [2]


# --- the file ----------------------------------------------------------------------------------------------------


def test_the_case_and_its_log_are_private(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with CaseFile.create(tmp_path / "a.case", META) as file:
            file.put([sample(1)])
            modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    finally:
        os.umask(old)
    assert set(modes) == {"a.case", "a.case-wal", "a.case-shm"}
    assert set(modes.values()) == {0o600}


def test_a_case_is_never_overwritten(tmp_path: Path) -> None:
    path = written(tmp_path / "a.case", sample(1))
    before = path.read_bytes()
    with pytest.raises(CaseError, match="already exists"):
        CaseFile.create(path, META)
    link = tmp_path / "link.case"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CaseError):
        CaseFile.create(link, META)
    assert path.read_bytes() == before
    assert not (tmp_path / "elsewhere").exists()


def test_an_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="cannot create"):
        CaseFile.create(tmp_path / "none" / "a.case", META)


@pytest.mark.parametrize("name", ["with space.case", "50%?.case", "a#b.case", "é\udcff.case"])
def test_any_file_name_works(tmp_path: Path, name: str) -> None:
    assert len(loaded(written(tmp_path / name, sample(1))).samples) == 1


def _sqlite_of_another(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE t (x)")
    db.commit()
    db.close()


def _newer(path: Path) -> None:
    written(path, sample(1))
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "there is no case file"),
        (lambda path: path.mkdir(), "not a regular file"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_text("RSS 12 MiB\n" * 100), "is not a case file"),
        (_sqlite_of_another, "not a memforensics case"),
        (_newer, "newer memforensics"),
    ],
    ids=["none", "folder", "empty", "text", "other-sqlite", "newer"],
)
def test_a_file_that_is_not_a_case_is_an_error(tmp_path: Path, make: Any, says: str) -> None:
    path = tmp_path / "a.case"
    make(path)
    with pytest.raises(CaseError, match=says):
        loaded(path)


def test_a_truncated_file_is_a_case_error(tmp_path: Path) -> None:
    whole = written(tmp_path / "a.case", *(sample(n) for n in range(2000))).read_bytes()
    assert len(whole) > 64 * 1024
    for size in (1, 50, 100, 1024, 4096, 5000, 20480, len(whole) // 2, len(whole) - 4096):
        cut = tmp_path / "cut.case"
        cut.write_bytes(whole[:size])
        with pytest.raises(CaseError):
            loaded(cut)
        cut.unlink()


def test_a_schema_that_is_not_utf8_is_a_case_error(tmp_path: Path) -> None:
    path = written(tmp_path / "a.case", sample(1))
    path.write_bytes(path.read_bytes().replace(b"tablesamplesample", b"tables\xe1mples\xe1mple"))
    with pytest.raises(CaseError, match="is damaged"):
        loaded(path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 60_000), junk=st.binary(min_size=1, max_size=600))
def test_a_damaged_file_is_a_case_error(tmp_path: Path, at: int, junk: bytes) -> None:
    origin = tmp_path / "a.case"
    if not origin.exists():
        written(origin, target(), snapshot(), *case().sites, *(sample(n) for n in range(500)))
    whole = bytearray(origin.read_bytes())
    at %= len(whole)
    whole[at : at + len(junk)] = junk
    bad = tmp_path / "bad.case"
    bad.write_bytes(whole)
    try:
        with CaseFile.open(bad) as file:
            file.counts()
            file.load()
    except CaseError:
        pass  # said; or the junk fell where nothing is
    finally:
        for leftover in tmp_path.glob("bad.case*"):
            leftover.unlink()


def test_a_field_newer_than_the_file_has_its_default(tmp_path: Path) -> None:
    path = written(tmp_path / "a.case", target(role="vLLM engine"), sample(1))
    db = sqlite3.connect(path)
    db.execute("ALTER TABLE target DROP COLUMN role")
    db.execute("DROP TABLE cost")
    db.commit()
    db.close()
    back = loaded(path)
    assert back.targets == (target(role=None),)
    assert back.costs == ()


# --- tables, for pandas and people -------------------------------------------------------------------------------


def test_tables_are_plain_sql(tmp_path: Path) -> None:
    path = written(tmp_path / "a.case", sample(7), snapshot())
    db = sqlite3.connect(path)
    assert db.execute("SELECT t_ns, rss_anon FROM sample WHERE pid = ?", (PID,)).fetchall() == [(7, 7 * 4096)]
    assert db.execute("SELECT start FROM mapping ORDER BY rowid").fetchall() == [
        ("7f3000000000",),
        ("ffffffffff600000",),
    ]
    assert db.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    db.close()


def test_rows_of_an_existing_and_of_a_missing_table(tmp_path: Path) -> None:
    path = written(tmp_path / "a.case", sample(7))
    with CaseFile.open(path) as file:
        names, rows = file.rows("sample")
        assert dict(zip(names, rows[0], strict=True))["t_ns"] == 7
        assert file.counts()["sample"] == 1
        with pytest.raises(CaseError, match="no table") as raised:
            file.rows("sample; DROP TABLE sample")
        assert "mapping" in raised.value.enable


# --- one file ----------------------------------------------------------------------------------------------------


def beside(path: Path) -> set[str]:
    return {p.name for p in path.parent.iterdir()} - {path.name}


def as_of_the_first_version(path: Path) -> Path:
    """A case in WAL mode whose log was folded in, as memforensics 0.1 left it."""
    written(path, sample(1))
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode = WAL")
    db.close()
    assert path.read_bytes()[18:20] == b"\2\2"
    return path


def test_a_closed_case_is_one_file(tmp_path: Path) -> None:
    path = written(tmp_path / "a.case", sample(1))
    assert beside(path) == set()
    with CaseFile.open(path) as file:
        file.load()
        assert beside(path) == set()
    assert beside(path) == set()


def test_reading_a_case_in_wal_mode_creates_no_files(tmp_path: Path) -> None:
    path = as_of_the_first_version(tmp_path / "a.case")
    assert len(loaded(path).samples) == 1
    assert beside(path) == set()


def test_a_changed_case_is_one_file_again(tmp_path: Path) -> None:
    path = written(tmp_path / "a.case", sample(1))
    with CaseFile.open(path, write=True) as file:
        file.put([sample(2)])
    assert beside(path) == set()
    assert len(loaded(path).samples) == 2


def test_closing_while_another_process_reads_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.case"
    file = CaseFile.create(path, META)
    file.put([sample(1)])
    with CaseFile.open(path) as reader:
        file.put([sample(2)])
        assert len(reader.load().samples) == 2
        file.close()
        assert len(reader.load().samples) == 2
    assert len(loaded(path).samples) == 2


def test_a_case_without_a_newer_table_opens(tmp_path: Path) -> None:
    """Its table is not there."""
    path = written(tmp_path / "a.case", *case().sites)
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE reference_check")
        db.execute("ALTER TABLE allocation_site DROP COLUMN cohorts")
        db.execute("ALTER TABLE allocation_site ADD COLUMN age_quantiles_s TEXT")
        db.execute("UPDATE allocation_site SET age_quantiles_s = '[1.0,2.0,3.0]'")
    old = loaded(path)
    assert old.reference_checks == ()
    assert (old.sites[0].cohorts, old.sites[0].age_quantiles_s) == ((), None)
    with CaseFile.open(path) as file:
        assert file.counts()["reference_check"] == 0


# --- rows that are none ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "table"),
    [
        ("UPDATE sample SET t_ns = 9e999 WHERE id = 1", "sample"),
        ("UPDATE sample SET rss_anon = 1.5 WHERE id = 1", "sample"),
        ("UPDATE sample SET rss_anon = 'many' WHERE id = 1", "sample"),
        ("UPDATE sample SET rss_anon = NULL WHERE id = 1", "sample"),
        ("UPDATE sample SET state = x'ff00' WHERE id = 1", "sample"),
        ("UPDATE allocation_site SET kind = x'ff00' WHERE id = 1", "allocation_site"),
        ("UPDATE allocation_site SET stack = '{\"frames\": 3}' WHERE id = 1", "allocation_site"),
        ("UPDATE allocation_site SET stack = NULL WHERE id = 1", "allocation_site"),
        (f'UPDATE snapshot SET rollup = \'{{"rss_anon":{10**40},"rss_file":0,"rss_shmem":0}}\'', "snapshot"),
        ("UPDATE snapshot SET read_ms = 9e999", "snapshot"),
        ("UPDATE mapping SET start = 'x' WHERE rowid = 1", "mapping"),
        ("UPDATE mapping SET rss = 'x' WHERE rowid = 1", "mapping"),
        ("UPDATE mapping SET path = NULL WHERE rowid = 1", "mapping"),
        ("UPDATE mapping SET perms = x'00' WHERE rowid = 1", "mapping"),
        ("UPDATE heap_state SET allocator = 7 WHERE id = 1", None),
    ],
)
def test_a_damaged_row_is_left_out_and_counted(tmp_path: Path, statement: str, table: str | None) -> None:
    whole = case(snapshots=(snapshot(),))
    records = [record for _, field in KINDS.values() for record in getattr(whole, field)]
    path = written(tmp_path / "a.case", *records)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(statement)
    found = loaded(path)
    lost = [loss for loss in found.losses if loss.probe == "case"]
    assert [(loss.what, loss.count) for loss in lost] == ([(f"damaged rows of {table}", 1)] if table else [])
    diagnosis = conclude_case(found)
    for form in ("terminal", "md", "json"):
        text = render(found, diagnosis, form)
        assert table is None or f"damaged rows of {table}" in text
    listing(path)


@pytest.mark.parametrize("t_ns", [2**62, -(2**63), 0])
def test_a_report_works_with_extreme_times(tmp_path: Path, t_ns: int) -> None:
    whole = case()
    samples = [*whole.samples[:-1], replace(whole.samples[-1], t_ns=t_ns)]
    found = loaded(written(tmp_path / "a.case", *whole.targets, *samples))
    assert render(found, conclude_case(found), "json")
