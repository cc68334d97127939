"""The word. A rising line alone is `growing`; a known cause whose memory grows is a `leak`."""

from dataclasses import replace

import pytest

from memforensics.analysis.trend import judge
from memforensics.analysis.verdict import NO_PROOF, decide
from memforensics.case.model import (
    Anchor,
    Case,
    CaseMeta,
    Culprit,
    Finding,
    Growth,
    Sample,
    Target,
    TraceSummary,
    Trend,
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
    return judge(times, [start + t * bytes_per_minute / 60 for t in times], seed=1)


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


def test_a_known_cause_whose_trace_was_short_goes_by_the_line_of_the_whole() -> None:
    short = replace(KNOWN, trend=judge([0.0, 1.0, 2.0], [0.0, MIB, 2 * MIB], seed=1))
    assert decide(constructed_case(age_s=60), growth(RISING), [short]).verdict == "leak"
    assert decide(constructed_case(age_s=60), growth(RISING), [replace(short, share=0.1)]).verdict == "growing"
    assert decide(constructed_case(age_s=60), growth(FLAT), [short]).verdict == "steady"


def test_a_known_cause_that_does_not_grow_is_none() -> None:
    still = replace(KNOWN, trend=FLAT, rate=FLAT.rate)
    decision = decide(constructed_case(age_s=60), growth(FLAT), [still])
    assert decision.verdict == "steady"
    assert decision.findings == ()


@pytest.mark.parametrize("word", ["bounded", "retention"])
def test_growth_that_is_known_to_be_bounded_is_so_as_a_whole(word: str) -> None:
    finding = replace(FINDING, cause="a-cache", verdict=word, confidence=0.8)
    assert decide(constructed_case(age_s=60), growth(RISING), [finding]).verdict == word


def test_a_straight_line_that_explains_an_old_and_large_process_is_a_leak() -> None:
    hours = 10.0
    size = int(60 * MIB * 60 * hours * 1.1)
    assert size > GIB
    assert decide(constructed_case(age_s=hours * 3600, size=size), growth(RISING), [FINDING]).verdict == "leak"


def test_the_same_line_in_a_young_process_is_not() -> None:
    size = int(60 * MIB * 60 * 1.1)
    assert decide(constructed_case(age_s=3600, size=size), growth(RISING), [FINDING]).verdict == "growing"


def test_nor_in_an_old_process_whose_size_came_otherwise() -> None:
    assert decide(constructed_case(age_s=36000, size=400 * GIB), growth(RISING), [FINDING]).verdict == "growing"


def test_nothing_measured_is_insufficient() -> None:
    assert decide(constructed_case(age_s=60), None, []).verdict == "insufficient-data"


def test_flat_is_steady() -> None:
    assert decide(constructed_case(age_s=60), growth(FLAT), []).verdict == "steady"


def test_what_a_trace_of_long_ago_saw_is_a_leak_only_while_the_line_goes_on() -> None:
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
    return judge(times, [100 * MIB + t * MIB + (t % 2.0) * 50 * MIB for t in times], seed=1)


def test_mappings_that_only_grow_are_told_where_the_whole_swings_too_much_to_show_it() -> None:
    own = replace(FINDING, trend=line(60 * MIB, 15, start=0), share=None)
    assert growth(swinging()).trend.shape != "linear"
    decision = decide(constructed_case(age_s=60), growth(swinging()), [own])
    assert decision.verdict == "growing"
    assert [item.kind for item in decision.findings[0].evidence] == ["hidden"]


def test_a_full_cache_that_turns_its_memory_over_is_steady() -> None:
    """What was mapped since the trace began grows, and as much that was there before goes."""
    own = replace(FINDING, trend=line(600 * MIB, 15, start=0))
    assert decide(constructed_case(age_s=60), growth(FLAT), [own]).verdict == "steady"
    assert decide(constructed_case(age_s=60), growth(swinging()), [own]).verdict != "growing"


def test_a_heap_is_not_hidden_by_its_own_swings() -> None:
    own = replace(FINDING, trend=line(60 * MIB, 15, start=0), culprit=Culprit(library="l", extends=True))
    assert decide(constructed_case(age_s=60), growth(swinging()), [own]).verdict != "growing"
