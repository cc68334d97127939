"""Mapped files without the right to read /proc/PID/map_files: the very file that is mapped, or none."""

import os
from pathlib import Path
from typing import Any

import pytest

from memforensics.case.model import Mapping
from memforensics.target.process import Process
from memforensics.target.procfs import ProcFS


def process(folder: Path) -> Process:
    """A process whose root folder is `folder`/1/root, in a /proc without map_files."""
    (folder / "1" / "root").mkdir(parents=True)
    return Process(pid=1, start_ticks=0, proc=ProcFS(folder), exe_id=None)


def mapping(path: str, file: Path, **other: Any) -> Mapping:
    about = file.stat()
    fields = {
        "device": f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}",
        "inode": about.st_ino,
        **other,
    }
    return Mapping(start=0x1000, end=0x2000, perms="r-xp", offset=0, path=path, **fields)


def test_file_inside_the_root_is_opened(tmp_path: Path) -> None:
    target = process(tmp_path)
    file = tmp_path / "1" / "root" / "lib.so"
    file.write_bytes(b"library")
    with target.open_mapped(mapping("/lib.so", file)) as stream:
        assert stream.read() == b"library"


def test_link_stays_inside_the_root(tmp_path: Path) -> None:
    """Another user's folder, with the same inode number on the same device, was opened as root once."""
    target = process(tmp_path)
    outside = tmp_path / "private"
    outside.mkdir()
    (outside / "key").write_bytes(b"private key")
    (tmp_path / "1" / "root" / "lib").symlink_to(outside)
    (tmp_path / "1" / "root" / "up").symlink_to("../../private")
    for path in ("/lib/key", "/up/key", "/../private/key", "/../../private/key"):
        with pytest.raises(OSError), target.open_mapped(mapping(path, outside / "key")):  # noqa: PT011
            pass


@pytest.mark.parametrize("other", [{"inode": 1}, {"device": "ff:01"}])
def test_another_file_with_the_same_name_is_refused(tmp_path: Path, other: dict[str, object]) -> None:
    target = process(tmp_path)
    file = tmp_path / "1" / "root" / "lib.so"
    file.write_bytes(b"library")
    with pytest.raises(FileNotFoundError), target.open_mapped(mapping("/lib.so", file, **other)):
        pass


def test_fifo_is_not_opened(tmp_path: Path) -> None:
    target = process(tmp_path)
    fifo = tmp_path / "1" / "root" / "lib.so"
    os.mkfifo(fifo)
    with pytest.raises(OSError, match="not a regular file"), target.open_mapped(mapping("/lib.so", fifo)):
        pass


def test_perf_map_that_is_a_link_is_refused(tmp_path: Path) -> None:
    target = process(tmp_path)
    (tmp_path / "1" / "stat").write_text("1 (x) S " + "0 " * 48)
    (tmp_path / "1" / "status").write_text(f"Uid:\t0\t{os.getuid()}\t0\t0\nNSpid:\t1\n")
    folder = tmp_path / "1" / "root" / "tmp"
    folder.mkdir()
    (folder / "other").write_text("1000 10 name\n")
    (folder / "perf-1.map").symlink_to("other")
    with pytest.raises(OSError), target.open_jit_map():  # noqa: PT011
        pass
    (folder / "perf-1.map").unlink()
    (folder / "other").rename(folder / "perf-1.map")
    with target.open_jit_map() as stream:
        assert stream.read() == b"1000 10 name\n"
