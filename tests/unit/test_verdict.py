"""The word. A rising line alone is `growing`; a known cause whose memory grows is a `leak`."""

from collections.abc import Callable
from dataclasses import replace
from math import exp

import pytest

from memforensics.analysis.series import growth as judged_growth
from memforensics.analysis.trend import fit_trend
from memforensics.analysis.verdict import DROPPED, HIDDEN, NO_PROOF, confidence, decide
from memforensics.case.model import (
    AllocationSite,
    Anchor,
    Case,
    CaseMeta,
    Cohort,
    Culprit,
    EvidenceItem,
    Finding,
    FindingSite,
    Growth,
    Layer,
    LayerRow,
    MemberGrowth,
    Rate,
    Sample,
    Shape,
    Stack,
    Target,
    TraceSummary,
    Trend,
    Verdict,
)
from memforensics.units import GIB, MIB, NS_PER_S

PID = 7


def constructed_case(*, age_s: float, size: int = 100 * MIB) -> Case:
    """A process of that age and size, at the end of what was observed."""
    now = 10_000_000 * NS_PER_S
    meta = CaseMeta(
        memforensics_version="0", command="diagnose", anchor=Anchor(monotonic_ns=0, wall_ns=0), root_pid=PID, seed=1
    )
    target = Target(pid=PID, start_ticks=1, start_wall_ns=now - int(age_s * NS_PER_S))
    sample = Sample(pid=PID, t_ns=now, rss_anon=size, rss_file=0, rss_shmem=0)
    trace = TraceSummary(pid=PID, engine="bcc", began_ns=0, ended_ns=now, events=1, outstanding_bytes=1)
    return Case(meta=meta, targets=(target,), samples=(sample,), traces=(trace,))


def line(bytes_per_minute: float, seconds: int = 60, start: int = 100 * MIB) -> Trend:
    times = [float(s) for s in range(seconds)]
    return fit_trend(times, [start + t * bytes_per_minute / 60 for t in times])


def growth(trend: Trend) -> Growth:
    return Growth(metric="m", trend=trend, rate=trend.rate)


RISING, FLAT = line(60 * MIB), line(0)
FINDING = Finding(
    title="t", layer="anon-mmap", verdict="growing", confidence=0.0, share=1.0, pid=PID, trend=RISING, rate=RISING.rate
)
KNOWN = replace(FINDING, cause="some-cause", verdict="leak", confidence=0.9)


def test_a_rising_line_alone_is_growing() -> None:
    decision = decide(constructed_case(age_s=60), growth(RISING), [FINDING])
    assert decision.verdict == "growing"
    assert decision.findings[0].against == (NO_PROOF,)


def test_a_known_cause_that_grows_is_a_leak() -> None:
    decision = decide(constructed_case(age_s=60), growth(RISING), [KNOWN])
    assert decision.verdict == "leak"
    assert decision.findings[0].confidence == 0.9


def test_known_cause_with_a_short_trace_depends_on_total_growth() -> None:
    short = replace(KNOWN, trend=fit_trend([0.0, 1.0, 2.0], [0.0, MIB, 2 * MIB]))
    assert decide(constructed_case(age_s=60), growth(RISING), [short]).verdict == "leak"
    assert decide(constructed_case(age_s=60), growth(RISING), [replace(short, share=0.1)]).verdict == "growing"
    assert decide(constructed_case(age_s=60), growth(FLAT), [short]).verdict == "steady"


def test_known_cause_that_does_not_grow_is_not_reported() -> None:
    still = replace(KNOWN, trend=FLAT, rate=FLAT.rate)
    decision = decide(constructed_case(age_s=60), growth(FLAT), [still])
    assert decision.verdict == "steady"
    assert decision.findings == ()


@pytest.mark.parametrize("word", ["bounded", "retention"])
def test_bounded_cause_makes_the_verdict_bounded(word: Verdict) -> None:
    finding = replace(FINDING, cause="a-cache", verdict=word, confidence=0.8)
    assert decide(constructed_case(age_s=60), growth(RISING), [finding]).verdict == word


# --- growth that was watched for long -------------------------------------------------------------------------------


