"""Whose pages are still there, and what the trace of faults makes of it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memforensics.analysis.blame import group_sites
from memforensics.case.model import AllocationSite, Anchor, Case, CaseMeta, Frame, Stack, TraceSummary
from memforensics.jobs.trace_faults import MEANING, folded, view_of
from memforensics.probes.ebpf.fault_pages import PAGE, Touched, place, spans, still_there
from memforensics.probes.ebpf.fault_programs import anonymous_orders, why_not_exact
from memforensics.report.faults_json import faults_json


def touch(page: int, pages: int, site: int, t_ns: int, *, anonymous: bool = True, window: int = 0) -> Touched:
    return Touched(*place(page * PAGE, pages, window * PAGE, anonymous=anonymous), pages, site, t_ns, page * PAGE)


def runs(pages: set[int]) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for page in sorted(pages):
        if out and out[-1][1] == page * PAGE:
            out[-1] = (out[-1][0], (page + 1) * PAGE)
        else:
            out.append((page * PAGE, (page + 1) * PAGE))
    return out


def test_where_the_pages_of_a_fault_are() -> None:
    assert place(5 * PAGE, 1, 0, anonymous=True) == (5 * PAGE, 6 * PAGE)
    assert place(512 * PAGE, 512, 0, anonymous=True) == (512 * PAGE, 1024 * PAGE)
    assert place(21 * PAGE, 1, 0, anonymous=False) == (21 * PAGE, 22 * PAGE)
    assert place(21 * PAGE, 3, 0, anonymous=False) == (16 * PAGE, 32 * PAGE)
    assert place(70 * PAGE, 40, 0, anonymous=False) == (64 * PAGE, 128 * PAGE)
    assert place(7 * PAGE, 3, 100 * PAGE, anonymous=True) == (7 * PAGE, 107 * PAGE)


def test_the_last_toucher_has_the_page() -> None:
    touched = sorted([touch(0, 8, 1, 10), touch(3, 1, 2, 20), touch(20, 1, 3, 5)])
    there, gone = still_there(touched, runs({0, 1, 2, 3, 4}))
    assert {site: (one.bytes // PAGE, one.touches) for site, one in there.items()} == {1: (4, 1), 2: (1, 1)}
    assert [one.site for one in gone] == [3]


def test_of_a_file_no_more_than_came() -> None:
    """Two faults in one window brought three pages and one; five are resident, one of them since before."""
    touched = sorted([touch(17, 3, 1, 10, anonymous=False), touch(30, 1, 2, 20, anonymous=False)])
    there, gone = still_there(touched, runs({16, 17, 18, 19, 30}))
    assert {site: one.bytes // PAGE for site, one in there.items()} == {1: 3, 2: 1}
    assert gone == []


TOUCHES = st.lists(
    st.tuples(st.integers(0, 60), st.sampled_from([1, 1, 1, 4, 16]), st.integers(1, 4), st.booleans()), max_size=40
)


@given(TOUCHES, st.sets(st.integers(0, 80)))
def test_pages_are_shared_out_once(raw: list[tuple[int, int, int, bool]], present: set[int]) -> None:
    """Against a plain loop over pages, for folios that are whole; of windows, sums that must hold."""
    touched, owner = [], {}
    for t_ns, (page, pages, site, _) in enumerate(raw, 1):
        first = page // pages * pages
        touched.append(touch(first, pages, site, t_ns))
        owner.update(dict.fromkeys(range(first, first + pages), site))
    there, gone = still_there(sorted(touched), runs(present))
    expected: dict[int, int] = {}
    for page in present & owner.keys():
        expected[owner[page]] = expected.get(owner[page], 0) + PAGE
    assert {site: one.bytes for site, one in there.items()} == expected
    assert sum(one.touches for one in there.values()) + len(gone) == len(touched)


@given(TOUCHES, st.sets(st.integers(0, 120)))
def test_windows_never_give_more_than_there_is(raw: list[tuple[int, int, int, bool]], present: set[int]) -> None:
    touched = sorted(
        touch(page, pages, site, t_ns, anonymous=anonymous and pages == 1)
        for t_ns, (page, pages, site, anonymous) in enumerate(raw, 1)
    )
    there, _ = still_there(touched, runs(present))
    for site, one in there.items():
        assert one.bytes <= PAGE * sum(t.pages for t in touched if t.site == site)
    reached = {page for t in touched for page in range(t.start // PAGE, t.end // PAGE)}
    assert sum(one.bytes for one in there.values()) <= PAGE * len(present & reached)


@given(st.lists(st.integers(0, 1 << 24), max_size=50))
def test_every_touch_lies_in_one_span(pages: list[int]) -> None:
    touched = sorted(touch(page, 1, 1, 1) for page in pages)
    found = list(spans(touched))
    assert found == sorted(found)
    for one in touched:
        assert len([1 for start, end in found if start <= one.start and one.end <= end]) == 1


@pytest.mark.parametrize(
    ("whole", "sizes", "orders"),
    [
        ("always [madvise] never", {"2048": "[inherit]", "64": "[never]"}, 1 << 9),
        ("always madvise [never]", {"2048": "[inherit]", "64": "always [madvise]"}, 1 << 4),
        ("always madvise [never]", {"2048": "[inherit]"}, 0),
        ("[always] madvise never", {}, 1 << 9),
        (None, {}, 0),
    ],
)
def test_sizes_of_anonymous_folios(tmp_path: Path, whole: str | None, sizes: dict[str, str], orders: int) -> None:
    if whole is not None:
        (tmp_path / "enabled").write_text(whole)
    for size, mode in sizes.items():
        (tmp_path / f"hugepages-{size}kB").mkdir()
        (tmp_path / f"hugepages-{size}kB" / "enabled").write_text(mode)
    assert anonymous_orders(tmp_path) == orders


def test_kernels_that_tell_each_change() -> None:
    assert why_not_exact("6.18.44-fc") is None
    assert why_not_exact("6.2.0") is None
    assert "5.15" in (why_not_exact("5.15.0-91-generic") or "")


def site(number: int, size: int, *, file_backed: bool = False) -> AllocationSite:
    frames = (Frame(kind="native", function=f"touch_{number}", module="/opt/app/touch"),)
    return AllocationSite(
        pid=7,
        site_id=number,
        kind="fault",
        stack=Stack(frames=frames),
        outstanding_bytes=size,
        outstanding_count=1,
        allocated_bytes=size,
        allocated_count=1,
        freed_bytes=0,
        freed_count=0,
        first_ns=1,
        last_ns=2,
        resident_bytes=size,
        file_backed=file_backed,
    )


def case() -> Case:
    meta = CaseMeta(
        memforensics_version="0",
        command="trace-faults",
        anchor=Anchor(monotonic_ns=0, wall_ns=0),
        root_pid=7,
        seed=1,
    )
    summary = TraceSummary(
        pid=7, engine="bcc", began_ns=0, ended_ns=10**10, events=3, outstanding_bytes=12288, resident_bytes=12288
    )
    return Case(meta=meta, sites=(site(1, 4096), site(2, 8192), site(3, 65536, file_backed=True)), traces=(summary,))


def test_files_are_apart_and_most_comes_first() -> None:
    view = view_of(case(), 10.0)
    assert [row.site.site_id for row in view.rows] == [2, 1]
    assert [row.site.site_id for row in view.file_rows] == [3]
    assert b"touch_2 [touch] 8192\n" in folded(view)
    assert b"65536" not in folded(view)


def test_no_culprit_rests_on_faults() -> None:
    assert group_sites(case()) == []


def test_the_json_says_what_it_means() -> None:
    view = view_of(case(), 10.0)
    told = faults_json(
        MEANING,
        [(row.site, None) for row in (*view.rows, *view.file_rows)],
        view.coverage,
        view.losses,
        view.costs,
        view.seconds,
        view.summaries,
    )
    assert told["meaning"] == MEANING
    assert [s["outstanding_bytes"] for s in told["sites"]] == [8192, 4096, 65536]
    assert [s["file_backed"] for s in told["sites"]] == [False, False, True]
