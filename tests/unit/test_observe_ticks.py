"""The ticks of the observer on a recorded /proc and a clock of the test, and the records that the recorder keeps."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from memforensics.case.model import Case, Cost, Loss, Mapping, ProbeStatus, Sample, Snapshot, Target
from memforensics.case.store import CaseFile
from memforensics.errors import CaseError
from memforensics.jobs.observe.recorder import Limits, Recorder, new_meta
from memforensics.jobs.observe.tree import TreeObserver
from memforensics.target import Process
from memforensics.target.procfs import ProcFS
from memforensics.units import NS_PER_S

STATUS = "Name:\tserver\nRssAnon:\t   {anon} kB\nRssFile:\t    100 kB\nRssShmem:\t      0 kB\nVmSwap:\t     0 kB\n"


def recorded(root: Path, pid: int, ppid: int, anon_kib: int) -> None:
    folder = root / str(pid)
    folder.mkdir(exist_ok=True)
    tail = " ".join(["0"] * 10)
    (folder / "stat").write_text(f"{pid} (server) S {ppid} 1 1 0 -1 0 {tail} 1 0 777 0\n")
    (folder / "status").write_text(STATUS.format(anon=anon_kib))
    (folder / "maps").write_text("")
    (folder / "cmdline").write_text("server\0")


class Clock:
    """Time that passes only in sleep, and, each reading, by `cost`."""

    def __init__(self, cost_s: float = 0.0) -> None:
        self.now_ns, self.cost_ns = 5 * NS_PER_S, int(cost_s * NS_PER_S)

    def __call__(self) -> int:
        self.now_ns += self.cost_ns
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * NS_PER_S)


def who(process: Process) -> Target:
    return Target(pid=process.pid, start_ticks=process.start_ticks, start_wall_ns=0, ppid=process.stat().ppid)


def observer(root: Path, clock: Clock) -> TreeObserver:
    return TreeObserver(10, interval_s=0.5, proc=ProcFS(root), clock=clock, sleep=clock.sleep, about=who)


def test_ticks_come_at_the_interval(tmp_path: Path) -> None:
    recorded(tmp_path, 10, 1, 2048)
    recorded(tmp_path, 11, 10, 512)
    clock = Clock()
    tree = observer(tmp_path, clock)
    assert {t.pid for t in tree.open() if isinstance(t, Target)} == {10, 11}
    ticks = [[r for r in records if isinstance(r, Sample)] for records in tree.ticks(2.0)]
    assert [[s.pid for s in tick] for tick in ticks] == [[10, 11]] * 5
    assert [tick[0].t_ns for tick in ticks] == [5 * NS_PER_S + i * NS_PER_S // 2 for i in range(5)]
    assert tree.losses() == []


def test_missed_ticks_are_counted(tmp_path: Path) -> None:
    recorded(tmp_path, 10, 1, 2048)
    tree = observer(tmp_path, Clock(cost_s=0.4))
    tree.open()
    assert len(list(tree.ticks(6.0))) < 12
    assert [loss.count for loss in tree.losses()] == [tree.missed_ticks]
    assert tree.missed_ticks > 0


def test_reused_pid_ends_the_observation(tmp_path: Path) -> None:
    recorded(tmp_path, 10, 1, 2048)
    tree = observer(tmp_path, Clock())
    tree.open()
    for records in tree.ticks(5.0):
        if len(records) and tree.root_left is None:
            stat = tmp_path / "10" / "stat"
            stat.write_text(stat.read_text().replace(" 777 ", " 999 "))
            (tmp_path / "10" / "status").write_text("Name:\tother\n")
    assert tree.root_left == "its PID was given to another process"


def samples(count: int) -> list[Sample]:
    return [Sample(pid=1, t_ns=i, rss_anon=i, rss_file=0, rss_shmem=0) for i in range(count)]


def test_with_limits_of_memory_alone_the_file_keeps_every_sample(tmp_path: Path) -> None:
    with Recorder(new_meta("test", 1), tmp_path / "a.case", Limits(samples=100)) as recorder:
        recorder.put(samples(1000))
        in_memory = recorder.case().samples
        assert recorder.growth() == 999
    assert len(in_memory) <= 300
    assert (in_memory[0].t_ns, in_memory[-1].t_ns) == (0, 999)
    with CaseFile.open(tmp_path / "a.case") as file:
        assert file.load().samples == tuple(samples(1000))


def test_memory_and_file_hold_the_same_case(tmp_path: Path) -> None:
    """So the report of diagnose, drawn from memory, and `report CASE` are the same, also where records replace others
    and where there are more samples than a tier holds."""
    statuses = [ProbeStatus(name="a", status="partial"), ProbeStatus(name="b", status="ok")]
    statuses.append(ProbeStatus(name="a", status="ok"))
    with Recorder(new_meta("test", 1), tmp_path / "same.case") as recorder:
        recorder.put(samples(5000))
        recorder.put([mapped(at, 40) for at in range(30)])
        recorder.put([*statuses, Loss(probe="a", what="events", count=1), Loss(probe="a", what="events", count=2)])
        recorder.put([Cost(probe="a", observer_cpu_s=0.1), Target(pid=1, start_ticks=1, start_wall_ns=0)])
        in_memory = recorder.case()
    with CaseFile.open(tmp_path / "same.case") as file:
        assert file.load() == in_memory
    assert [probe.name for probe in in_memory.probes] == ["b", "a"]


def test_file_is_committed_about_once_a_second(tmp_path: Path) -> None:
    clock = Clock()
    recorder = Recorder(new_meta("test", 1), tmp_path / "b.case", clock=clock)

    def stored() -> Case:
        with CaseFile.open(tmp_path / "b.case") as file:
            return file.load()

    recorder.put(samples(1))
    recorder.put(samples(1))
    assert len(stored().samples) == 1  # the first at once, the second waits
    clock.sleep(1.0)
    recorder.put(samples(1))
    assert len(stored().samples) == 3
    recorder.close()


def test_newer_record_replaces_the_one_with_its_key(tmp_path: Path) -> None:
    recorder = Recorder(new_meta("test", 1))
    target = Target(pid=1, start_ticks=1, start_wall_ns=0)
    recorder.put([target, Target(pid=1, start_ticks=1, start_wall_ns=0, left_how="it exited")])
    assert [t.left_how for t in recorder.case().targets] == ["it exited"]


def test_existing_case_is_not_overwritten(tmp_path: Path) -> None:
    Recorder(new_meta("test", 1), tmp_path / "c.case").close()
    with pytest.raises(CaseError):
        Recorder(new_meta("test", 1), tmp_path / "c.case")


def mapped(t_ns: int, count: int) -> Snapshot:
    one = Mapping(start=4096, end=8192, perms="rw-p", offset=0, device="00:00", inode=0, path="")
    return Snapshot(pid=1, t_ns=t_ns, reader="maps", mappings=(one,) * count)


def test_limited_file_stops_growing(tmp_path: Path) -> None:
    """Five hours of samples each second and snapshots each minute: the file has thinned samples and few snapshots."""
    path, clock = tmp_path / "days.case", Clock()
    limits = Limits(samples=96, snapshots=8, file_samples=600)
    with Recorder(new_meta("test", 1), path, limits, clock=clock) as recorder:
        sizes = []
        for at in range(20_000):
            recorder.put([Sample(pid=1, t_ns=at, rss_anon=at, rss_file=0, rss_shmem=0)])
            if at % 60 == 0:
                recorder.put([mapped(at, 20)])
            if at % 30 == 0:
                clock.sleep(1.0)
            if at % 10_000 == 9_999:
                sizes.append(path.stat().st_size)
    assert sizes[1] < 1.5 * sizes[0]
    with CaseFile.open(path) as file:
        kept = file.load()
    assert len(kept.samples) < 7000
    assert {0, 19_999} <= {sample.t_ns for sample in kept.samples}
    assert [s.t_ns for s in kept.samples] == sorted(s.t_ns for s in kept.samples)
    assert {s.t_ns for s in kept.samples if s.t_ns > 19_700} == set(range(19_701, 20_000))
    assert len(kept.snapshots) < 20
    assert kept.snapshots[0].t_ns == 0
    assert all(len(snapshot.mappings) == 20 for snapshot in kept.snapshots)


def test_large_process_keeps_fewer_snapshots_over_the_whole_time() -> None:
    recorder = Recorder(new_meta("test", 1), limits=Limits(snapshots=8, mappings=1000))
    recorder.put([mapped(at, 10) for at in range(500)])
    few = [snapshot.t_ns for snapshot in recorder.case().snapshots]
    assert len(few) == 8
    assert (few[0], few[-1]) == (0, 499)
    assert max(b - a for a, b in pairwise(few)) < 200
    large = Recorder(new_meta("test", 1), limits=Limits(snapshots=8, mappings=1000))
    large.put([mapped(at, 400) for at in range(50)])
    assert [snapshot.t_ns for snapshot in large.case().snapshots] == [0, 49]


def test_processes_that_left_first_are_dropped(tmp_path: Path) -> None:
    """A server that forks a worker a minute for days."""
    with Recorder(
        new_meta("test", 1), tmp_path / "forks.case", Limits(left_processes=20, file_samples=600)
    ) as recorder:
        for pid in range(100, 1100):
            gone = Target(pid=pid, start_ticks=1, start_wall_ns=0)
            recorder.put([gone, Sample(pid=pid, t_ns=pid, rss_anon=1, rss_file=0, rss_shmem=0)])
            recorder.put([replace(gone, exited_ns=pid + 1, left_how="it exited")])
        case = recorder.case()
        assert len(case.targets) == len({sample.pid for sample in case.samples}) == 20
        assert min(sample.pid for sample in case.samples) == 1080
