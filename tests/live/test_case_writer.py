"""The case file of a real writer that is killed, read meanwhile, or runs out of disk space."""

import contextlib
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.constructed import PID, case

from memforensics.case import model
from memforensics.case.store import CaseFile
from memforensics.errors import CaseError

pytestmark = pytest.mark.live

META = case().meta


def sample(n: int) -> model.Sample:
    return model.Sample(pid=PID, t_ns=n, rss_anon=n * 4096, rss_file=0, rss_shmem=0)


def loaded(path: Path) -> model.Case:
    with CaseFile.open(path) as file:
        return file.load()


WRITER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from fixtures.constructed import case
    from memforensics.case.model import Sample
    from memforensics.case.store import CaseFile
    file = CaseFile.create(Path(sys.argv[1]), case().meta)
    n = 0
    while True:
        n += 1
        file.put([Sample(pid=1, t_ns=n, rss_anon=n, rss_file=0, rss_shmem=0)])
        if n % 100 == 0:
            print(n, flush=True)
    """
)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that appends to a.case as fast as possible and prints each hundredth sample after its commit."""
    tests = str(Path(__file__).resolve().parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "a.case"), tests], stdout=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def committed(writer: subprocess.Popen[str], at_least: int) -> int:
    assert writer.stdout is not None
    while (promised := int(writer.stdout.readline())) < at_least:
        pass
    return promised


def test_a_killed_writer_leaves_all_commits(tmp_path: Path, writer: subprocess.Popen[str]) -> None:
    promised = committed(writer, 300)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert (tmp_path / "a.case-wal").exists()
    times = [s.t_ns for s in loaded(tmp_path / "a.case").samples]
    assert len(times) >= promised
    assert times == list(range(1, len(times) + 1))


def test_the_file_without_its_log_is_a_smaller_case(tmp_path: Path, writer: subprocess.Popen[str]) -> None:
    committed(writer, 1500)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    whole = len(loaded(tmp_path / "a.case").samples)
    copy = tmp_path / "copy" / "a.case"
    copy.parent.mkdir()
    copy.write_bytes((tmp_path / "a.case").read_bytes())
    times = [s.t_ns for s in loaded(copy).samples]
    assert 0 < len(times) <= whole
    assert times == list(range(1, len(times) + 1))


def test_a_reader_sees_whole_commits_while_it_is_written(tmp_path: Path, writer: subprocess.Popen[str]) -> None:
    last = 0
    for _ in range(5):
        promised = committed(writer, last + 100)
        times = [s.t_ns for s in loaded(tmp_path / "a.case").samples]
        assert times == list(range(1, len(times) + 1))
        assert len(times) >= promised
        last = len(times)
    assert writer.poll() is None


@pytest.mark.needs_root
def test_a_case_of_a_killed_writer_opens_in_a_read_only_folder(tmp_path: Path, writer: subprocess.Popen[str]) -> None:
    """Another user, who can write neither the file nor its folder, reads the log too."""
    promised = committed(writer, 200)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    folder = tmp_path
    for path in (folder, *folder.parents):
        if path == Path("/") or path == Path("/tmp"):
            break
        path.chmod(0o755)
    for path in folder.glob("a.case*"):
        path.chmod(0o644)
    code = (
        "import os, sys, urllib.parse; from pathlib import Path\n"  # imports first: nobody may lack access to them
        "from memforensics.case.store import CaseFile\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "print(len(CaseFile.open(Path(sys.argv[1])).load().samples))"
    )
    out = subprocess.run([sys.executable, "-c", code, str(folder / "a.case")], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert int(out.stdout) >= promised


@pytest.mark.needs_root
def test_a_full_disk_keeps_what_was_committed(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        path = disk / "a.case"
        written_until = 0

        def write_all() -> None:
            nonlocal written_until
            for start in range(0, 200_000, 200):
                file.put(sample(n) for n in range(start, start + 200))
                written_until = start + 200

        with CaseFile.create(path, META) as file:
            with pytest.raises(CaseError, match="cannot write") as raised:
                write_all()
            assert "kept" in raised.value.why
            assert "--record" in raised.value.enable
            assert [s.t_ns for s in loaded(path).samples] == list(range(written_until))
            subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
            file.put([sample(written_until)])
        assert len(loaded(path).samples) == written_until + 1
        _fill(disk / "fill")
        with pytest.raises(CaseError, match="cannot create"):
            CaseFile.create(disk / "b.case", META)
        assert not (disk / "b.case").exists()
    finally:
        subprocess.run(["umount", disk], check=True)


def _fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.mark.parametrize("indexed", [True, False], ids=["with-its-index", "copied-without-its-index"])
@pytest.mark.needs_root
def test_a_killed_writer_s_case_is_complete_in_a_read_only_folder(
    tmp_path: Path, writer: subprocess.Popen[str], indexed: bool
) -> None:
    promised = committed(writer, 300)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    place = tmp_path / "read-only"
    place.mkdir()
    for end in ("", "-wal", "-shm") if indexed else ("", "-wal"):
        (place / f"a.case{end}").write_bytes((tmp_path / f"a.case{end}").read_bytes())
    subprocess.run(["mount", "--bind", place, place], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
        times = [s.t_ns for s in loaded(place / "a.case").samples]
    finally:
        subprocess.run(["umount", place], check=True)
    assert len(times) >= promised
    assert times == list(range(1, len(times) + 1))


def test_reading_what_a_killed_writer_left_changes_no_file(tmp_path: Path, writer: subprocess.Popen[str]) -> None:
    committed(writer, 300)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    (tmp_path / "a.case-shm").unlink()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    loaded(tmp_path / "a.case")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
