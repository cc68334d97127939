"""The line of a tree: late members, members that leave, recycled workers."""

from dataclasses import replace

import pytest

from memforensics.analysis.series import (
    growth,
    member_series,
    members,
    population,
    process_count,
    total_series,
    tree_series,
    tree_trend,
)
from memforensics.analysis.trend import verdict_of_trend
from memforensics.case.model import Anchor, Case, CaseMeta, Cgroup, Sample, Target
from memforensics.jobs.case.conclude import conclude_case
from memforensics.units import GIB, MIB, NS_PER_S

META = CaseMeta(memforensics_version="0", command="watch", anchor=Anchor(monotonic_ns=0, wall_ns=0), root_pid=1, seed=3)


def sample(pid: int, t: float, anon: float, file: float = 0, swap: float | None = None) -> Sample:
    return Sample(
        pid=pid,
        t_ns=int((t + pid * 0.001) * NS_PER_S),
        rss_anon=int(anon),
        rss_file=int(file),
        rss_shmem=0,
        swap=None if swap is None else int(swap),
    )


def case(samples: list[Sample], targets: tuple[Target, ...] = ()) -> Case:
    return Case(meta=META, samples=tuple(samples), targets=targets)


TICKS = [i * 0.5 for i in range(81)]


def test_a_leaking_child_is_growth_of_the_tree() -> None:
    found = case([s for t in TICKS for s in (sample(1, t, 900 * MIB), sample(7, t, 50 * MIB + MIB * t))])
    assert verdict_of_trend(tree_trend(found)) == "growing"
    first, second = members(found)
    assert (first.pid, second.pid) == (7, 1)
    assert first.change_bytes == 40 * MIB
    assert second.change_bytes == 0


def test_workers_that_start_late_are_not_growth() -> None:
    samples = [sample(1, t, 100 * MIB) for t in TICKS]
    for i in range(8):  # a worker each 4 s; each fills 60 MiB of its own in its first second
        samples += [sample(10 + i, t, 60 * MIB * min(t - 4 * i - 4, 1.0)) for t in TICKS if t >= 4 * i + 4]
    found = case(samples)
    assert verdict_of_trend(tree_trend(found)) == "steady"
    assert total_series(found.samples).change_bytes > 400 * MIB
    assert process_count(found.samples).change_bytes == 8


def test_recycled_workers_are_a_saw_tooth() -> None:
    samples = [sample(1, t, 100 * MIB) for t in TICKS]
    for i in range(8):  # each lives for 5 s and grows by 2 MiB a second
        samples += [sample(10 + i, t, 60 * MIB + 2 * MIB * (t - 5 * i)) for t in TICKS if 5 * i <= t < 5 * i + 5]
    assert verdict_of_trend(tree_trend(case(samples))) == "steady"


def test_growth_of_a_process_that_exited_is_subtracted() -> None:
    samples = [sample(1, t, 100 * MIB) for t in TICKS]
    samples += [sample(2, t, 10 * MIB + 10 * MIB * t) for t in TICKS if t < 20]
    line = tree_series(samples)
    assert max(line.values) > 290 * MIB
    assert line.values[-1] == 110 * MIB


def test_page_cache_is_not_growth() -> None:
    found = case([sample(1, t, 100 * MIB, file=MIB * t) for t in TICKS])
    assert verdict_of_trend(tree_trend(found)) == "steady"


def test_swapped_memory_counts() -> None:
    found = case([sample(1, t, 500 * MIB - 5 * MIB * t, swap=6 * MIB * t) for t in TICKS])
    assert verdict_of_trend(tree_trend(found)) == "growing"


def test_time_to_the_limit() -> None:
    target = Target(
        pid=1,
        start_ticks=1,
        start_wall_ns=0,
        cgroup=Cgroup(version=2, path="/x", limit_bytes=GIB, usage_bytes=900 * MIB, anon_bytes=100 * MIB),
    )
    grows = growth(case([sample(1, t, 100 * MIB + MIB * t) for t in TICKS], (target,)))
    assert grows is not None
    assert grows.limit_bytes == GIB
    assert grows.seconds_to_limit is not None
    assert abs(grows.seconds_to_limit - (1024 - 140)) < 10
    still = growth(case([sample(1, t, 100 * MIB) for t in TICKS], (target,)))
    assert still is not None
    assert still.seconds_to_limit is None
    assert growth(case([], (replace(target),))) is None


def multiplying(each: int, *, stay: bool) -> Case:
    """A root and a worker more each 4 s, of 60 MiB; they stay, or live for 10 s."""
    samples = [sample(1, t, 100 * MIB) for t in TICKS]
    for i in range(9):
        began = each * (i + 1)
        samples += [sample(10 + i, t, 60 * MIB) for t in TICKS if began <= t and (stay or t < began + 10)]
    return case(samples)


def test_a_rising_number_of_processes_is_a_finding() -> None:
    found = multiplying(4, stay=True)
    more = population(found)
    assert more is not None
    assert (more.before, more.now) == (1, 10)
    assert more.trend.rate is not None
    assert more.trend.rate.estimate == pytest.approx(900 * MIB, rel=0.15)
    whole = growth(found)
    assert whole is not None
    assert "joined" in whole.metric
    told = conclude_case(found)
    assert told.verdict == "growing"
    assert told.headline.startswith("Number of processes grows: 1 at the start, 10 now")


def test_replaced_processes_are_not_a_rising_number() -> None:
    found = multiplying(4, stay=False)
    assert population(found) is None
    assert conclude_case(found).exit_code == 0


def test_a_pid_with_a_new_program_starts_a_new_series() -> None:
    """2 GiB, then an exec, and 30 MiB a minute from 20 MiB on."""
    samples = [sample(1, t, 2 * GIB if t < 15 else 20 * MIB + (t - 15) * MIB / 2) for t in TICKS]
    target = Target(pid=1, start_ticks=1, start_wall_ns=0, began_ns=int(14.9 * NS_PER_S))
    (line,) = member_series(samples, start_times={1: int(14.9 * NS_PER_S)}).values()
    assert line.values[0] == 20 * MIB
    assert verdict_of_trend(tree_trend(case(samples, (target,)))) == "growing"


def test_thinned_samples_give_the_same_trend() -> None:
    """Dense at the end and sparse before: neither a member's leaving nor a tick is lost on it."""
    times = [i * 16.0 for i in range(30)] + [480 + i * 4.0 for i in range(30)] + [600 + i for i in range(60)]
    samples = [s for t in times for s in (sample(1, t, 300 * MIB), sample(2, t, 50 * MIB + MIB * t / 6))]
    line = tree_series(samples)
    assert len(line.times_s) == len(times)
    assert line.change_bytes == pytest.approx(MIB * 659 / 6, rel=0.01)
    assert verdict_of_trend(tree_trend(case(samples))) == "growing"
