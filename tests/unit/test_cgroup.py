"""Limits of cgroup v1 and v2, as the files lie in a folder."""

from pathlib import Path

from memforensics.target.cgroup import read_cgroup
from memforensics.units import GIB, MIB

V2 = "29 23 0:25 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "35 29 0:31 / /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory\n"


def put(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def test_v2_the_smallest_limit_of_all_ancestors_counts(tmp_path: Path) -> None:
    top = tmp_path / "sys/fs/cgroup"
    put(top / "pods/one", memory__max=str(2 * GIB), memory__current="900", memory__stat="anon 500\nfile 300")
    put(top / "pods", memory__max=str(GIB), memory__current=str(800 * MIB), memory__stat="anon 700\nfile 100")
    found = read_cgroup("0::/pods/one\n", V2, fs_root=tmp_path)
    assert found is not None
    assert (found.version, found.path, found.limit_bytes) == (2, "/pods/one", GIB)
    assert (found.usage_bytes, found.anon_bytes, found.file_bytes) == (800 * MIB, 700, 100), "what stays below it"


def test_v2_without_a_limit_has_none_but_its_own_usage(tmp_path: Path) -> None:
    put(tmp_path / "sys/fs/cgroup/a", memory__max="max", memory__current="900", memory__stat="anon 500\nfile 300")
    found = read_cgroup("0::/a\n", V2, fs_root=tmp_path)
    assert found is not None
    assert (found.limit_bytes, found.usage_bytes) == (None, 900)


def test_v1_limit_of_an_ancestor_that_is_not_mounted(tmp_path: Path) -> None:
    put(
        tmp_path / "sys/fs/cgroup/memory/box",
        memory__limit_in_bytes="9223372036854771712",
        memory__usage_in_bytes="900",
        memory__stat=f"cache 100\nrss 800\nhierarchical_memory_limit {GIB}\ntotal_cache 110\ntotal_rss 810",
    )
    found = read_cgroup("4:memory:/box\n0::/\n", V1 + V2, fs_root=tmp_path)
    assert found is not None
    assert (found.version, found.limit_bytes, found.usage_bytes) == (1, GIB, 900)
    assert (found.anon_bytes, found.file_bytes) == (810, 110)


def test_a_container_sees_its_own_part_of_the_hierarchy(tmp_path: Path) -> None:
    mountinfo = V1.replace("0:31 / ", "0:31 /docker/abc ")
    put(tmp_path / "sys/fs/cgroup/memory", memory__limit_in_bytes=str(GIB), memory__usage_in_bytes="900")
    found = read_cgroup("4:memory:/docker/abc\n", mountinfo, fs_root=tmp_path)
    assert found is not None
    assert found.limit_bytes == GIB


def test_none_where_there_is_nothing_to_read(tmp_path: Path) -> None:
    assert read_cgroup("0::/gone\n", V2, fs_root=tmp_path) is None
    assert read_cgroup("", V2, fs_root=tmp_path) is None
    assert read_cgroup("0::/a\n", "", fs_root=tmp_path) is None