def watched(
    level: Callable[[float], float], seconds: float = 1860.0, interval: float = 10.0, began_ns: int = 0
) -> tuple[Case, Growth]:
    """A process of which the level (bytes, by the share of the time) was watched, eight hours after its start."""
    case = constructed_case(age_s=8 * 3600.0)
    count = int(seconds / interval)
    samples = tuple(
        Sample(
            pid=PID,
            t_ns=began_ns + int(at * interval * NS_PER_S),
            rss_anon=int(level(at / count)),
            rss_file=0,
            rss_shmem=0,
        )
        for at in range(count + 1)
    )
    case = replace(case, samples=samples, traces=())
    found = judged_growth(case)
    assert found is not None
    return case, found


def straight(x: float) -> float:
    return 4 * GIB + 1.2 * GIB * x


def test_sustained_growth_is_a_leak_with_its_figures() -> None:
    case, found = watched(straight)
    decision = decide(case, found, [FINDING])
    assert decision.verdict == "leak"
    item = decision.findings[0].evidence[-1]
    assert item.kind == "outlasted"
    assert "grew by 1.2 GiB from 4.0 GiB in 31 m" in item.text
    assert item.text.count("MiB") == 4
    assert NO_PROOF not in decision.findings[0].against


@pytest.mark.parametrize(
    ("level", "seconds"),
    [
        (straight, 1790.0),
        (lambda x: 4 * GIB + 1000 * MIB * x, 1860.0),
        (lambda x: 20 * MIB + 100 * MIB * x, 1860.0),
        (lambda x: 4 * GIB + 2 * GIB * min(x, 0.7) / 0.7, 1860.0),
        (lambda x: 4 * GIB + 4 * GIB * (1 - exp(-x)), 1860.0),
        (lambda x: 4 * GIB + 2 * GIB * ((3.3 * x + 0.5) % 1.0), 1860.0),
    ],
    ids=["too-short", "too-little", "too-small", "full-at-70%", "warm-up", "saw-teeth"],
)
def test_growth_that_is_not_sustained_is_not_a_leak(level: Callable[[float], float], seconds: float) -> None:
    case, found = watched(level, seconds)
    assert decide(case, found, [FINDING]).verdict != "leak"


def test_a_process_that_doubles_has_grown_enough() -> None:
    case, found = watched(lambda x: 300 * MIB + 310 * MIB * x)
    assert decide(case, found, [FINDING]).verdict == "leak"


def test_the_age_of_a_process_is_not_evidence() -> None:
    """An old process with the saw-teeth of a collector, looked at for 18 s."""
    case, found = watched(lambda x: 6 * GIB + 90 * MIB * x, 18.0, 0.5)
    assert decide(case, found, [FINDING]).verdict == "growing"


@pytest.mark.parametrize("word", ["bounded", "retention"])
def test_sustained_growth_does_not_override_a_bounded_cause(word: str) -> None:
    case, found = watched(straight)
    limited = replace(FINDING, cause="a-cache", verdict=word, confidence=0.8, share=0.8)  # type: ignore[arg-type]
    other = replace(FINDING, share=0.2)
    assert decide(case, found, [limited]).verdict == word
    assert decide(case, found, [limited, other]).verdict == "growing"


def test_a_small_part_of_sustained_growth_is_not_the_leak() -> None:
    case, found = watched(straight)
    decision = decide(case, found, [replace(FINDING, share=0.71), replace(FINDING, share=0.29)])
    assert [f.verdict for f in decision.findings] == ["leak", "growing"]


@pytest.mark.parametrize(
    ("births", "left", "verdict"), [(100, 100, "leak"), (100, 98, "growing"), (40, 40, "growing"), (1000, 970, "leak")]
)
def test_freed_blocks_of_the_top_site_exclude_sustained_growth(births: int, left: int, verdict: str) -> None:
    """Fewer than 5% of the older blocks died, by the upper limit: 2 of 100 may be 6%, and none of 40 may be 7%."""
    case, found = watched(straight)
    cohort = Cohort(
        born_from_ns=0, born_to_ns=1, born_bytes=births, born_count=births, left_bytes=left, left_count=left
    )
    site = AllocationSite(
        pid=PID, site_id=3, kind="mmap", stack=Stack(frames=()), outstanding_bytes=left, outstanding_count=left,
        allocated_bytes=births, allocated_count=births, freed_bytes=0, freed_count=births - left, first_ns=0, last_ns=1,
        cohorts=(cohort,),
    )  # fmt: skip
    cited = FindingSite(
        pid=PID, outstanding_bytes=left, bytes_per_minute=None, count=left, inside=None, stack=site.stack, site_id=3
    )
    finding = replace(FINDING, sites=(cited,))
    assert decide(replace(case, sites=(site,)), found, [finding]).verdict == verdict


