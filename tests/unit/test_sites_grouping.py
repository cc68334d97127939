"""Groups by the frame that matters, filters, and an order that settles."""

from dataclasses import replace
from typing import Any

import pytest
from fixtures.constructed import case, of_age
from hypothesis import given
from hypothesis import strategies as st

from memforensics.analysis.blame import growth_groups
from memforensics.analysis.site_groups import group_sites, parse_filter, smoothed, sort_value, stable_order
from memforensics.case.model import AllocationSite, Frame, Hook, SitePoint, Stack
from memforensics.report.labels import group_name

LIBC = Frame(kind="native", function="mmap", module="/lib/x86_64-linux-gnu/libc.so.6")
INTERPRETER = Frame(kind="native", function="_PyEval_Vector", module="/usr/lib/libpython3.11.so.1.0")
MAIN = Frame(kind="python", function="main", file="/srv/app/main.py", line=3)


def native(function: str, module: str = "/opt/lib/libcache.so.1", offset: int | None = None) -> Frame:
    return Frame(kind="native", function=function, module=module, offset=offset)


def python(function: str, line: int, file: str = "/srv/app/service.py") -> Frame:
    return Frame(kind="python", function=function, file=file, line=line)


def site(number: int, *frames: Frame, held: int = 4096, count: int = 1, **more: Any) -> AllocationSite:
    facts: dict[str, Any] = {"pid": 7, "kind": "mmap", "first_ns": 10**9, "last_ns": 2 * 10**9, **more}
    return AllocationSite(
        site_id=number,
        stack=Stack(frames=frames),
        outstanding_bytes=held,
        outstanding_count=count,
        allocated_bytes=held,
        allocated_count=count,
        freed_bytes=0,
        freed_count=0,
        **facts,
    )


def names(sites: list[AllocationSite], hooks: tuple[Hook, ...] = ()) -> list[tuple[str | None, list[int]]]:
    groups = group_sites(sites, hooks, 3 * 10**9)
    return [(g.named.function if g.named else None, [s.site_id for s in g.sites]) for g in groups]


def test_two_lines_of_one_function_are_one_group() -> None:
    sites = [
        site(1, LIBC, INTERPRETER, python("serve", 10), MAIN, held=100),
        site(2, LIBC, INTERPRETER, python("serve", 20), MAIN, held=300),
        site(3, LIBC, INTERPRETER, python("load", 30), MAIN, held=250),
    ]
    assert names(sites) == [("serve", [2, 1]), ("load", [3])]


def test_library_sites_are_grouped_by_function_and_caller() -> None:
    grow = native("grow")
    sites = [
        site(1, LIBC, grow, python("serve", 10), held=100),
        site(2, LIBC, grow, native("other"), python("serve", 11), held=90),
        site(3, LIBC, grow, python("load", 5), held=80),
    ]
    assert names(sites) == [("grow", [1, 2]), ("grow", [3])]


def test_processes_stay_apart_and_freed_sites_have_no_group() -> None:
    frames = (LIBC, native("grow"))
    sites = [site(1, *frames), site(1, *frames, pid=8), site(2, *frames, held=0, count=0)]
    assert names(sites) == [("grow", [1]), ("grow", [1])]


def test_plumbing_only_is_grouped_by_the_innermost_two_frames() -> None:
    other = Frame(kind="native", function="brk", module=LIBC.module)
    assert names([site(1, LIBC), site(2, LIBC, held=2), site(3, other, held=1)]) == [(None, [1, 2]), (None, [3])]


def test_memory_mapped_inside_a_munmap_hook_is_a_group_of_its_own() -> None:
    owner = "/opt/lib/libhook.so.0"
    hook = Hook(pid=7, function="munmap", mechanism="inline", owner_path=owner, target_function="hook_munmap")
    inner = [LIBC, native("pool_grow"), native("hook_munmap", owner), INTERPRETER, python("serve", 10)]
    outer = [LIBC, native("pool_grow"), python("serve", 10)]
    groups = group_sites([site(1, *inner), site(2, *outer, held=1)], [hook], 0)
    assert [(g.inside, g.named.function if g.named else None) for g in groups] == [
        ("munmap", "pool_grow"),
        (None, "pool_grow"),
    ]
    assert [frame.kind for frame in groups[0].sites[0].stack.frames] == ["native", "native", "hook", "native", "python"]


def test_memory_that_extends_the_heap_is_a_group_of_its_own() -> None:
    malloc = Frame(kind="native", function="malloc", module=LIBC.module)
    stack = (LIBC, malloc, native("fill"), python("serve", 10))
    heap, block = site(1, *stack, kind="brk", held=2), site(2, *stack)
    groups = group_sites([heap, block], (), 0)
    assert [(group.layer, group.extends) for group in groups] == [("native-heap", False), ("native-heap", True)]
    assert [group_name(group) for group in groups] == [
        "fill (libcache.so.1) <- serve (service.py:10)",
        "fill (libcache.so.1) extends the heap <- serve (service.py:10)",
    ]


FRAMES = st.sampled_from(
    [
        LIBC,
        INTERPRETER,
        MAIN,
        Frame(kind="native", function="malloc", module=LIBC.module),
        native("grow"),
        native("hook_munmap", "/opt/lib/libhook.so.0"),
        python("serve", 10),
        python("serve", 20),
        python("get", 7, "/usr/lib/python3/dist-packages/cachetools/keys.py"),
    ]
)
HOOK = Hook(pid=7, function="munmap", mechanism="inline", owner_path="/opt/lib/libhook.so.0")


