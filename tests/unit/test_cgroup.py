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


def test_v2_smallest_limit_of_all_ancestors_counts(tmp_path: Path) -> None:
    top = tmp_path / "sys/fs/cgroup"
    put(top / "pods/one", memory__max=str(2 * GIB), memory__current="900", memory__stat="anon 500\nfile 300")
    put(top / "pods", memory__max=str(GIB), memory__current=str(800 * MIB), memory__stat="anon 700\nfile 100")
    found = read_cgroup("0::/pods/one\n", V2, fs_root=tmp_path)
    assert found is not None
    assert (found.version, found.path, found.limit_bytes) == (2, "/pods/one", GIB)
    assert (found.usage_bytes, found.anon_bytes, found.file_bytes) == (800 * MIB, 700, 100), "what stays below it"


def test_v2_limit_with_the_least_room_counts(tmp_path: Path) -> None:
    top = tmp_path / "sys/fs/cgroup"
    put(top / "pods/one", memory__max=str(GIB), memory__current="900", memory__stat=f"anon {100 * MIB}\nfile 300")
    put(top / "pods", memory__max=str(4 * GIB), memory__current="1", memory__stat=f"anon {4 * GIB - MIB}\nfile 100")
    found = read_cgroup("0::/pods/one\n", V2, fs_root=tmp_path)
    assert found is not None
    assert (found.limit_bytes, found.anon_bytes) == (4 * GIB, 4 * GIB - MIB), "its other children fill it"


def test_v2_without_a_limit_has_its_own_usage(tmp_path: Path) -> None:
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


def test_container_sees_its_part_of_the_hierarchy(tmp_path: Path) -> None:
    mountinfo = V1.replace("0:31 / ", "0:31 /docker/abc ")
    put(tmp_path / "sys/fs/cgroup/memory", memory__limit_in_bytes=str(GIB), memory__usage_in_bytes="900")
    found = read_cgroup("4:memory:/docker/abc\n", mountinfo, fs_root=tmp_path)
    assert found is not None
    assert found.limit_bytes == GIB


def test_no_cgroup_without_readable_files(tmp_path: Path) -> None:
    assert read_cgroup("0::/gone\n", V2, fs_root=tmp_path) is None
    assert read_cgroup("", V2, fs_root=tmp_path) is None
    assert read_cgroup("0::/a\n", "", fs_root=tmp_path) is None


def test_shared_memory_counts_as_anonymous(tmp_path: Path) -> None:
    stat = f"anon {3 * GIB}\nfile {5 * GIB}\nkernel 70000\nshmem {2 * GIB}\nfile_mapped {4 * GIB}"
    put(tmp_path / "sys/fs/cgroup/a", memory__max=str(16 * GIB), memory__current=str(8 * GIB), memory__stat=stat)
    found = read_cgroup("0::/a\n", V2, fs_root=tmp_path)
    assert found is not None
    assert (found.anon_bytes, found.file_bytes) == (5 * GIB, 3 * GIB)


# As read on a host with the hybrid layout (v1 controllers, the v2 hierarchy without any): Linux 6.18.
HYBRID_MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
HYBRID_CGROUP = """\
9:name=systemd:/
8:pids:/
4:memory:/jobs/461d6431
2:cpuacct:/
1:cpu:/
0::/
"""
HYBRID_STAT = """\
cache 153165824
rss 111542272
rss_huge 0
shmem 9068544
mapped_file 7647232
swap 0
pgpgin 130168
pgpgout 123553
inactive_anon 0
active_anon 1531904
inactive_file 40960
active_file 1134592
unevictable 24387584
hierarchical_memory_limit 9223372036854771712
hierarchical_memsw_limit 9223372036854771712
total_cache 153165824
total_rss 111542272
total_shmem 9068544
total_mapped_file 7647232
total_swap 0"""


def test_hybrid_layout_has_memory_in_v1(tmp_path: Path) -> None:
    put(
        tmp_path / "sys/fs/cgroup/memory/jobs/461d6431",
        memory__limit_in_bytes="9223372036854771712",
        memory__usage_in_bytes="285810688",
        memory__stat=HYBRID_STAT,
    )
    (tmp_path / "sys/fs/cgroup/unified").mkdir()
    found = read_cgroup(HYBRID_CGROUP, HYBRID_MOUNTS, fs_root=tmp_path)
    assert found is not None
    assert (found.version, found.path, found.limit_bytes, found.usage_bytes) == (1, "/jobs/461d6431", None, 285810688)
    assert (found.anon_bytes, found.file_bytes) == (111542272 + 9068544, 153165824 - 9068544)