# --- evidence that nothing will free the memory -------------------------------------------------------------------


def of_kinds(*kinds: str, base: Finding = FINDING) -> Finding:
    return replace(base, evidence=tuple(EvidenceItem(kind=kind, text=kind) for kind in kinds))


@pytest.mark.parametrize("kinds", [("ended-threads",), ("lost",), ("inside", "give-back-hook")])
def test_leak_evidence_makes_growth_a_leak(kinds: tuple[str, ...]) -> None:
    case = constructed_case(age_s=60)
    assert decide(case, growth(RISING), [of_kinds(*kinds)]).verdict == "leak"
    still = replace(of_kinds(*kinds), trend=FLAT, rate=FLAT.rate)
    assert decide(case, growth(FLAT), [still]).verdict == "steady"
    unsure = replace(of_kinds(*kinds), trend=None, rate=None)
    assert decide(case, growth(RISING), [unsure]).verdict == "leak"
    assert decide(case, growth(FLAT), [unsure]).verdict == "steady"


@pytest.mark.parametrize("kinds", [(), ("inside",), ("give-back-hook",), ("stack", "rate"), ("referenced",)])
def test_other_evidence_does_not_make_growth_a_leak(kinds: tuple[str, ...]) -> None:
    assert decide(constructed_case(age_s=60), growth(RISING), [of_kinds(*kinds)]).verdict == "growing"


def test_leak_evidence_does_not_make_a_bounded_cause_a_leak() -> None:
    limited = of_kinds("lost", base=replace(FINDING, cause="a-cache", verdict="bounded", confidence=0.8))
    assert decide(constructed_case(age_s=60), growth(RISING), [limited]).verdict == "bounded"


# --- the guard ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["flat", "step", "saw-tooth", "plateau", "falling"])
def test_a_rate_that_matters_is_never_steady_or_bounded(shape: Shape) -> None:
    rises = replace(FLAT, shape=shape, rate=Rate(estimate=128 * MIB, low=92 * MIB, high=165 * MIB))
    decision = decide(constructed_case(age_s=60), growth(rises), [])
    assert decision.verdict == "insufficient-data"
    barely = replace(rises, rate=Rate(estimate=2 * MIB, low=0.9 * MIB, high=3 * MIB))
    assert decide(constructed_case(age_s=60), growth(barely), []).verdict in ("steady", "bounded")


def test_a_series_that_leveled_off_has_the_rate_of_its_end() -> None:
    case, found = watched(lambda x: 100 * MIB + 90 * MIB * min(x / 0.45, 1.0), 60.0, 0.5)
    assert found.rate is not None
    assert found.rate.low <= 0.0 <= found.rate.high
    assert decide(case, found, []).verdict in ("steady", "bounded")


def layer_row(layer: Layer, mib_a_minute: float) -> LayerRow:
    rate = Rate(estimate=mib_a_minute * MIB, low=(mib_a_minute - 3) * MIB, high=(mib_a_minute + 3) * MIB)
    return LayerRow(layer=layer, in_rss=True, bytes=200 * MIB, change_bytes=9 * MIB, rate=rate)


def test_growth_hidden_by_shrinking_memory_is_found_by_its_layer() -> None:
    """The whole is flat and excludes it; the layer of the finding grew like the finding."""
    case, own = constructed_case(age_s=60), replace(FINDING, share=None)
    rows = {PID: [layer_row("anon-mmap", 58), layer_row("native-heap", -58)]}
    decision = decide(case, growth(FLAT), [own], rows)
    assert decision.verdict == "growing"
    assert HIDDEN in decision.findings[0].evidence
    assert decide(case, growth(FLAT), [own], {PID: [layer_row("anon-mmap", 20)]}).verdict == "steady"
    assert decide(case, growth(FLAT), [own], {PID + 1: rows[PID]}).verdict == "steady"


