"""`case` and `report` on real files, through the command line."""

import csv
import io
import json
import os
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jsonschema
import pytest
from fixtures.constructed import PID, case, snapshot

from memforensics.case.store import KINDS, SCHEMA_VERSION, CaseFile
from memforensics.cli.app import run
from memforensics.jobs.case import contents as job
from memforensics.remedies.catalogue import PACKAGED
from memforensics.report.json.schema import FILE


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A constructed minute of the UCX leak, as a case file."""
    minute = case(snapshots=(snapshot(),))
    path = tmp_path / "leak.case"
    with CaseFile.create(path, minute.meta) as store:
        store.put(record for _, field in KINDS.values() for record in getattr(minute, field))
    return path


def out(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> str:
    assert run([str(word) for word in words]) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def test_listing_shows_the_contents(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = out(capsys, "case", file)
    for part in (
        "diagnose on node-1",
        "1 m",
        f"{PID}  (named)  python3 -m kvstore.server",
        "61  sample",
        "2  hook",
    ):
        assert part in text, part


def test_listing_as_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = json.loads(out(capsys, "case", file, "--json"))
    assert (listed["command"], listed["seconds"], listed["schema"]) == ("diagnose", 60.0, SCHEMA_VERSION)
    assert listed["tables"]["sample"] == 61
    assert listed["targets"][0]["pid"] == PID


def test_table_as_csv(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(out(capsys, "case", file, "--format", "csv", "--table", "sample"))))
    assert len(rows) == 61
    assert [int(row["rss_anon"]) for row in rows] == [s.rss_anon for s in case().samples]
    assert {row["hugetlb"] for row in rows} == {""}  # not read: empty, not 0


def test_integers_stay_integers_next_to_missing_values(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(out(capsys, "case", file, "--format", "csv", "--table", "mapping"))))
    assert [row["rss"] for row in rows] == [str(1024**2), ""]
    assert [row["start"] for row in rows] == ["7f3000000000", "ffffffffff600000"]


def test_every_table_exports_to_csv(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for table in json.loads(out(capsys, "case", file, "--json"))["tables"]:
        assert out(capsys, "case", file, "--format", "csv", "--table", table).count("\n") >= 1


def test_output_file_is_private(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "samples.csv"
    assert out(capsys, "case", file, "--format", "csv", "--table", "sample", "--output", target) == ""
    assert target.read_text().count("\n") == 62
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--format", "csv"), 2, "--table"),
        (("--table", "sample"), 2, "--format csv"),
        (("--format", "csv", "--table", "nonsense"), 3, "no table 'nonsense'"),
        (("--format", "csv", "--table", "sample", "--output", "/nowhere/x.csv"), 3, "cannot write"),
    ],
)
def test_wrong_options_give_one_clear_error(
    file: Path, capsys: pytest.CaptureFixture[str], words: Sequence[str], code: int, message: str
) -> None:
    text = out(capsys, "case", file, *words, code=code)
    assert message in text
    assert "Traceback" not in text


@pytest.mark.parametrize("command", ["case", "report"])
def test_missing_case_exits_3(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a case\n" * 100)
    assert "not a case file" in out(capsys, command, text, code=3)
    assert "there is no case file" in out(capsys, command, tmp_path / "none", code=3)


def test_report_needs_no_process_and_exits_0(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same answer in each form, from the file alone."""
    report = json.loads(out(capsys, "report", file, "--format", "json"))
    jsonschema.Draft202012Validator(json.loads(FILE.read_text())).validate(report)
    assert report["verdict"] in out(capsys, "report", file, "--format", "md").splitlines()[0]
    assert report["verdict"].upper() in out(capsys, "report", file)
    assert json.loads(out(capsys, "report", file, "--json")) == report


def test_report_in_a_file_equals_the_printed_one(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = out(capsys, "report", file, "--format", "md")
    assert out(capsys, "report", file, "--format", "md", "--output", tmp_path / "r.md") == ""
    assert (tmp_path / "r.md").read_text() == shown


def test_report_uses_user_catalogue_entries(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packaged = PACKAGED / "ucx-invq.toml"
    (tmp_path / "ucx-invq.toml").write_text(packaged.read_text().replace('value = "1024"', 'value = "4096"'))
    assert "UCX_RCACHE_MAX_UNRELEASED=4096" in out(capsys, "report", file, "--remedies", tmp_path)
    (tmp_path / "bad.toml").write_text("id = 1")
    assert "bad.toml" in out(capsys, "report", file, "--remedies", tmp_path, code=2)


def test_remedies_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = json.loads(out(capsys, "remedies", "list", "--json"))
    assert all(set(entry) == {"id", "title", "layer"} for entry in listed)
    assert "ucx-invq" in {entry["id"] for entry in listed}
    assert "UCX_RCACHE_MAX_UNRELEASED=1024" in out(capsys, "remedies", "show", "ucx-invq")
    assert json.loads(out(capsys, "remedies", "show", "ucx-invq", "--json"))["id"] == "ucx-invq"
    assert "no entry" in out(capsys, "remedies", "show", "nonsense", code=2)
    assert "entries are correct" in out(capsys, "remedies", "test")
    (tmp_path / "ours.toml").write_text('id = "ours"\n')
    assert "ours.toml" in out(capsys, "remedies", "test", "--folder", tmp_path, code=2)


def test_closed_pipe_gives_no_error(file: Path) -> None:
    """case FILE | head -0"""
    command = [sys.executable, "-m", "memforensics", "case", str(file), "--format", "csv", "--table", "sample"]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writing)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("cell", "kept"), [("=1+1", "'=1+1"), ("@x", "'@x"), ("-cmd", "'-cmd"), ("---p", "---p"), (-5, -5)]
)
def test_spreadsheet_formulas_are_escaped(cell: object, kept: object) -> None:
    assert job._no_formula(cell) == kept
