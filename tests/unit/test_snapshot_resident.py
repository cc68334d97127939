"""Runs of pages are shared out to mappings by sums, not one by one."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memforensics.probes.proc.pagemap_entries import records
from memforensics.probes.proc.resident import _spans, _within
from memforensics.target.pagemap import IS_FILE, PAGE


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
def test_runs_are_summed_by_mapping(runs: list[tuple[int, int]], mappings: list[tuple[int, int]]) -> None:
    expected = [sum(max(0, min(b, d) - max(a, c)) for c, d in runs) for a, b in mappings]
    assert _within(*columns(runs), *columns(mappings)).tolist() == expected


@given(ranges(), st.integers(0, 3), st.data())
def test_spans_hold_each_mapping_once(mappings: list[tuple[int, int]], gap: int, data: st.DataObject) -> None:
    kinds = np.array([data.draw(st.integers(0, 2)) for _ in mappings], int)
    spans = list(_spans(*columns(mappings), kinds, gap))
    taken = [place for first, last in spans for place in range(first, last)]
    assert taken == [place for place, kind in enumerate(kinds) if kind], "each once, in order, but those of no memory"
    for first, last in spans:
        assert len(set(kinds[first:last])) == 1
        assert all(mappings[i + 1][0] - mappings[i][1] <= gap for i in range(first, last - 1))


KINDS = {"absent": 0, "swapped": 1 << 62, "own": 1 << 63 | 1 << 56, "shared": 1 << 63, "file": 1 << 63 | 1 << 61}


@given(st.lists(st.tuples(st.sampled_from([*KINDS, "zero"]), st.integers(20, 1 << 40)), min_size=1, max_size=40))
def test_entries_give_the_records_of_a_scan(pages: list[tuple[str, int]]) -> None:
    """Page numbers 5 to 7 are of zero pages."""
    words = [1 << 63 | 1 << 55 | 5 + number % 3 if kind == "zero" else KINDS[kind] | number for kind, number in pages]
    found = records(np.array(words, "<u8"), 7 * PAGE, lambda: [range(5, 6), range(6, 8)]).reshape(-1, 3).tolist()
    told = [7 + start // PAGE for first, last, _ in found for start in range(first - 7 * PAGE, last - 7 * PAGE, PAGE)]
    assert told == [7 + place for place, (kind, _) in enumerate(pages) if kind in ("own", "shared", "file")]
    for first, last, categories in found:
        kinds = {pages[place][0] for place in range(first // PAGE - 7, last // PAGE - 7)}
        assert kinds == {"file"} if categories & IS_FILE else "file" not in kinds
    assert all(a[1] < b[0] or a[2] != b[2] for a, b in pairwise(found)), "neighbours of one kind are one run"
