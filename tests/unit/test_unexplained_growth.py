"""Growth that no site explains. The cases are constructed: figures that a real one would show, known to the byte."""

from memforensics.analysis.unexplained_growth import with_objects, with_unexplained_growth
from memforensics.case.model import (
    Anchor,
    Case,
    CaseMeta,
    Culprit,
    Finding,
    Growth,
    Layer,
    LayerRow,
    MappingGroup,
    Rate,
    TraceSummary,
    Trend,
)
from memforensics.units import MIB

META = CaseMeta(
    memforensics_version="0", command="diagnose", anchor=Anchor(monotonic_ns=0, wall_ns=0), root_pid=7, seed=1
)
TRACE = TraceSummary(pid=7, engine="bcc", began_ns=0, ended_ns=1, events=1, outstanding_bytes=1)
CASE = Case(meta=META, traces=(TRACE,))
RATE = Rate(estimate=300.0 * MIB, low=290.0 * MIB, high=310.0 * MIB)
GROWTH = Growth(metric="m", trend=Trend(shape="linear", rate=RATE, p=0.0, samples=30, seconds=18.0), rate=RATE)
TRACED = 100 * MIB


def row(layer: Layer, change_mib: int) -> LayerRow:
    return LayerRow(layer=layer, in_rss=True, bytes=200 * MIB, change_bytes=change_mib * MIB)


def heap(share: float) -> Finding:
    return Finding(
        title="native-heap grows, mostly when f in libf.so asks for memory", layer="native-heap", verdict="growing",
        confidence=0.0, share=share, pid=7, culprit=Culprit(library="libf.so", function="f", extends=True), rate=RATE,
    )  # fmt: skip


def test_a_heap_with_few_captured_stacks_names_no_code() -> None:
    """An arena that was reserved before the trace: a quarter of its growth had a system call of its own."""
    rows = (row("native-heap", 100), row("python-object", 1), row("anon-mmap", -30))
    found = with_unexplained_growth(CASE, GROWTH, (), rows, [heap(0.25)], TRACED)
    assert [(f.layer, f.culprit, f.share) for f in found] == [("native-heap", None, 1.0)]
    assert "captured for 25%" in found[0].title
    assert any(item.kind == "residue" for item in found[0].evidence)


def test_code_that_requested_most_of_a_heap_is_named() -> None:
    found = with_unexplained_growth(CASE, GROWTH, (), (row("native-heap", 100),), [heap(0.6)], TRACED)
    assert len(found) == 1
    assert found[0].culprit is not None
    assert found[0].share == 1.0


def test_unexplained_growth_is_in_the_layer_with_most_of_it() -> None:
    rows = (row("native-heap", 45), row("jvm-heap", 50), row("file", 900))
    found = with_unexplained_growth(CASE, GROWTH, (), rows, [heap(0.4)], TRACED)
    assert [(f.layer, f.share) for f in found] == [("native-heap", 0.4), ("jvm-heap", 0.6)]


def test_explained_growth_adds_no_finding() -> None:
    explained = [heap(0.8)]
    assert with_unexplained_growth(CASE, GROWTH, (), (row("native-heap", 100),), explained, TRACED) == explained


def test_a_managed_heap_has_a_command_to_list_its_objects() -> None:
    group = MappingGroup(
        name="Java heap", layer="jvm-heap", before_bytes=0, after_bytes=MIB, count_before=1, count_after=1, what="grew"
    )
    finding = Finding(title="", layer="jvm-heap", verdict="growing", confidence=0.0, share=1.0, pid=7)
    assert "jcmd 7 GC.class_histogram" in with_objects(finding, [group]).evidence[-1].text
    assert with_objects(finding, []) == finding
