"""Runs of pages are shared out to mappings by sums, not one by one."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memforensics.probes.resident import _spans, _within


@st.composite
def ranges(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Ascending and apart; some touch."""
    out, at = [], 0
    for gap, size in draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), max_size=20)):
        out.append((at + gap, at + gap + size))
        at += gap + size
    return out


def columns(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(pairs, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


@given(ranges(), ranges())
def test_each_mapping_gets_what_lies_in_it(runs: list[tuple[int, int]], mappings: list[tuple[int, int]]) -> None:
    expected = [sum(max(0, min(b, d) - max(a, c)) for c, d in runs) for a, b in mappings]
    assert _within(*columns(runs), *columns(mappings)).tolist() == expected


@given(ranges(), st.integers(0, 3), st.data())
def test_spans_take_each_mapping_once_with_its_like(
    mappings: list[tuple[int, int]], gap: int, data: st.DataObject
) -> None:
    kinds = np.array([data.draw(st.integers(0, 2)) for _ in mappings], int)
    spans = list(_spans(*columns(mappings), kinds, gap))
    taken = [place for first, last in spans for place in range(first, last)]
    assert taken == [place for place, kind in enumerate(kinds) if kind], "each once, in order, but those of no memory"
    for first, last in spans:
        assert len(set(kinds[first:last])) == 1
        assert all(mappings[i + 1][0] - mappings[i][1] <= gap for i in range(first, last - 1))
