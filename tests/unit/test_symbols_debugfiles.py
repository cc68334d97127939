"""Files of another root, and separate debug files: by build-id, by link, beside the library, packed inside it."""

import contextlib
import lzma
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import compiled

from memforensics.symbols.elf.debug_files import OpenInRoot, debug_files_for
from memforensics.symbols.elf.reader import ElfFile
from memforensics.symbols.names.offline import Finder
from memforensics.target.rooted import open_in_root


def read(root: Path, path: str) -> str:
    with open_in_root(root, path) as stream:
        return stream.read().decode()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a file, and another file outside of it."""
    (tmp_path / "outside").write_text("outside")
    root = tmp_path / "root"
    (root / "usr" / "lib").mkdir(parents=True)
    (root / "usr" / "lib" / "one").write_text("inside")
    return root


def test_links_stay_inside(root: Path) -> None:
    (root / "lib").symlink_to("/usr/lib")  # of the root, not ours
    (root / "usr" / "up").symlink_to("../../../usr/lib/one")
    (root / "usr" / "lib" / "two").symlink_to("one")
    for path in ("/usr/lib/one", "lib/one", "/lib/two", "/usr/up", "/../../usr/./lib//one", "/usr/lib/../lib/one"):
        assert read(root, path) == "inside", path


def test_nothing_outside_is_reached(root: Path) -> None:
    (root / "absolute").symlink_to(root.parent / "outside")
    (root / "relative").symlink_to("../outside")
    (root / "away").symlink_to("..")
    for path in ("absolute", "relative", "../outside", "away/outside", "usr/../../outside"):
        with pytest.raises(FileNotFoundError):
            read(root, path)


def test_only_regular_files_are_opened(root: Path) -> None:
    os.mkfifo(root / "fifo")
    (root / "loop").symlink_to("loop")
    (root / "zero").symlink_to("/dev/zero")
    for path in ("fifo", "loop", "zero", "usr", "usr/lib/one/more", "", "nothing"):
        with pytest.raises(OSError):  # noqa: PT011  each its own errno
            read(root, path)


NAMES = st.sampled_from(["..", ".", "", "usr", "lib", "one", "a", "b", "outside", "x\0y"])


@settings(max_examples=150, deadline=None)
@given(links=st.lists(st.lists(NAMES, max_size=4), max_size=2), path=st.lists(NAMES, max_size=6), rooted=st.booleans())
def test_no_path_and_no_links_lead_outside(
    tmp_path_factory: pytest.TempPathFactory, links: list[list[str]], path: list[str], rooted: bool
) -> None:
    top = tmp_path_factory.mktemp("any")
    (top / "outside").write_text("outside")
    (top / "root" / "usr" / "lib").mkdir(parents=True)
    (top / "root" / "usr" / "lib" / "one").write_text("inside")
    for name, words in zip("ab", links, strict=False):
        with contextlib.suppress(OSError, ValueError):
            (top / "root" / name).symlink_to(("/" if rooted else "") + "/".join(words))
    with contextlib.suppress(OSError, ValueError):
        assert read(top / "root", "/".join(path)) == "inside"
    shutil.rmtree(top)


# --- debug files


@pytest.fixture
def library(tmp_path: Path) -> tuple[Path, Path, str]:
    """(the stripped file, with a link to its debug file by name; the debug file; the build-id)."""
    whole = compiled("sym_inline.c", "-O2", "-Wl,--build-id")
    debug = tmp_path / "made" / "program.debug"
    debug.parent.mkdir()
    subprocess.run(["objcopy", "--only-keep-debug", whole, debug], check=True)
    stripped = tmp_path / "root" / "opt" / "program"
    stripped.parent.mkdir(parents=True)
    words: list[str | Path] = ["objcopy", "--strip-all", f"--add-gnu-debuglink={debug}", whole, stripped]
    subprocess.run(words, check=True)
    build_id = ElfFile(stripped.read_bytes()).build_id()
    assert build_id is not None
    return stripped, debug, build_id


def has_keep(elf: ElfFile) -> bool:
    return elf.find_symbol("keep") is not None


def opened(stripped: Path, inside: OpenInRoot) -> ElfFile:
    files = debug_files_for("/opt/program", (), inside=[inside])
    return ElfFile(stripped.read_bytes(), debug_files=files)


PLACES = [
    "opt/program.debug",
    "opt/.debug/program.debug",
    "usr/lib/debug/opt/program.debug",
    "usr/lib/debug/.build-id/{0}/{1}.debug",
]


@pytest.mark.parametrize("place", PLACES)
def test_places_in_the_root_of_the_target(library: tuple[Path, Path, str], tmp_path: Path, place: str) -> None:
    stripped, debug, build_id = library
    root = tmp_path / "root"
    inside = partial(open_in_root, root)
    assert not has_keep(opened(stripped, inside))
    there = root / place.format(build_id[:2], build_id[2:])
    there.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(debug, there)
    assert has_keep(opened(stripped, inside))


def test_a_debug_file_of_another_build_is_not_taken(library: tuple[Path, Path, str], tmp_path: Path) -> None:
    stripped, _, _ = library
    other = compiled("sym_inline.c", "-O3", "-Wl,--build-id")
    shutil.copy(other, stripped.with_name("program.debug"))
    assert not has_keep(opened(stripped, partial(open_in_root, tmp_path / "root")))


def test_symbols_packed_into_the_file(library: tuple[Path, Path, str], tmp_path: Path) -> None:
    """.gnu_debugdata, as Fedora's libraries have it: static symbols, no lines."""
    stripped, debug, _ = library
    small = tmp_path / "small"
    subprocess.run(["objcopy", "--strip-debug", debug, small], check=True)
    packed = tmp_path / "packed.xz"
    packed.write_bytes(lzma.compress(small.read_bytes()))
    both = tmp_path / "both"
    subprocess.run(["objcopy", f"--add-section=.gnu_debugdata={packed}", stripped, both], check=True)
    elf = ElfFile(both.read_bytes())
    keep = elf.find_symbol("keep")
    assert keep is not None
    at = elf.symbol_at(keep.start + 3)
    assert at is not None
    assert at.name == "keep"


