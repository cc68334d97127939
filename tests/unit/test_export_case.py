"""What of a case is shown and exported: one family of sites, those that pass the filters, old enough."""

from dataclasses import replace

import pytest
from exported import GROW, LOAD, MAIN, SITES, TOTAL, S, site
from fixtures.constructed import of_age

from memforensics.analysis.site_groups import parse_filter
from memforensics.analysis.trace_view import Selection, view_of, view_of_case
from memforensics.case.model import AllocationSite, Anchor, Case, CaseMeta, Target, TraceSummary
from memforensics.cli.screen.trace_table import LiveTable
from memforensics.errors import CaseError
from memforensics.report.export import export_view
from memforensics.report.terminal.trace import Screen

META = CaseMeta(
    memforensics_version="1",
    command="diagnose",
    anchor=Anchor(monotonic_ns=0, wall_ns=1_700_000_000 * S),
    root_pid=41,
    seed=1,
)
TRACE = TraceSummary(pid=41, engine="bcc", began_ns=10 * S, ended_ns=20 * S, events=9, outstanding_bytes=TOTAL)


def case(*sites: AllocationSite) -> Case:
    return Case(
        meta=META,
        sites=sites,
        traces=(TRACE,),
        targets=(Target(pid=41, start_ticks=1, start_wall_ns=1, comm="server", exe="/srv/bin/server"),),
    )


def sizes(data: bytes) -> list[int]:
    return [int(line.rpartition(" ")[2]) for line in data.decode().splitlines()]


def test_mappings_malloc_and_faults_are_not_mixed() -> None:
    malloc = replace(site(41, 9, 77, 1, LOAD, MAIN), kind="malloc")
    fault = replace(site(41, 10, 88, 1, LOAD, MAIN), kind="fault")
    mixed = case(malloc, fault, *SITES)
    assert sizes(export_view(view_of_case(mixed), "folded")) == [7 << 20, 2 << 20, 1 << 20, 512 << 10]
    assert sizes(export_view(view_of_case(mixed, "malloc"), "folded")) == [77]
    assert sizes(export_view(view_of_case(mixed, "faults"), "folded")) == [88]
    assert sizes(export_view(view_of_case(case(malloc)), "folded")) == [77]


def test_case_without_sites_is_an_error() -> None:
    with pytest.raises(CaseError, match="no malloc sites"):
        view_of_case(case(*SITES), "malloc")
    with pytest.raises(CaseError, match="made by memforensics diagnose"):
        view_of_case(case())


def test_filtered_sites_are_counted_and_not_exported() -> None:
    view = view_of(case(*SITES), "bcc", 10.0, Selection(filters=(parse_filter("lib=libpool"),)))
    assert sum(g.outstanding_bytes for g in view.groups) == 9 << 20
    assert sum(g.outstanding_bytes for g in view.groups + view.left_out) == TOTAL
    assert sizes(export_view(view, "folded")) == [7 << 20, 2 << 20]


def test_min_age_leaves_out_young_memory() -> None:
    young = replace(site(41, 1, 100, 1, GROW, LOAD), cohorts=of_age(0.5))
    old = replace(site(41, 2, 50, 1, LOAD, MAIN), cohorts=of_age(8.0))
    view = view_of(case(young, old), "bcc", 10.0, Selection(min_age_s=5))
    assert [s.site_id for s in view.sites] == [2]
    assert [g.sites[0].site_id for g in view.left_out] == [1]


@pytest.mark.parametrize(("sort", "first"), [("outstanding", 1), ("count", 2), ("age", 2)])
def test_groups_are_sorted_as_selected(sort: str, first: int) -> None:
    large = replace(site(41, 1, 100, 1, GROW, LOAD), cohorts=of_age(0.5))
    many = replace(site(41, 2, 50, 9, LOAD, MAIN), cohorts=of_age(8.0))
    view = view_of(case(many, large), "bcc", 10.0, Selection(sort=sort))  # type: ignore[arg-type]
    assert view.groups[0].sites[0].site_id == first


def test_selected_row_stays_selected() -> None:
    table = LiveTable(Screen())

    def look(**held: int) -> list[tuple[str, bool]]:
        frames = {"grow": GROW, "load": LOAD, "main": MAIN}
        sites = [site(41, n, size, 1, frames[name]) for n, (name, size) in enumerate(held.items())]
        table.take(view_of(case(*sites), "bcc", 10.0))
        return [(str(g.named and g.named.function), at == table.screen.at) for at, g in enumerate(table.groups)]

    assert look(grow=50, load=40, main=30) == [("pool_grow", True), ("load", False), ("main", False)]
    table.press("j")
    look(grow=50, load=400, main=30)
    assert look(grow=50, load=400, main=30) == [("load", True), ("pool_grow", False), ("main", False)]
    table.press("p")
    assert look(grow=5000, load=1, main=1)[0] == ("load", True)
    table.press("p")
    table.press("k")
    look(grow=5000, load=1, main=1)
    assert look(grow=5000, load=1, main=1)[0] == ("pool_grow", True)