def test_growth_hidden_by_a_shrinking_process_is_found_by_its_process() -> None:
    case, own = constructed_case(age_s=60), replace(FINDING, share=None)
    member = MemberGrowth(pid=PID, change_bytes=60 * MIB, rate=RISING.rate)
    assert decide(case, growth(FLAT), [own], members=[member]).verdict == "growing"
    assert decide(case, growth(FLAT), [own], members=[replace(member, pid=PID + 1)]).verdict == "steady"


def test_a_heap_whose_layer_grows_is_kept() -> None:
    own = replace(FINDING, layer="native-heap", share=None, culprit=Culprit(library="l", extends=True))
    rows = {PID: [layer_row("native-heap", 58)]}
    assert decide(constructed_case(age_s=60), growth(FLAT), [own], rows).verdict == "growing"


def test_traced_memory_that_explains_a_continuing_rise_is_not_steady() -> None:
    """A line that begins late: too short to be straight, and all of it is traced memory that is still there."""
    case, _ = watched(lambda x: 100 * MIB + 30 * MIB * max(0.0, x - 0.7) / 0.3, 60.0, 0.5)
    case = replace(case, traces=constructed_case(age_s=60).traces)
    own = replace(FINDING, trend=replace(RISING, shape="step", rate=Rate(estimate=90 * MIB, low=1.0, high=2e8)))
    assert decide(case, growth(FLAT), [own]).verdict == "insufficient-data"
    assert decide(case, growth(FLAT), [replace(own, trend=FLAT)]).verdict == "steady"
    assert decide(case, growth(FLAT), [replace(own, trend=line(900 * MIB))]).verdict == "steady"


@pytest.mark.parametrize(("share", "word"), [(0.7, "bounded"), (0.69, "growing"), (0.2, "growing")])
def test_bounded_needs_a_cause_that_explains_most_growth(share: float, word: str) -> None:
    limited = replace(FINDING, cause="a-cache", verdict="bounded", confidence=0.8, share=share)
    assert decide(constructed_case(age_s=60), growth(RISING), [limited]).verdict == word


def test_other_growth_next_to_a_bounded_cause_is_growing() -> None:
    limited = replace(FINDING, cause="a-cache", verdict="bounded", confidence=0.8, share=0.75)
    other = replace(FINDING, share=0.25)
    assert decide(constructed_case(age_s=60), growth(RISING), [limited, other]).verdict == "growing"
    still = replace(other, trend=FLAT, rate=FLAT.rate)
    assert decide(constructed_case(age_s=60), growth(RISING), [limited, still]).verdict == "bounded"


# --- confidence -----------------------------------------------------------------------------------------------------

MORE: dict[str, Callable[[Finding], Finding]] = {
    "code-that-requested-it": lambda f: replace(f, culprit=Culprit(library="l", extends=True)),
    "code-that-holds-it": lambda f: replace(f, culprit=Culprit(library="l")),
    "a-larger-share": lambda f: replace(f, share=min(1.0, (f.share or 0.0) + 0.3)),
    "leak-evidence": lambda f: of_kinds(*(item.kind for item in f.evidence), "lost", base=f),
    "more-evidence": lambda f: of_kinds(*(item.kind for item in f.evidence), "heap-flat", base=f),
}
BARE = replace(FINDING, share=0.5, culprit=None)


@pytest.mark.parametrize("more", MORE)
@pytest.mark.parametrize("first", [None, *MORE])
@pytest.mark.parametrize("grows", [True, False])
def test_more_evidence_never_lowers_the_confidence(first: str | None, more: str, grows: bool) -> None:
    before = BARE if first is None or ("code" in first and "code" in more) else MORE[first](BARE)
    less, much = (confidence(f, "growing", grows=grows) for f in (before, MORE[more](before)))
    assert 0.0 < less <= much <= 1.0
    assert confidence(before, "growing", grows=False) <= less