@given(st.lists(st.tuples(st.lists(FRAMES, max_size=6), st.sampled_from(["mmap", "brk"])), max_size=12))
def test_diagnose_joins_the_groups_of_trace_mmap_and_never_splits_them(stacks: list[tuple[list[Frame], str]]) -> None:
    sites = tuple(site(n, *frames, kind=kind) for n, (frames, kind) in enumerate(stacks))
    joined = [
        {each.site_id for each in group.sites} for group in growth_groups(replace(case(), sites=sites, hooks=(HOOK,)))
    ]
    shown = [{each.site_id for each in group.sites} for group in group_sites(sites, (HOOK,), 0)]
    assert all(sum(group <= whole for whole in joined) == 1 for group in shown)
    assert sum(map(len, joined)) == len(sites)


def test_figures_of_a_group_are_sums() -> None:
    points = tuple(SitePoint(t_ns=t * 10**9, outstanding_bytes=t * 60, outstanding_count=t) for t in range(1, 4))
    sites = [
        site(1, native("grow"), held=180, count=3, timeline=points, resident_bytes=180),
        site(2, native("grow"), held=120, count=2, timeline=points, resident_bytes=None),
    ]
    (group,) = group_sites(sites, (), 3 * 10**9)
    assert (group.outstanding_bytes, group.outstanding_count, group.resident_bytes) == (300, 5, None)
    assert group.bytes_per_minute == 2 * 60 * 60


def test_age_is_the_median_of_the_blocks() -> None:
    young, old = of_age(2.0), of_age(9.0)
    sites = [
        site(1, native("grow"), count=5, cohorts=young),
        site(2, native("grow"), count=4, cohorts=old),
    ]
    (group,) = group_sites(sites, (), 100 * 10**9)
    assert group.age_s == pytest.approx(2.0)
    assert sort_value(group, "age") == group.age_s


def test_age_without_cohorts_is_the_time_that_memory_was_held() -> None:
    points = (SitePoint(t_ns=4 * 10**9, outstanding_bytes=0, outstanding_count=0),)
    held, interrupted = site(1, native("a"), held=2), site(2, native("b"), timeline=points, held=1)
    assert [group.age_s for group in group_sites([held, interrupted], (), 10 * 10**9)] == [9.0, 6.0]


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("lib=libcache", True),
        ("lib=libcache.so.1", True),
        ("lib=/opt/lib/libcache.so.1", True),
        ("lib=libcache.so", True),
        ("lib=*.so", False),
        ("lib=service", False),
        ("func=grow", True),
        ("func=Grow", False),
        ("func=g?ow", True),
        ("func=?row", True),
        ("func=row*", False),
        ("file=service.py", True),
        ("file=libcache", False),
        ("func=a=b", False),
    ],
)
def test_filter_matches_part_of_a_name_or_a_pattern(text: str, matches: bool) -> None:
    assert parse_filter(text).matches(site(1, native("grow"), python("serve", 10))) is matches


@pytest.mark.parametrize("text", ["", "libucs", "lib=", "library=x", "=x"])
def test_bad_filter_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="lib=NAME"):
        parse_filter(text)


SCORES = st.dictionaries(st.integers(0, 30), st.floats(-1e6, 1e12) | st.sampled_from([0.0, 1.0, 1.1, 1.3]))


@given(SCORES)
def test_first_order_is_sorted(scores: dict[int, float]) -> None:
    order = stable_order([], scores, margin=0.0)
    assert [scores[key] for key in order] == sorted(scores.values(), reverse=True)


@given(st.lists(st.integers(0, 30), unique=True), SCORES, st.sampled_from([0.0, 0.2, 1.0]))
def test_stable_order_does_not_change_again(before: list[int], scores: dict[int, float], margin: float) -> None:
    order = stable_order(before, scores, margin)
    assert sorted(order) == sorted(scores)
    for above, key in enumerate(order):
        for lower in order[above + 1 :]:
            assert scores[lower] <= scores[key] + margin * abs(scores[key])
    assert stable_order(order, scores, margin) == order


def test_nearly_equal_rows_do_not_swap() -> None:
    first = stable_order([], {"a": 100.0, "b": 99.0, "c": 10.0})
    assert stable_order(first, {"a": 100.0, "b": 110.0, "c": 10.0}) == ["a", "b", "c"]
    assert stable_order(first, {"a": 100.0, "b": 130.0, "c": 10.0}) == ["b", "a", "c"]
    assert stable_order(first, {"b": 50.0, "c": 55.0, "d": 57.0}) == ["b", "c", "d"]


@given(SCORES, SCORES)
def test_smoothed_value_converges_without_overshoot(before: dict[int, float], now: dict[int, float]) -> None:
    ranks = smoothed(before, now)
    assert set(now) <= set(ranks)
    for key in now if before else ():
        low, high = sorted((before.get(key, 0.0), now[key]))
        assert low <= ranks[key] <= high
    for _ in range(60):
        ranks = smoothed(ranks, now)
    assert all(abs(ranks[key] - value) <= 1e-6 * (1 + abs(value)) for key, value in now.items())
    assert not before or set(ranks) == set(now)


def test_row_that_comes_and_goes_does_not_jump() -> None:
    """A buffer of 300 that is there every second time, beside 200 that stay: it keeps its place below them."""
    ranks: dict[str, float] = {}
    order: list[str] = []
    seen = set()
    for step in range(20):
        now = {"steady": 200.0, **({"buffer": 300.0} if step % 2 else {})}
        ranks = smoothed(ranks, now)
        order = stable_order(order, {key: ranks[key] for key in now})
        seen.add(tuple(order))
    assert seen == {("steady",), ("steady", "buffer")}
