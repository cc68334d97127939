"""The removals that user space remembers, against a list that is searched from end to end."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from memforensics.probes.ebpf.mmap.ledger import union
from memforensics.probes.ebpf.mmap.pending_unmaps import Overlap, PendingUnmaps, Unmap

GRANULE = 1 << 18
# Addresses at and around the borders of the index, a few granules apart or farther than a wide removal reaches.
addresses = st.builds(
    lambda granule, byte: granule * GRANULE + byte,
    st.sampled_from([1, 2, 3, 4, 63, 64, 65, 66, 67, 130, 200]),
    st.sampled_from([-2, -1, 0, 1, 2]),
)
spans = st.tuples(addresses, st.one_of(st.sampled_from([1, 2, 4096]), addresses)).map(lambda s: (s[0], s[0] + s[1]))
times = st.integers(0, 6)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), spans, times),
        st.tuples(st.just("drop"), spans, times),
        st.tuples(st.just("passed"), st.just((0, 0)), st.just(0)),
    ),
    max_size=25,
)


@dataclass
class Model:
    young: list[Unmap] = field(default_factory=list)
    old: list[Unmap] = field(default_factory=list)

    def overlapping(self, start: int, end: int, since_ns: int) -> list[Unmap]:
        here = [c for c in self.old + self.young if c.start < end and start < c.end and c.t_ns > since_ns]
        return sorted(here, key=lambda unmap: unmap.t_ns)


@given(steps, st.lists(st.tuples(spans, times), min_size=1, max_size=6))
def test_the_index_finds_what_a_search_finds(
    steps: list[tuple[str, tuple[int, int], int]], asked: list[tuple[tuple[int, int], int]]
) -> None:
    cuts, model, made = PendingUnmaps(), Model(), []
    for what, (start, end), number in steps:
        if what == "add":
            unmap = Unmap(1, number, start, end)
            made.append(unmap)
            cuts.add(unmap)
            model.young.append(unmap)
        elif what == "drop" and made:
            unmap = made[number % len(made)]
            cuts.drop(unmap)  # one that is dropped, or was forgotten, may be dropped again
            model.young = [each for each in model.young if each is not unmap]
            model.old = [each for each in model.old if each is not unmap]
        elif what == "passed":
            cuts.passed()
            model.old, model.young = model.young, []
        assert len(cuts) == len(model.young)
        assert bool(cuts) == bool(model.young)
        assert cuts.spans() == union([(unmap.start, unmap.end) for unmap in model.old + model.young])
        for (first, last), since_ns in asked:
            found = cuts.overlapping(first, last, since_ns)
            assert {id(unmap) for unmap in found} == {id(unmap) for unmap in model.overlapping(first, last, since_ns)}
            assert [unmap.t_ns for unmap in found] == sorted(unmap.t_ns for unmap in found)


def test_removals_that_only_touch_a_range_are_not_found() -> None:
    """At a border of the index, too: the last byte of a range may be the first of a part of it."""
    cuts = PendingUnmaps()
    before, first, last, after = (
        Unmap(1, 5, GRANULE - 9, GRANULE - 1),
        Unmap(1, 6, GRANULE - 1, GRANULE),
        Unmap(1, 7, 2 * GRANULE, 2 * GRANULE + 1),
        Unmap(1, 8, 2 * GRANULE + 1, 2 * GRANULE + 9),
    )
    for unmap in (after, last, first, before):
        cuts.add(unmap)
    assert cuts.overlapping(GRANULE - 1, 2 * GRANULE + 1, since_ns=0) == [first, last]
    assert cuts.overlapping(GRANULE - 1, 2 * GRANULE + 1, since_ns=6) == [last]
    assert cuts.overlapping(2 * GRANULE, 2 * GRANULE + 1, since_ns=0) == [last]


small = st.tuples(st.integers(0, 30), st.integers(1, 6)).map(lambda s: (s[0], s[0] + s[1]))


@given(st.lists(small, max_size=6), small)
def test_an_overlap_is_an_address_in_both(spans: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    covered = {address for start, end in spans for address in range(start, end)}
    assert Overlap(union(spans)).any(*asked) == (not covered.isdisjoint(range(*asked)))
