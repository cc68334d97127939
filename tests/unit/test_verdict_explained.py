"""How much of the growth a limited cause has to explain before the whole is called limited."""

from dataclasses import replace

import pytest
from test_verdict import FINDING, RISING, constructed_case, growth

from memforensics.analysis.verdict import EXPLAINED_SHARE, decide
from memforensics.case.model import Verdict


@pytest.mark.parametrize("word", ["bounded", "retention"])
def test_limited_cause_must_explain_most_of_the_growth(word: Verdict) -> None:
    whole = constructed_case(age_s=60), growth(RISING)
    for share, verdict in ((0.71, word), (0.5, "growing"), (0.1, "growing")):
        limited = replace(FINDING, cause="some-cause", verdict=word, share=share)
        assert decide(*whole, [limited]).verdict == verdict, share
    assert 0.5 < EXPLAINED_SHARE < 1.0


def test_shares_of_limited_causes_are_summed_by_verdict() -> None:
    whole = constructed_case(age_s=60), growth(RISING)
    halves = [replace(FINDING, cause=f"cause-{n}", verdict="bounded", share=0.36) for n in range(2)]
    assert decide(*whole, halves).verdict == "bounded"
    mixed = [halves[0], replace(halves[1], verdict="retention")]
    assert decide(*whole, mixed).verdict == "growing"
