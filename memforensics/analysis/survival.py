"""Survival of the blocks of a site: how many were freed, whether anything points to the rest, and whether they are
mapped in proportion to the calls of munmap. Evidence for a finding; verdict.py decides. Pure.

- "lost": the lower confidence limit of the share of sampled blocks without a pointer to them is at least half. The
  error rate is divided by the number of sites tested in the case.
- "give-back-hook": the memory is mapped inside munmap, fewer than 5% of the blocks were freed (upper limit), and the
  number of blocks per call of munmap is constant over time, within its confidence limits.

In names and figures, the births of blocks are their allocations, and the deaths their frees.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import exp, lgamma, log, log1p

from memforensics.case.model import AllocationSite, Case, Cohort, EvidenceItem, Finding, ReferenceCheck, Releases
from memforensics.units import NS_PER_S, counted_text, duration_text, size_text

CONFIDENCE = 0.95
LEAST_TESTED = 12  # blocks in a test, and outstanding blocks of a site that is tested
SITES_CHECKED = 4  # in a case
LOST_SHARE = 0.5
FEW_DEATHS = 0.05
LEAST_SLOTS = 4  # time slots with munmap calls
LEAST_RELEASES = 20  # munmap calls in a slot
MAPPED_INSIDE = "munmap"  # the freeing call that the trace counts


# --- confidence limits of a share ---------------------------------------------------------------------------------


def upper_limit(hits: float, trials: float, confidence: float = CONFIDENCE) -> float:
    """One-sided Clopper-Pearson upper limit: for any larger share, `hits` or fewer of `trials` have a probability below
    1 - confidence. 1 without trials."""
    if trials <= 0 or hits >= trials:
        return 1.0
    return _beta_quantile(confidence, hits + 1, trials - hits)


def lower_limit(hits: float, trials: float, confidence: float = CONFIDENCE) -> float:
    """One-sided Clopper-Pearson lower limit. 0 without trials."""
    return 1.0 - upper_limit(trials - hits, trials, confidence) if trials > 0 else 0.0


def _beta_quantile(p: float, a: float, b: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _beta_cdf(middle, a, b) < p:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _beta_cdf(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function, by its continued fraction (DLMF 8.17.22)."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1) / (a + b + 2):
        return 1.0 - _beta_cdf(1.0 - x, b, a)
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log1p(-x)) / a
    fraction, above, below = 1.0, 1.0, 0.0  # Lentz's method
    for step in range(1, 100_000):
        m = step // 2
        if step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        below = 1.0 / (1.0 + term * below)
        above = 1.0 + term / above
        fraction *= above * below
        if abs(above * below - 1.0) < 1e-13:
            break
    return front / fraction


# --- deaths over births -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Share:
    """`upper`: the one-sided limit at CONFIDENCE."""

    estimate: float
    upper: float


def deaths_over_births(site: AllocationSite) -> Share | None:
    """The share of freed blocks among the older half of the site's allocations; younger blocks may still be in use.
    Sampled blocks count with their effective number. None: no allocations, or their times were not read."""
    births = sum(cohort.born_count for cohort in site.cohorts)
    older: list[Cohort] = []
    for cohort in site.cohorts:
        if 2 * sum(other.born_count for other in older) >= births:
            break
        older.append(cohort)
    effective = site.effective_births
    return _deaths(older, None if effective is None or not births else effective / births)


def _deaths(cohorts: Sequence[Cohort], effective_share: float | None) -> Share | None:
    """The share of freed blocks. `effective_share`: effective over counted births of a sample; None: all are
    counted."""
    born, left = sum(cohort.born_count for cohort in cohorts), sum(cohort.left_count for cohort in cohorts)
    if not born:
        return None
    scale = 1.0 if effective_share is None else min(1.0, effective_share)
    return Share((born - left) / born, upper_limit((born - left) * scale, born * scale))


# --- evidence for findings ----------------------------------------------------------------------------------------


def sites_to_check(findings: Iterable[Finding]) -> list[tuple[int, int]]:
    """(PID, site ID) of the sites whose blocks are searched for pointers to them: many growing anonymous mappings that
    no runtime manages. Not mappings whose addresses the program chose: it can compute them again."""
    sites = [
        site
        for finding in findings
        if finding.layer == "anon-mmap" and not (finding.culprit is not None and finding.culprit.extends)
        for site in finding.sites
        if site.site_id is not None and site.count >= LEAST_TESTED and (site.bytes_per_minute or 0.0) > 0.0
        if not site.placed
    ]
    sites.sort(key=lambda site: -site.outstanding_bytes)
    return [(site.pid, site.site_id or 0) for site in sites[:SITES_CHECKED]]


def with_survival(case: Case, finding: Finding) -> Finding:
    """The finding with evidence about the blocks of its sites."""
    items = [*_references(case, finding), *_give_back(case, finding)]
    return replace(finding, evidence=(*finding.evidence, *items)) if items else finding


def _references(case: Case, finding: Finding) -> Iterable[EvidenceItem]:
    valid = [check for check in case.reference_checks if check.complete and check.tested >= LEAST_TESTED]
    of_site = {(check.pid, check.site_id): check for check in valid}
    checked = [
        (site, of_site[site.pid, site.site_id])
        for site in finding.sites
        if site.site_id is not None and (site.pid, site.site_id) in of_site
    ]
    lost = [(site, check) for site, check in checked if is_lost(check, len(valid))]
    enough = LOST_SHARE * sum(site.outstanding_bytes for site in finding.sites)
    if lost and sum(site.outstanding_bytes for site, _ in lost) >= enough:
        yield _reference_item("lost", [check for _, check in lost])
    elif checked:
        yield _reference_item("referenced", [check for _, check in checked])


def is_lost(check: ReferenceCheck, tests: int) -> bool:
    """Whether at least half of the site's old blocks are lost, with the error rate divided by the number of tests."""
    confidence = 1.0 - (1.0 - CONFIDENCE) / max(1, tests)
    return lower_limit(check.lost, check.tested, confidence) >= LOST_SHARE


