"""Threads that ended and were never joined, and threads that have not ended. The cases are constructed."""

from dataclasses import replace

import pytest

from memforensics.analysis.threads import ENDED, LIVING, stack_cache_bytes, with_threads
from memforensics.case.model import (
    AllocationSite,
    Anchor,
    Caller,
    Case,
    CaseMeta,
    Culprit,
    EnvVar,
    Finding,
    FindingSite,
    MappingGroup,
    OwnerMark,
    Runtime,
    Sample,
    Snapshot,
    Stack,
    Target,
)
from memforensics.units import KIB, MIB, NS_PER_S

PID = 7
META = CaseMeta(
    memforensics_version="0", command="diagnose", anchor=Anchor(monotonic_ns=0, wall_ns=0), root_pid=PID, seed=1
)
TARGET = Target(pid=PID, start_ticks=1, start_wall_ns=0, runtimes=(Runtime(name="glibc", version="2.36"),))
CULPRIT = Culprit(
    library="app.py", path="/srv/app.py", function="request",
    caller=Caller(function="request", file="/srv/app.py", line=31),
)  # fmt: skip


def snapshot(second: int, ended: int, living: int, size: int) -> Snapshot:
    kinds = ["thread-stack-unused"] * ended + ["thread-stack"] * living
    marks = tuple(OwnerMark(start=n * size, end=(n + 1) * size, kind=kind) for n, kind in enumerate(kinds))
    return Snapshot(pid=PID, t_ns=second * NS_PER_S, reader="maps", mappings=(), marks=marks)


def stacks(ended: list[int], living: list[int] | int = 4, size: int = 8 * MIB, target: Target = TARGET) -> Case:
    others = living if isinstance(living, list) else [living] * len(ended)
    taken = tuple(snapshot(n, count, other, size) for n, (count, other) in enumerate(zip(ended, others, strict=True)))
    return Case(meta=META, targets=(target,), snapshots=taken)


def finding(count: int = 0) -> Finding:
    site = FindingSite(
        pid=PID, outstanding_bytes=count * 8 * MIB, bytes_per_minute=None, count=count, inside=None,
        stack=Stack(frames=()),
    )  # fmt: skip
    return Finding(
        title="stacks stay", layer="thread-stack", verdict="growing", confidence=0.0, share=0.2, pid=PID,
        culprit=CULPRIT, sites=(site,),
    )  # fmt: skip


def told(case: Case, one: Finding | None = None, groups: tuple[MappingGroup, ...] = ()) -> tuple[str, dict[str, str]]:
    (found,) = with_threads(case, [one or finding()], {PID: groups}, 10 * MIB)
    return found.title, {item.kind: item.text for item in found.evidence}


def test_stacks_of_unjoined_threads_are_leak_evidence() -> None:
    title, evidence = told(stacks([10, 20, 30, 40]))
    assert title == "40 ended threads started by request (app.py:31) were never joined"
    assert "10 at the start, 40 now" in evidence[ENDED]
    assert "320 MiB of address space" in evidence[ENDED]


@pytest.mark.parametrize(
    "case",
    [
        stacks([10, 20]),  # too few snapshots
        stacks([2, 3, 5]),  # all fit into the cache
        stacks([2, 4, 6, 8], size=64 * KIB),
        stacks([2, 4, 6, 7]),  # only two are beyond it
        stacks([10, 20, 20]),
        stacks([10, 40, 20, 50]),  # some were joined
        stacks([10, 20, 30], [40, 30, 20]),  # a pool ends
        stacks([0, 0, 0], [10, 20, 30]),
        stacks([10, 20, 30], target=replace(TARGET, runtimes=(Runtime(name="musl"),))),
        Case(meta=META),
    ],
    ids=["two", "cached", "small", "late", "stops", "joined", "pool", "living", "musl", "unknown"],
)
def test_other_stacks_are_not_leak_evidence(case: Case) -> None:
    assert told(case) == ("stacks stay", {})


