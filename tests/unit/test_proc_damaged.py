"""Files of /proc/PID that are cut off or damaged: our own errors or a counted loss, and never an endless search."""

from pathlib import Path

import pytest
from test_observe_ticks import Clock, observer, recorded

from memforensics.case.model import Sample
from memforensics.errors import UnknownForm
from memforensics.jobs.targets import choose as targets
from memforensics.target.cgroup import read_cgroup
from memforensics.target.parse import parse_stat, parse_status, status_bytes, status_numbers, tmpfs_devices
from memforensics.target.process import open_process
from memforensics.target.procfs import ProcFS
from memforensics.target.smaps import parse_smaps
from memforensics.target.tree import descendants

TAIL = "S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 0 0 1 0 777 0"


@pytest.mark.parametrize("comm", ["a) S (b", "(", "x) ", "caf\udcc3", "\n", "\udcff\udcfe", ""])
def test_stat_with_any_comm(comm: str) -> None:
    assert parse_stat(f"10 ({comm}) {TAIL}\n").comm == comm


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10",
        "10 (server",
        "10 (server)",
        "10 (server) S 1",
        f"x (server) {TAIL}",
        f"1_0 (server) {TAIL}",
        f"10 (server) {TAIL.replace('777', '9' * 5000)}",
        f"10 (server) {TAIL.replace('777', '٣')}",
        f"10 (server) {TAIL.replace('777', '-1')}",
        f"10 (server) {TAIL.replace('S 1', 'Sleeping 1')}",
    ],
)
def test_invalid_stat_is_refused(text: str) -> None:
    with pytest.raises(UnknownForm):
        parse_stat(text)


def test_comm_cannot_add_a_line_to_status() -> None:
    status = parse_status("Name:\t\rUid:\t0\x85\nUid:\t7\t7\t7\t7\nNSpid:\t12\t1\nThreads:\tx\nVmRSS:\t ² kB\n")
    assert status_numbers(status, "Uid") == (7, 7, 7, 7)
    assert status_numbers(status, "NSpid") == (12, 1)
    assert status_numbers(status, "Threads") == status_numbers(status, "no such") == ()
    assert status_bytes(status, "VmRSS") is None


def test_numbers_that_int_would_accept_or_refuse() -> None:
    damaged = parse_smaps(f"1-2 ---p 00000000 00:00 0   [rollup]\nRss: {'9' * 5000} kB\nPss: ² kB\nSwap: 4 kB\n")
    assert [(sums.rss, sums.pss, sums.swap) for sums in damaged.mappings] == [(None, None, 4096)]
    assert tmpfs_devices("25 1 ²:1 / /x rw - tmpfs t rw\n26 1 0:26 / /y rw - tmpfs t rw\n") == {"00:1a"}


@pytest.mark.parametrize("path", ["", "x", "/a\0b", "/" + "x" * 300, "/" + "x/" * 50_000, "/\udcff", "/../.."])
def test_odd_cgroup_paths(tmp_path: Path, path: str) -> None:
    (tmp_path / "sys").mkdir()
    mount = "25 1 0:22 / /sys rw - cgroup2 cgroup2 rw\n"
    (tmp_path / "sys" / "memory.max").write_text("4096\n")
    (tmp_path / "sys" / "memory.stat").write_text(f"anon ²\nfile {'9' * 5000}\nshmem 7\nx\n")
    found = read_cgroup(f"0::{path}\n", mount, fs_root=tmp_path)
    assert found is None or (found.limit_bytes, found.anon_bytes) == (4096, None)


def test_process_that_is_its_own_child(tmp_path: Path) -> None:
    recorded(tmp_path, 10, 11, 1)
    recorded(tmp_path, 11, 10, 1)
    proc = ProcFS(tmp_path)
    assert sorted(descendants(10, proc)) == [10, 11]
    assert targets.roots(targets.find(name="server", proc=proc), proc) == []


def test_damaged_status_is_counted_and_watch_continues(tmp_path: Path) -> None:
    recorded(tmp_path, 10, 1, 2048)
    tree = observer(tmp_path, Clock())
    tree.open()
    seen = []
    for at, records in enumerate(tree.ticks(2.0)):
        seen += [record for record in records if isinstance(record, Sample)]
        status = tmp_path / "10" / "status"
        text = status.read_text()
        status.write_text(text.replace("2048 kB", "² kB") if at % 2 == 0 else text.replace("² kB", "2048 kB"))
    assert (len(seen), tree.root_left) == (3, None)
    assert [(loss.what, loss.count) for loss in tree.losses()] == [("reads of /proc that could not be parsed", 2)]


def test_damaged_stat_is_reported(tmp_path: Path) -> None:
    recorded(tmp_path, 10, 1, 1)
    (tmp_path / "10" / "stat").write_text("10 (server) S\n")
    with pytest.raises(UnknownForm):
        open_process(10, proc=ProcFS(tmp_path))
