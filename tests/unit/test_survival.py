"""Limits of a share, and the rules that make evidence of what became of a site's blocks."""

from dataclasses import replace
from math import comb
from typing import Any

import pytest
from fixtures.constructed import BASE, INVQ_STACK, PID, SECOND, case, cohorts
from hypothesis import given
from hypothesis import strategies as st

from memforensics.analysis.diagnosis import analyze
from memforensics.analysis.survival import (
    CONFIDENCE,
    deaths_over_births,
    grows_with_releases,
    is_lost,
    lower_limit,
    sites_to_check,
    upper_limit,
    with_survival,
)
from memforensics.case.model import (
    AllocationSite,
    Case,
    Cohort,
    Culprit,
    Finding,
    FindingSite,
    ReferenceCheck,
    Releases,
)


def _at_most(hits: int, trials: int, share: float) -> float:
    return sum(comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(hits + 1))


@given(trials=st.integers(1, 120), data=st.data(), confidence=st.sampled_from([0.9, 0.95, 0.9875]))
def test_limits_are_clopper_pearson(trials: int, data: st.DataObject, confidence: float) -> None:
    """At the upper limit, as few hits come with a probability of 1 - confidence."""
    hits = data.draw(st.integers(0, trials))
    upper, lower = upper_limit(hits, trials, confidence), lower_limit(hits, trials, confidence)
    assert lower <= hits / trials <= upper
    if hits < trials:
        assert _at_most(hits, trials, upper) == pytest.approx(1 - confidence, abs=1e-9)
    else:
        assert upper == 1.0
    if hits:
        assert 1 - _at_most(hits - 1, trials, lower) == pytest.approx(1 - confidence, abs=1e-9)
    else:
        assert lower == 0.0