def traced(case: Case, mapped: int, unmapped: int) -> tuple[str, dict[str, str]]:
    """With a trace that saw so many stacks mapped and unmapped."""
    size = 8 * MIB
    site = AllocationSite(
        pid=PID, site_id=3, kind="mmap", stack=Stack(frames=()), outstanding_bytes=(mapped - unmapped) * size,
        outstanding_count=mapped - unmapped, allocated_bytes=mapped * size, allocated_count=mapped,
        freed_bytes=unmapped * size, freed_count=unmapped, first_ns=0, last_ns=1,
    )  # fmt: skip
    one = finding(mapped - unmapped)
    one = replace(one, sites=(replace(one.sites[0], site_id=3),))
    return told(replace(case, sites=(site,)), one)


@pytest.mark.parametrize(
    ("ended", "mapped", "unmapped", "is_evidence"),
    [
        ([10, 20], 12, 0, True),
        ([10, 20], 9, 0, False),  # the others came before the trace, or are another's
        ([10, 20, 30], 3, 0, True),
        ([10, 20, 30], 100, 80, False),  # they are joined, and the snapshots missed it
        ([10, 20, 30], 100, 5, True),
    ],
)
def test_a_trace_replaces_a_snapshot_and_shows_joins(
    ended: list[int], mapped: int, unmapped: int, is_evidence: bool
) -> None:
    assert (ENDED in traced(stacks(ended), mapped, unmapped)[1]) is is_evidence


def test_two_snapshots_of_the_same_time_do_not_hide_growth() -> None:
    assert ENDED in told(stacks([10, 20, 30, 30]))[1]


@pytest.mark.parametrize(
    ("tunables", "limit"),
    [
        ("", 40 * MIB),
        ("glibc.malloc.arena_max=1:glibc.pthread.stack_cache_size=0x10000000", 256 * MIB),
        ("glibc.pthread.stack_cache_size=0", 0),
        ("glibc.pthread.stack_cache_size=x", 40 * MIB),
    ],
)
def test_the_tunable_sets_the_stack_cache_limit(tunables: str, limit: int) -> None:
    target = replace(TARGET, environment=(EnvVar(name="GLIBC_TUNABLES", value=tunables),))
    assert stack_cache_bytes(target) == limit
    assert (ENDED in told(stacks([10, 15, 20], target=target))[1]) is (limit < 80 * MIB)


def sampled(counts: list[int]) -> Case:
    samples = tuple(
        Sample(pid=PID, t_ns=n * NS_PER_S, rss_anon=0, rss_file=0, rss_shmem=0, threads=count)
        for n, count in enumerate(counts)
    )
    return Case(meta=META, targets=(TARGET,), samples=samples)


def group(name: str, grown: int) -> MappingGroup:
    return MappingGroup(
        name=name, layer="thread-stack", before_bytes=MIB, after_bytes=MIB + grown, count_before=1, count_after=1,
        what="grew",
    )  # fmt: skip


def test_living_threads_are_named_with_their_memory() -> None:
    groups = group("thread stacks", 2 * MIB), group("glibc arenas", 6 * MIB), group("anonymous", MIB)
    title, evidence = told(sampled([12, 400, 919]), finding(907), groups)
    assert title == "907 threads started by request (app.py:31) have not ended"
    assert evidence[LIVING] == (
        "907 more threads than at the start; thread stacks grew by 2.0 MiB, glibc's thread arenas by 6.0 MiB "
        "(8.0 MiB in total)"
    )
    (found,) = with_threads(sampled([12, 919]), [finding(907)], {PID: groups}, 10 * MIB)
    assert found.share == 0.8


@pytest.mark.parametrize(("counts", "traced"), [([12, 919], 3), ([12, 13], 907), ([12, 919, 12], 907), ([], 907)])
def test_stack_growth_without_more_threads_names_no_threads(counts: list[int], traced: int) -> None:
    assert told(sampled(counts), finding(traced)) == ("stacks stay", {})


def test_findings_of_other_layers_do_not_change() -> None:
    other = replace(finding(907), layer="anon-mmap")
    assert with_threads(sampled([12, 919]), [other], {}, 10 * MIB) == [other]
