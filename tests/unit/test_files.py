"""The state folder of each user, and outputs that are refused before the work starts."""

import os
import stat
from pathlib import Path

import pytest

from memforensics.errors import UsageError
from memforensics.jobs.case import files
from memforensics.jobs.case.files import case_path, check_output, state_folder
from memforensics.report.render import form_of


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_state_folder_follows_the_xdg_specification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, home = tmp_path / "state", tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    assert state_folder() == state / "memforensics"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert state_folder() == home / ".local/state/memforensics"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert state_folder() == home / ".local/state/memforensics"
    assert mode_of(state / "memforensics") == 0o700


def test_state_folder_that_others_may_read_becomes_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memforensics").mkdir(mode=0o755)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert mode_of(state_folder()) == 0o700


@pytest.mark.needs_root
@pytest.mark.parametrize("home", [None, "/", "/nowhere/at/all", "of-another-user"])
def test_root_without_a_home_uses_var_lib(tmp_path: Path, home: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ROOT_STATE", tmp_path / "var")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    if home == "of-another-user":
        (tmp_path / home).mkdir()
        os.chown(tmp_path / home, 65534, 65534)
        home = str(tmp_path / home)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    assert state_folder() == tmp_path / "var/memforensics"


@pytest.mark.needs_root
def test_state_folder_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memforensics").mkdir()
    os.chown(tmp_path / "memforensics", 65534, 65534)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_folder().parent == tmp_path / "tmp"


def test_cases_of_the_same_second_have_different_names(tmp_path: Path) -> None:
    names = set()
    for _ in range(5):
        path = case_path(7, tmp_path)
        assert path not in names
        path.touch()
        names.add(path)


def test_checking_a_writable_output_changes_nothing(tmp_path: Path) -> None:
    there = tmp_path / "there.md"
    there.write_text("mine")
    for path in (there, tmp_path / "new.md", Path("/dev/stdout"), Path("/dev/null")):
        check_output(path)
    assert there.read_text() == "mine"
    assert not (tmp_path / "new.md").exists()


@pytest.mark.parametrize("path", ["", "none/a.md", "file/a.md"])
def test_unwritable_output_is_refused_in_one_line(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write") as refused:
        check_output(tmp_path / path)
    assert (refused.value.why, refused.value.enable) == ("", "")


def test_file_ending_chooses_the_format() -> None:
    assert [form_of(Path(name)) for name in ("a.md", "a.json", "a.txt", "a")] == ["md", "json", "terminal", "terminal"]
    with pytest.raises(UsageError, match=r"\.html") as refused:
        form_of(Path("a.html"))
    assert ".md, .json or .txt" in refused.value.enable
