"""The kernel lets go of the target's lock between two parts of maps and smaps, and goes on at the address where it was:
what merged meanwhile is told again, whole."""

from hypothesis import given
from hypothesis import strategies as st

from memforensics.case.model import Mapping
from memforensics.probes.proc.snapshots import newest_only


def mapping(start: int, end: int) -> Mapping:
    return Mapping(start=start, end=end, perms="rw-p", offset=0, device="00:00", inode=0, path="")


def test_merged_mapping_replaces_its_parts() -> None:
    a, b, c = mapping(0, 4), mapping(4, 8), mapping(10, 12)
    merged = mapping(0, 9)
    assert newest_only((a, b, merged, c)) == (merged, c)
    assert newest_only((a, mapping(5, 8), mapping(6, 11), mapping(11, 12))) == (a, mapping(6, 11), mapping(11, 12))


def test_ordered_mappings_are_unchanged() -> None:
    whole = (mapping(0, 4), mapping(4, 8), mapping(10, 12))
    assert newest_only(whole) is whole


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 10)), max_size=20))
def test_of_overlapping_mappings_the_last_stays(pieces: list[tuple[int, int]]) -> None:
    told = sorted((mapping(start, start + size) for start, size in pieces), key=lambda m: m.end)
    kept = newest_only(tuple(told))
    edges = [edge for m in kept for edge in (m.start, m.end)]
    assert edges == sorted(edges)
    assert kept[-1:] == tuple(told[-1:])