def _reference_item(kind: str, checks: Sequence[ReferenceCheck]) -> EvidenceItem:
    first, tested, lost = checks[0], sum(c.tested for c in checks), sum(c.lost for c in checks)
    apart = duration_text(max(0, first.second_ns - first.first_ns) / NS_PER_S)
    if kind == "lost":
        text = (
            f"nothing points to {lost} of {tested} sampled blocks: two searches of the process memory "
            f"({size_text(first.bytes_read)}, {apart} apart) found no pointer to them"
        )
    else:
        text = f"the process has pointers to {tested - lost} of {tested} sampled blocks: most of them are not lost"
    return EvidenceItem(kind=kind, text=text, ref=f"reference_checks/{first.pid}/{first.site_id}")


def _give_back(case: Case, finding: Finding) -> Iterable[EvidenceItem]:
    if not any(site.inside == MAPPED_INSIDE for site in finding.sites):
        return
    summary = next((trace for trace in case.traces if trace.pid == finding.pid), None)
    cohorts = _summed(site.cohorts for site in finding.sites)
    if summary is None or not cohorts:
        return
    births = sum(cohort.born_count for cohort in cohorts)
    known = {(site.pid, site.site_id): site.effective_births for site in case.sites}
    effective = [known.get((site.pid, site.site_id or 0)) for site in finding.sites]
    exact = all(number is None for number in effective)
    effective_share = None if exact or not births else sum(number or 0 for number in effective) / births
    deaths = _deaths(cohorts, effective_share)
    if deaths is None or deaths.upper >= FEW_DEATHS or not grows_with_releases(cohorts, summary.releases):
        return
    calls = sum(slot.count for slot in summary.releases)
    yield EvidenceItem(
        kind="give-back-hook",
        text=f"{counted_text(births, 'block')} mapped inside {MAPPED_INSIDE}, one per {calls / births:,.0f} calls, at "
        f"a constant ratio; fewer than {deaths.upper:.1%} of them were unmapped",
        ref=f"traces/{finding.pid}",
    )


def _summed(sites: Iterable[Sequence[Cohort]]) -> tuple[Cohort, ...]:
    """The summed cohorts of sites of one trace, which share their time slots. Empty if one site has none."""
    sums: dict[tuple[int, int], Cohort] = {}
    for cohorts in sites:
        if not cohorts:
            return ()
        for cohort in cohorts:
            key = cohort.born_from_ns, cohort.born_to_ns
            before = sums.get(key)
            sums[key] = cohort if before is None else _sum(before, cohort)
    return tuple(sums[key] for key in sorted(sums))


def _sum(one: Cohort, other: Cohort) -> Cohort:
    return replace(
        one,
        born_bytes=one.born_bytes + other.born_bytes,
        born_count=one.born_count + other.born_count,
        left_bytes=one.left_bytes + other.left_bytes,
        left_count=one.left_count + other.left_count,
    )


def grows_with_releases(cohorts: Sequence[Cohort], releases: Sequence[Releases]) -> bool:
    """Whether the number of births is proportional to the number of releases. Each slot has the same share of births as
    of releases, within binomial limits (error rate divided by the slots), and the later half of the slots has at least
    half as many births per release as the earlier half (lower limit). Slots with few releases are left out."""
    released = {(slot.from_ns, slot.to_ns): slot.count for slot in releases}
    slots = [(cohort.born_count, released.get((cohort.born_from_ns, cohort.born_to_ns), 0)) for cohort in cohorts]
    slots = [(births, calls) for births, calls in slots if calls >= LEAST_RELEASES]
    births, calls = sum(slot[0] for slot in slots), sum(slot[1] for slot in slots)
    if len(slots) < LEAST_SLOTS or not births:
        return False
    confidence = 1.0 - (1.0 - CONFIDENCE) / (2 * len(slots))
    for born, called in slots:
        if not lower_limit(born, births, confidence) <= called / calls <= upper_limit(born, births, confidence):
            return False
    later = slots[len(slots) // 2 :]
    born, called = sum(slot[0] for slot in later), sum(slot[1] for slot in later)
    half_as_many = 0.5 * called / (calls - called + 0.5 * called)
    return lower_limit(born, births) >= half_as_many