def test_limits_of_large_counts() -> None:
    assert upper_limit(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert upper_limit(50_000, 1_000_000) == pytest.approx(0.05036, abs=1e-5)
    assert (upper_limit(0, 0), lower_limit(0, 0)) == (1.0, 0.0)


def _site(born: list[int], left: list[int], effective: int | None = None) -> AllocationSite:
    return AllocationSite(
        pid=PID,
        site_id=1,
        kind="mmap",
        stack=INVQ_STACK,
        outstanding_bytes=sum(left) << 14,
        outstanding_count=sum(left),
        allocated_bytes=sum(born) << 14,
        allocated_count=sum(born),
        freed_bytes=(sum(born) - sum(left)) << 14,
        freed_count=sum(born) - sum(left),
        first_ns=BASE,
        last_ns=BASE + 60 * SECOND,
        cohorts=_cohorts(born, left),
        effective_births=effective,
    )


def _cohorts(born: list[int], left: list[int] | None = None) -> tuple[Cohort, ...]:
    return tuple(
        Cohort(
            born_from_ns=BASE + at * 5 * SECOND,
            born_to_ns=BASE + (at + 1) * 5 * SECOND,
            born_bytes=count << 14,
            born_count=count,
            left_bytes=kept << 14,
            left_count=kept,
        )
        for at, (count, kept) in enumerate(zip(born, left or born, strict=True))
    )


def test_deaths_are_counted_in_the_older_half_of_the_births() -> None:
    """A FIFO that filled up has kept all its young blocks and none of the old ones."""
    share = deaths_over_births(_site([100, 100, 100, 100], [0, 0, 100, 100]))
    assert share is not None
    assert (share.estimate, share.upper) == (1.0, 1.0)
    kept = deaths_over_births(_site([0, 0, 50, 50], [0, 0, 50, 50]))
    assert kept is not None
    assert kept.estimate == 0.0
    assert kept.upper == pytest.approx(upper_limit(0, 50))
    assert deaths_over_births(_site([], [])) is None


def test_sampled_births_have_wider_limits() -> None:
    exact, sampled = deaths_over_births(_site([256], [256])), deaths_over_births(_site([256], [256], effective=2))
    assert exact is not None
    assert sampled is not None
    assert exact.upper == pytest.approx(upper_limit(0, 256))
    assert sampled.upper == pytest.approx(upper_limit(0, 2))


# --- references


def _check(tested: int, lost: int, **more: Any) -> ReferenceCheck:
    check = ReferenceCheck(
        pid=PID,
        site_id=1,
        first_ns=BASE + 30 * SECOND,
        second_ns=BASE + 40 * SECOND,
        tested=tested,
        lost=lost,
        bytes_read=1 << 30,
        complete=True,
    )
    return replace(check, **more)


@pytest.mark.parametrize(
    ("tested", "lost", "tests", "expected"),
    [(12, 12, 1, True), (12, 12, 4, True), (12, 10, 1, True), (12, 8, 1, False), (48, 31, 1, True), (48, 30, 4, False)],
)
def test_lost_needs_the_lower_limit_at_half(tested: int, lost: int, tests: int, expected: bool) -> None:
    assert is_lost(_check(tested, lost), tests) is expected
    limit = lower_limit(lost, tested, 1 - (1 - CONFIDENCE) / tests)
    assert (limit >= 0.5) is expected


def _kinds(found: Case) -> list[str]:
    (finding,) = analyze(found).findings
    return [item.kind for item in finding.evidence if item.kind in ("lost", "referenced", "give-back-hook")]


@pytest.mark.parametrize(
    ("check", "kinds"),
    [
        (_check(48, 48), ["lost"]),
        (_check(48, 0), ["referenced"]),
        (_check(48, 20), ["referenced"]),
        (_check(48, 48, complete=False), []),
        (_check(11, 11), []),
        (_check(48, 48, site_id=2), []),
    ],
)
def test_evidence_of_a_reference_check(check: ReferenceCheck, kinds: list[str]) -> None:
    assert _kinds(case(reference_checks=(check,), hooks=())) == kinds


def test_a_small_lost_site_does_not_make_the_finding_lost() -> None:
    (site,) = case().sites
    small = replace(site, site_id=2, outstanding_bytes=site.outstanding_bytes // 4)
    found = case(sites=(site, small), reference_checks=(_check(48, 48, site_id=2), _check(48, 0)), hooks=())
    assert _kinds(found) == ["referenced"]


def test_sites_to_search_for_references() -> None:
    def finding(**more: Any) -> Finding:
        first = FindingSite(
            pid=PID,
            outstanding_bytes=1 << 20,
            bytes_per_minute=1e6,
            count=100,
            inside=None,
            stack=INVQ_STACK,
            site_id=1,
        )
        sites = (
            first,
            replace(first, site_id=2, count=11),
            replace(first, site_id=3, bytes_per_minute=None),
            replace(first, site_id=4, outstanding_bytes=2 << 20),
            replace(first, site_id=5, placed=True),
        )
        about = Finding(
            title="", layer="anon-mmap", verdict="growing", confidence=0.0, share=None, pid=PID, sites=sites
        )
        return replace(about, **more)

    assert sites_to_check([finding()]) == [(PID, 4), (PID, 1)]
    assert sites_to_check([finding(layer="native-heap")]) == []
    assert sites_to_check([finding(culprit=Culprit(library="libc.so.6", extends=True))]) == []


# --- memory mapped inside munmap


def _releases(*calls: int) -> tuple[Releases, ...]:
    return tuple(
        Releases(from_ns=BASE + at * 5 * SECOND, to_ns=BASE + (at + 1) * 5 * SECOND, count=count)
        for at, count in enumerate(calls)
    )


@pytest.mark.parametrize(
    ("births", "calls", "expected"),
    [
        ([25] * 12, [1000] * 12, True),
        ([50, 50, 0, 0, 25, 25, 50, 50], [2000, 2000, 0, 0, 1000, 1000, 2000, 2000], True),  # with the load
        ([50, 50, 0, 0, 25, 25, 50, 50], [1000] * 8, False),  # not with the load
        ([100, 60, 36, 20, 12, 8, 4, 2], [1000] * 8, False),  # a pool that fills
        ([25, 25, 25], [1000] * 3, False),  # too few slots
        ([25] * 12, [10] * 12, False),  # too few releases
        ([0] * 12, [1000] * 12, False),
        ([25] * 12, [], False),
    ],
)
def test_births_in_proportion_to_releases(births: list[int], calls: list[int], expected: bool) -> None:
    assert grows_with_releases(_cohorts(births), _releases(*calls)) is expected


def _hooked(births: list[int], left: list[int], calls: list[int]) -> list[str]:
    minute = case()
    (site,) = minute.sites
    own = _site(births, left)
    site = replace(own, stack=site.stack, outstanding_bytes=397 << 20, allocated_bytes=397 << 20, freed_bytes=0)
    (trace,) = minute.traces
    return _kinds(replace(minute, sites=(site,), traces=(replace(trace, releases=_releases(*calls)),)))


def test_memory_mapped_inside_munmap_that_stays_is_leak_evidence() -> None:
    assert _hooked([25] * 12, [25] * 12, [1000] * 12) == ["give-back-hook"]
    assert _hooked([25] * 12, [20] * 12, [1000] * 12) == []  # some are unmapped
    assert _hooked([25] * 12, [25] * 12, [1000, 5000] * 6) == []  # not with the releases
    assert _hooked([2] * 12, [2] * 12, [1000] * 12) == []  # too few to exclude 5% deaths


def test_memory_mapped_outside_a_hook_is_not_leak_evidence() -> None:
    """Zero deaths and a straight line: a FIFO does that until it is full."""
    (site,) = case().sites
    (trace,) = case().traces
    site = replace(site, cohorts=cohorts(BASE, 60, 397 << 20, 2753))
    counted = replace(trace, releases=_releases(*[1000] * 12))
    assert _kinds(case(sites=(site,), traces=(counted,), hooks=())) == []


def test_a_finding_without_survival_evidence_does_not_change() -> None:
    (finding,) = analyze(case(hooks=())).findings
    assert with_survival(case(hooks=()), finding) is finding
