"""Who first touched what a heap grew by. The cases are constructed: figures that a real one would show."""

from dataclasses import replace

from memforensics.analysis.blame import HEAP_REQUEST_ONLY
from memforensics.analysis.first_touch import FIRST_TOUCH_ONLY, with_first_touch
from memforensics.analysis.unexplained_growth import UNEXPLAINED, is_heap_without_stack
from memforensics.case.model import (
    AllocationSite,
    Anchor,
    Case,
    CaseMeta,
    Culprit,
    EvidenceItem,
    Finding,
    Frame,
    Stack,
)
from memforensics.units import MIB

META = CaseMeta(
    memforensics_version="0", command="diagnose", anchor=Anchor(monotonic_ns=0, wall_ns=0), root_pid=7, seed=1
)
UNSEEN = Finding(
    title="t", layer="native-heap", verdict="growing", confidence=0.0, share=1.0, pid=7, against=(HEAP_REQUEST_ONLY,),
    evidence=(EvidenceItem(kind=UNEXPLAINED, text="unseen"), EvidenceItem(kind="next", text="trace-faults")),
)  # fmt: skip


def touched(number: int, function: str, mib: int, *, file_backed: bool = False, pid: int = 7) -> AllocationSite:
    libc = Frame(kind="native", module="/usr/lib/libc.so.6", function="malloc")
    own = Frame(kind="native", module="/srv/libparse.so", function=function)
    return AllocationSite(
        pid=pid, site_id=number, kind="fault", stack=Stack(frames=(libc, own)), outstanding_bytes=mib * MIB,
        outstanding_count=256 * mib, allocated_bytes=mib * MIB, allocated_count=256 * mib, freed_bytes=0,
        freed_count=0, first_ns=0, last_ns=1, file_backed=file_backed,
    )  # fmt: skip


def case_of(*sites: AllocationSite) -> Case:
    return Case(meta=META, sites=sites)


def test_code_that_first_touches_most_pages_is_named() -> None:
    sites = (touched(1, "churn", 10), touched(2, "parse", 15), touched(3, "parse", 25), touched(4, "scan", 900, pid=8))
    finding = with_first_touch(case_of(*sites, touched(5, "load", 900, file_backed=True)), UNSEEN)
    assert finding.culprit == Culprit(
        library="libparse.so", path="/srv/libparse.so", function="parse", extends=True, version=None
    )
    assert [site.outstanding_bytes // MIB for site in finding.sites] == [25, 15]
    assert [item.kind for item in finding.evidence] == [UNEXPLAINED, "touched"]
    assert finding.evidence[-1].ref == "sites/7/3"
    assert finding.title.startswith("C heap grows")
    assert "parse in libparse.so" in finding.title
    assert "80% of the 50.0 MiB" in finding.evidence[-1].text
    assert finding.against == (FIRST_TOUCH_ONLY,)


def test_the_finding_cites_the_fault_sites() -> None:
    site = touched(1, "parse", 3)
    (cited,) = with_first_touch(case_of(site), UNSEEN).sites
    assert (cited.pid, cited.kind, cited.count) == (7, "fault", 3 * 256)
    assert (cited.outstanding_bytes, cited.bytes_per_minute, cited.inside) == (3 * MIB, None, None)
    assert cited.stack == site.stack


def test_half_of_the_touched_bytes_is_enough() -> None:
    half = with_first_touch(case_of(touched(1, "parse", 20), touched(2, "scan", 10), touched(3, "load", 10)), UNSEEN)
    assert half.culprit is not None
    assert half.culprit.function == "parse"
    less = with_first_touch(case_of(touched(1, "parse", 19), touched(2, "scan", 10), touched(3, "load", 10)), UNSEEN)
    assert less.culprit is None


def test_no_code_is_named_if_many_touch_pages() -> None:
    assert with_first_touch(case_of(*(touched(n, f"f{n}", 10) for n in range(3))), UNSEEN) == UNSEEN


def test_a_finding_without_faults_or_with_a_culprit_does_not_change() -> None:
    asked = replace(UNSEEN, culprit=Culprit(library="l", extends=True))
    assert with_first_touch(case_of(), UNSEEN) == UNSEEN
    assert with_first_touch(case_of(touched(1, "parse", 40)), asked) == asked


def test_only_a_heap_without_captured_stacks_needs_a_fault_trace() -> None:
    assert is_heap_without_stack(UNSEEN)
    assert not is_heap_without_stack(replace(UNSEEN, culprit=Culprit(library="l", extends=True)))
    assert not is_heap_without_stack(replace(UNSEEN, layer="anon-mmap"))
    assert not is_heap_without_stack(replace(UNSEEN, layer="jvm-heap"))
    assert not is_heap_without_stack(replace(UNSEEN, evidence=()))


def test_first_touch_does_not_name_a_java_collector() -> None:
    java = replace(UNSEEN, layer="jvm-heap")
    assert with_first_touch(case_of(touched(1, "G1Evacuate", 40)), java) == java