# --- a finder, for cases from elsewhere


def test_the_finder_takes_a_tree_a_folder_a_file_or_a_root(library: tuple[Path, Path, str], tmp_path: Path) -> None:
    stripped, debug, build_id = library
    tree = tmp_path / "tree" / ".build-id" / build_id[:2]
    tree.mkdir(parents=True)
    shutil.copy(debug, tree / f"{build_id[2:]}.debug")
    deep = tmp_path / "deep" / "a" / "b"
    deep.mkdir(parents=True)
    shutil.copy(debug, deep / "0123")
    beside = tmp_path / "image"
    (beside / "opt").mkdir(parents=True)
    shutil.copy(stripped, beside / "opt")
    shutil.copy(debug, beside / "opt")
    for folders, roots in (
        ([tmp_path / "tree"], []),
        ([tmp_path / "tree" / ".build-id"], []),
        ([tmp_path / "deep"], []),
        ([debug], []),
        ([], [beside]),
    ):
        found = Finder(folders, roots).find("/opt/program", build_id)
        assert found is not None, (folders, roots)
        assert has_keep(found.elf)
        assert found.lines.has_any
    assert Finder([tmp_path / "deep"]).find("/opt/program", "ab" * 20) is None
    assert Finder().find("/opt/program", build_id) is None


def test_a_file_without_any_symbols_is_not_enough(library: tuple[Path, Path, str], tmp_path: Path) -> None:
    stripped, _, build_id = library
    bare = tmp_path / "bare"
    subprocess.run(["objcopy", "--strip-all", "--remove-section=.gnu_debuglink", stripped, bare], check=True)
    found = Finder([bare]).find("/opt/program", build_id)
    assert found is None or not has_keep(found.elf)


def test_a_damaged_file_with_the_right_build_id_names_nothing(library: tuple[Path, Path, str], tmp_path: Path) -> None:
    _, debug, build_id = library
    elf = ElfFile(debug.read_bytes())
    data = bytearray(debug.read_bytes())
    for number, section in enumerate(elf.sections):
        if section.name == ".symtab" or section.name.startswith(".debug_"):
            at = elf._shoff + 64 * number
            data[at + 32 : at + 40] = (1 << 40).to_bytes(8, "little")  # its size
    damaged = tmp_path / "damaged"
    damaged.write_bytes(data)
    assert Finder([damaged]).find("/opt/program", build_id) is None
