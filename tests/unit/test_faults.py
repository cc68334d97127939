"""Whose pages are still there, and what the trace of faults makes of it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memforensics.analysis.blame import growth_groups
from memforensics.analysis.trace_view import view_of
from memforensics.case.model import AllocationSite, Anchor, Case, CaseMeta, Frame, Stack, TraceSummary
from memforensics.case.views import TraceView
from memforensics.probes.ebpf.faults.pages import PAGE, Touched, resident_by_site, spans, touched
from memforensics.probes.ebpf.faults.programs import anonymous_orders, why_not_exact
from memforensics.report.export import export_view
from memforensics.report.json.trace import trace
from memforensics.report.labels import LABELS


@dataclass
class Touch:
    page: int
    pages: int
    site: int
    t_ns: int
    anonymous: bool = True
    window: int = 0


def places(*touches: Touch) -> Touched:
    def column(name: str) -> list[int]:
        return [getattr(one, name) for one in touches]

    at, window = (np.array(column(name), dtype=np.uint64) * PAGE for name in ("page", "window"))
    return touched(at, column("pages"), window, column("anonymous"), column("site"), column("t_ns"))


def runs(pages: set[int]) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for page in sorted(pages):
        if out and out[-1][1] == page * PAGE:
            out[-1] = (out[-1][0], (page + 1) * PAGE)
        else:
            out.append((page * PAGE, (page + 1) * PAGE))
    return out


@pytest.mark.parametrize(
    ("touch", "start", "end"),
    [
        (Touch(5, 1, 1, 1), 5, 6),
        (Touch(512, 512, 1, 1), 512, 1024),
        (Touch(21, 1, 1, 1, anonymous=False), 21, 22),
        (Touch(21, 3, 1, 1, anonymous=False), 16, 37),
        (Touch(70, 40, 1, 1, anonymous=False), 64, 134),
        (Touch(7, 3, 1, 1, window=100), 7, 107),
    ],
)
def test_the_range_of_the_pages_of_a_fault(touch: Touch, start: int, end: int) -> None:
    found = places(touch)[0]
    assert (found["start"], found["end"]) == (start * PAGE, end * PAGE)


def test_the_last_toucher_has_the_page() -> None:
    found = places(Touch(0, 8, 1, 10), Touch(20, 1, 3, 5), Touch(3, 1, 2, 20))
    there, gone = resident_by_site(found, runs({0, 1, 2, 3, 4}))
    assert {site: (one.bytes // PAGE, one.touches) for site, one in there.items()} == {1: (4, 1), 2: (1, 1)}
    assert gone["site"].tolist() == [3]


def test_a_file_fault_counts_only_the_pages_it_brought() -> None:
    """Two faults in one window brought three pages and one; five are resident, one of them since before."""
    found = places(Touch(17, 3, 1, 10, anonymous=False), Touch(30, 1, 2, 20, anonymous=False))
    there, gone = resident_by_site(found, runs({16, 17, 18, 19, 30}))
    assert {site: one.bytes // PAGE for site, one in there.items()} == {1: 3, 2: 1}
    assert len(gone) == 0


def test_a_mapping_that_begins_inside_the_window() -> None:
    """The window then begins with the mapping and is no shorter for that."""
    there, gone = resident_by_site(places(Touch(31, 8, 1, 10, anonymous=False)), runs(set(range(31, 39))))
    assert there[1].bytes == 8 * PAGE
    assert len(gone) == 0


def test_a_page_that_one_fault_left_out() -> None:
    """The first page was locked when its neighbours came, or came alone and they later: each fault has its own."""
    for first, later in ((Touch(16, 1, 1, 10), Touch(17, 7, 2, 20)), (Touch(16, 7, 2, 10), Touch(16, 1, 1, 20))):
        later.anonymous = first.anonymous = False
        there, _ = resident_by_site(places(first, later), runs(set(range(16, 24))))
        assert {site: one.bytes // PAGE for site, one in there.items()} == {1: 1, 2: 7}


def test_nothing_touched_and_nothing_resident() -> None:
    assert resident_by_site(places(), runs({1, 2}))[0] == {}
    there, gone = resident_by_site(places(Touch(1, 1, 1, 1)), [])
    assert (there, len(gone)) == ({}, 1)
    assert spans(places()) == []


TOUCHES = st.lists(
    st.tuples(st.integers(0, 60), st.sampled_from([1, 1, 1, 4, 16]), st.integers(1, 4), st.booleans()), max_size=40
)


@given(TOUCHES, st.sets(st.integers(0, 80)))
def test_each_page_has_one_site(raw: list[tuple[int, int, int, bool]], present: set[int]) -> None:
    """Against a plain loop over pages, for folios that are whole."""
    touches, owner = [], {}
    for t_ns, (page, pages, site, _) in enumerate(raw, 1):
        first = page // pages * pages
        touches.append(Touch(first, pages, site, t_ns))
        owner.update(dict.fromkeys(range(first, first + pages), site))
    there, gone = resident_by_site(places(*touches), runs(present))
    expected: dict[int, int] = {}
    for page in present & owner.keys():
        expected[owner[page]] = expected.get(owner[page], 0) + PAGE
    assert {site: one.bytes for site, one in there.items()} == expected
    assert sum(one.touches for one in there.values()) + len(gone) == len(touches)


@given(TOUCHES, st.sets(st.integers(0, 120)))
def test_windows_never_give_more_than_there_is(raw: list[tuple[int, int, int, bool]], present: set[int]) -> None:
    found = places(
        *(
            Touch(page, pages, site, t_ns, anonymous=anonymous and pages == 1)
            for t_ns, (page, pages, site, anonymous) in enumerate(raw, 1)
        )
    )
    there, _ = resident_by_site(found, runs(present))
    for site, one in there.items():
        assert one.bytes <= PAGE * found["pages"][found["site"] == site].sum()
    reached = {page for low, high in found[["start", "end"]].tolist() for page in range(low // PAGE, high // PAGE)}
    assert sum(one.bytes for one in there.values()) <= PAGE * len(present & reached)


@given(st.lists(st.integers(0, 1 << 24), max_size=50))
def test_every_touch_lies_in_one_span(pages: list[int]) -> None:
    found = places(*(Touch(page, 1, 1, 1) for page in pages))
    looked_at = spans(found)
    assert looked_at == sorted(looked_at)
    for start, end in found[["start", "end"]].tolist():
        assert len([1 for low, high in looked_at if low <= start and end <= high]) == 1


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


def test_kernels_that_report_each_change() -> None:
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


def view() -> TraceView:
    return view_of(case(), "bcc", 10.0, family="faults")


def test_files_are_separate_and_the_largest_site_is_first() -> None:
    found = view()
    assert [group.sites[0].site_id for group in found.groups] == [2, 1]
    assert [group.sites[0].site_id for group in found.file_groups] == [3]
    folded = export_view(found, "folded")
    assert b"touch_2 [touch] 8192\n" in folded
    assert b"65536" not in folded


def test_faults_name_no_culprit() -> None:
    assert growth_groups(case()) == []


def test_the_json_has_its_meaning() -> None:
    shown = trace(view())
    assert shown.meaning == LABELS["faults"].meaning
    assert [site.outstanding_bytes for site in shown.sites] == [8192, 4096, 65536]
    assert [site.file_backed for site in shown.sites] == [False, False, True]