def test_known_code_raises_the_confidence() -> None:
    requested, held = MORE["code-that-requested-it"](BARE), MORE["code-that-holds-it"](BARE)
    sure = [confidence(f, "growing", grows=True) for f in (BARE, requested, held, of_kinds("lost", base=held))]
    assert sure == sorted(set(sure))


def test_growth_that_total_memory_does_not_show_has_lower_confidence() -> None:
    hidden = replace(BARE, evidence=(HIDDEN,))
    assert confidence(hidden, "growing", grows=True) < confidence(BARE, "growing", grows=True)


@pytest.mark.parametrize(
    ("dropped", "unknown", "is_doubtful"),
    [(0, None, False), (9, 0, False), (9, 5, False), (9, 50, True), (9, None, True)],
)
def test_dropped_events_lower_the_confidence(dropped: int, unknown: int | None, is_doubtful: bool) -> None:
    trace = TraceSummary(
        pid=PID,
        engine="bcc",
        began_ns=0,
        ended_ns=NS_PER_S,
        events=100,
        outstanding_bytes=100,
        dropped_events=dropped,
        unknown_bytes=unknown,
    )
    held = MORE["code-that-holds-it"](BARE)
    case = constructed_case(age_s=60)
    before = {f.cause: f for f in decide(case, growth(RISING), [held, replace(KNOWN, culprit=held.culprit)]).findings}
    case = replace(case, traces=(trace,))
    after = {f.cause: f for f in decide(case, growth(RISING), [held, replace(KNOWN, culprit=held.culprit)]).findings}
    for cause, finding in after.items():
        assert (DROPPED in finding.against) is is_doubtful
        assert (finding.confidence < before[cause].confidence) is is_doubtful


def test_a_known_cause_has_the_confidence_of_the_catalogue_if_it_grows() -> None:
    assert confidence(KNOWN, "leak", grows=True) == 0.9
    assert confidence(KNOWN, "growing", grows=False) == 0.5


def test_a_case_without_samples_is_insufficient_data() -> None:
    assert decide(constructed_case(age_s=60), None, []).verdict == "insufficient-data"


def test_flat_is_steady() -> None:
    assert decide(constructed_case(age_s=60), growth(FLAT), []).verdict == "steady"


def test_an_old_trace_shows_a_leak_only_while_memory_still_grows() -> None:
    """A watch goes on after the search for the cause; the memory may have stopped growing since."""
    case = constructed_case(age_s=600)
    ended = case.samples[-1].t_ns - 600 * NS_PER_S
    case = replace(case, traces=(replace(case.traces[0], ended_ns=ended),))
    assert decide(case, growth(RISING), [KNOWN]).verdict == "leak"
    stopped = decide(case, growth(FLAT), [KNOWN])
    assert (stopped.verdict, stopped.findings) == ("steady", ())


def swinging(seconds: int = 20) -> Trend:
    """Saw-teeth of 100 MiB every two seconds, on 60 MiB a minute: nobody can see that in so short a time."""
    times = [t / 2 for t in range(2 * seconds)]
    return fit_trend(times, [100 * MIB + t * MIB + (t % 2.0) * 50 * MIB for t in times])


def test_growing_mappings_are_reported_although_total_memory_fluctuates() -> None:
    own = replace(FINDING, trend=line(60 * MIB, 15, start=0), share=None)
    assert growth(swinging()).trend.shape != "linear"
    decision = decide(constructed_case(age_s=60), growth(swinging()), [own])
    assert decision.verdict == "growing"
    assert [item.kind for item in decision.findings[0].evidence] == ["hidden"]


def test_a_full_cache_that_replaces_entries_is_steady() -> None:
    """What was mapped since the trace began grows, and as much that was there before goes."""
    own = replace(FINDING, trend=line(600 * MIB, 15, start=0))
    assert decide(constructed_case(age_s=60), growth(FLAT), [own]).verdict == "steady"
    assert decide(constructed_case(age_s=60), growth(swinging()), [own]).verdict != "growing"


def test_a_fluctuating_heap_is_not_hidden_growth() -> None:
    own = replace(FINDING, trend=line(60 * MIB, 15, start=0), culprit=Culprit(library="l", extends=True))
    assert decide(constructed_case(age_s=60), growth(swinging()), [own]).verdict != "growing"
