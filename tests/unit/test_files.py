"""Where files go: the state folder of each user, and outputs refused before the work."""

import os
import stat
from pathlib import Path

import pytest

from memforensics.errors import UsageError
from memforensics.jobs.case.files import case_path, check_output, state_folder
from memforensics.report.render import form_of


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_state_folder_follows_the_xdg_specification(tmp_path: Path) -> None:
    state, home = tmp_path / "state", tmp_path / "home"
    home.mkdir()
    assert state_folder({"XDG_STATE_HOME": str(state), "HOME": str(home)}) == state / "memforensics"
    assert state_folder({"XDG_STATE_HOME": "relative", "HOME": str(home)}) == home / ".local/state/memforensics"
    assert mode_of(state / "memforensics") == 0o700


def test_a_folder_of_ours_that_others_may_read_is_closed(tmp_path: Path) -> None:
    (tmp_path / "memforensics").mkdir(mode=0o755)
    assert mode_of(state_folder({"XDG_STATE_HOME": str(tmp_path)})) == 0o700


@pytest.mark.needs_root
@pytest.mark.parametrize("home", [None, "/", "/nowhere/at/all", "of-another-user"])
def test_root_without_a_home_of_its_own_uses_var_lib(tmp_path: Path, home: str | None) -> None:
    if home == "of-another-user":
        (tmp_path / home).mkdir()
        os.chown(tmp_path / home, 65534, 65534)
        home = str(tmp_path / home)
    env = {} if home is None else {"HOME": home}
    assert state_folder(env, root_folder=tmp_path / "var") == tmp_path / "var/memforensics"


@pytest.mark.needs_root
def test_a_folder_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memforensics").mkdir()
    os.chown(tmp_path / "memforensics", 65534, 65534)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    assert state_folder({"XDG_STATE_HOME": str(tmp_path)}).parent == tmp_path / "tmp"


def test_a_case_of_the_same_second_has_another_name(tmp_path: Path) -> None:
    names = set()
    for _ in range(5):
        path = case_path(7, tmp_path)
        assert path not in names
        path.touch()
        names.add(path)


def test_an_output_that_can_be_written_is_left_alone(tmp_path: Path) -> None:
    there = tmp_path / "there.md"
    there.write_text("mine")
    for path in (there, tmp_path / "new.md", Path("/dev/stdout"), Path("/dev/null")):
        check_output(path)
    assert there.read_text() == "mine"
    assert not (tmp_path / "new.md").exists()


@pytest.mark.parametrize("path", ["", "none/a.md", "file/a.md"])
def test_an_output_that_cannot_be_written_is_told_in_one_line(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write") as told:
        check_output(tmp_path / path)
    assert (told.value.why, told.value.enable) == ("", "")


def test_the_ending_chooses_the_form() -> None:
    assert [form_of(Path(name)) for name in ("a.md", "a.json", "a.txt", "a")] == ["md", "json", "terminal", "terminal"]
    with pytest.raises(UsageError, match=r"\.html") as told:
        form_of(Path("a.html"))
    assert ".md, .json or .txt" in told.value.enable
