"""Sites to findings. The cases here are constructed: figures that a real trace would show, known to the byte."""

from dataclasses import replace

import pytest

from memforensics.analysis.blame import HEAP_REQUEST_ONLY, draft_findings, growth_groups, of_each_process
from memforensics.analysis.site_groups import site_rate
from memforensics.case.model import (
    AllocationSite,
    Anchor,
    Case,
    CaseMeta,
    EvidenceItem,
    Finding,
    Frame,
    Hook,
    Layer,
    Module,
    SitePoint,
    Stack,
    TraceSummary,
)
from memforensics.units import MIB, NS_PER_S

PID = 4242
LIBC = "/usr/lib/libc.so.6"
META = CaseMeta(
    memforensics_version="0", command="diagnose", anchor=Anchor(monotonic_ns=0, wall_ns=0), root_pid=PID, seed=1
)


def native(module: str, function: str) -> Frame:
    return Frame(kind="native", module=module, function=function)


def python(function: str, line: int) -> Frame:
    return Frame(kind="python", file="/srv/app.py", function=function, line=line)


def constructed_site(
    site_id: int, frames: tuple[Frame, ...], bytes_per_second: int, seconds: int = 20
) -> AllocationSite:
    points = tuple(
        SitePoint(t_ns=s * NS_PER_S, outstanding_bytes=s * bytes_per_second, outstanding_count=s)
        for s in range(1, seconds + 1)
    )
    total = seconds * bytes_per_second
    return AllocationSite(
        pid=PID, site_id=site_id, kind="mmap", stack=Stack(frames=frames), outstanding_bytes=total,
        outstanding_count=seconds, allocated_bytes=total, allocated_count=seconds, freed_bytes=0, freed_count=0,
        first_ns=NS_PER_S, last_ns=seconds * NS_PER_S, resident_bytes=total, timeline=points,
    )  # fmt: skip


def constructed_case(*sites: AllocationSite, hooks: tuple[Hook, ...] = ()) -> Case:
    trace = TraceSummary(
        pid=PID, engine="bcc", began_ns=0, ended_ns=20 * NS_PER_S, events=1, outstanding_bytes=1
    )  # fmt: skip
    return Case(meta=META, sites=sites, traces=(trace,), hooks=hooks)


LEAF = (native(LIBC, "mmap"),)


def test_groups_are_ranked_by_outstanding_growth() -> None:
    busy = replace(
        constructed_site(1, (*LEAF, python("busy", 1)), 100_000), allocated_bytes=10**12, freed_bytes=10**12 - 2_000_000
    )
    guilty = constructed_site(2, (*LEAF, python("guilty", 2)), 8 * MIB)
    findings = draft_findings(constructed_case(busy, guilty), growth_bytes=162 * MIB, seconds=20.0)
    assert [f.culprit.function for f in findings if f.culprit] == ["guilty"]
    assert findings[0].rate is not None
    assert abs(findings[0].rate.estimate - 480 * MIB) < 5 * MIB
    assert findings[0].share is not None
    assert 0.9 < findings[0].share <= 1.0


def test_memory_that_is_not_resident_does_not_count() -> None:
    reserved = replace(constructed_site(1, (*LEAF, python("reserve", 1)), 64 * MIB), resident_bytes=0)
    assert draft_findings(constructed_case(reserved), growth_bytes=10 * MIB, seconds=20.0) == []


def of_process(site: AllocationSite, pid: int) -> AllocationSite:
    return replace(site, pid=pid)


def workers(*sites: AllocationSite) -> Case:
    case = constructed_case(*sites)
    return replace(case, traces=tuple(replace(case.traces[0], pid=pid) for pid in sorted({s.pid for s in sites})))


def test_equal_findings_of_several_processes_are_one() -> None:
    kept = (*LEAF, native("/opt/a/libpool.so.1", "pool_grow"), python("serve", 9))
    elsewhere = (*LEAF, native("/opt/b/libpool.so.1", "pool_grow"), python("serve", 11))
    sites = [of_process(constructed_site(1, kept, n * MIB), pid) for n, pid in ((3, 11), (5, 12))]
    sites.append(of_process(constructed_site(1, elsewhere, 1 * MIB), 13))
    (finding,) = draft_findings(workers(*sites), growth_bytes=180 * MIB, seconds=20.0)
    assert finding.members == finding.pids == (12, 11, 13)
    assert finding.pid == 12
    assert finding.share == 1.0
    assert finding.rate is not None
    assert abs(finding.rate.estimate - 9 * 60 * MIB) < 5 * MIB
    assert [site.pid for site in finding.sites] == [12, 11, 13]
    (item,) = (item for item in finding.evidence if item.kind == "members")
    assert item.text.startswith("the same code grows in 3 processes (+540 MiB/min in total): 12, 11, 13")


def test_equal_findings_are_joined_before_small_ones_are_dropped() -> None:
    stack = (*LEAF, python("keep", 3))
    sites = [of_process(constructed_site(1, stack, MIB // 200), pid) for pid in range(1, 31)]
    sites.append(of_process(constructed_site(2, (*LEAF, python("load", 5)), 2 * MIB), 1))
    found = draft_findings(workers(*sites), growth_bytes=43 * MIB, seconds=20.0)
    assert [(f.culprit.function, len(f.pids)) for f in found if f.culprit] == [("load", 1), ("keep", 30)]


def test_findings_of_one_process_or_without_a_culprit_stay_apart() -> None:
    unseen = [of_process(constructed_site(1, LEAF, 2 * MIB), pid) for pid in (1, 2)]
    through = [constructed_site(n, (*LEAF, Frame(kind="python", file="/usr/lib/python3.11/x.py", function=f"via{n}"),
                                    python("keep", 3)), 2 * MIB) for n in (3, 4)]  # fmt: skip
    found = draft_findings(workers(*unseen, *through), growth_bytes=160 * MIB, seconds=20.0)
    assert len(found) == 4
    assert {f.members for f in found} == {()}


def test_evidence_is_added_for_each_process() -> None:
    stack = (*LEAF, python("keep", 3))
    sites = [of_process(constructed_site(1, stack, n * MIB), pid) for n, pid in ((3, 11), (5, 12))]
    (finding,) = draft_findings(workers(*sites), growth_bytes=160 * MIB, seconds=20.0)

    def enriched(one: Finding) -> Finding:
        assert {site.pid for site in one.sites} == {one.pid}
        item = EvidenceItem(kind="lost" if one.pid == 11 else "referenced", text=str(one.pid))
        return replace(one, evidence=(*one.evidence, item))

    more = of_each_process(finding, enriched).evidence[len(finding.evidence) :]
    assert [(item.kind, item.text) for item in more] == [("referenced", "12"), ("lost", "11")]


def test_sites_of_one_culprit_are_one_finding() -> None:
    hook = Hook(pid=PID, function="munmap", mechanism="inline", owner_path="/l/libhook.so", target_function="my_munmap")
    own = (*LEAF, native("/l/libhook.so", "grow"), native("/l/libhook.so", "my_munmap"))
    sites = [constructed_site(n, (*own, python(f"caller{n}", n)), MIB) for n in (1, 2, 3)]
    groups = growth_groups(constructed_case(*sites, hooks=(hook,)))
    assert len(groups) == 1
    assert groups[0].inside == "munmap"
    assert groups[0].growth_bytes == 60 * MIB


def test_the_culprit_has_the_version_of_the_mapped_file() -> None:
    site = constructed_site(1, (*LEAF, native("/l/libpool.so.1", "pool_grow"), python("serve", 9)), 8 * MIB)
    case = replace(
        constructed_case(site),
        modules=(Module(pid=PID, path="/l/libpool.so.1", start=0, version="2.4.1", build_id="ab12"),),
    )
    culprit = draft_findings(case, growth_bytes=160 * MIB, seconds=20.0)[0].culprit
    assert culprit is not None
    assert (culprit.library, culprit.function, culprit.version, culprit.build_id) == (
        "libpool.so.1", "pool_grow", "2.4.1", "ab12",
    )  # fmt: skip
    assert culprit.caller is not None
    assert (culprit.caller.function, culprit.caller.line) == ("serve", 9)


def test_file_mappings_are_not_growth() -> None:
    site = replace(constructed_site(1, (*LEAF, python("load", 1)), 8 * MIB), file_backed=True)
    assert growth_groups(constructed_case(site)) == []


MALLOC = (*LEAF, native(LIBC, "malloc"))


def test_code_that_extends_a_heap_does_not_hold_its_memory() -> None:
    """The heap is one thing: its sites are one finding, and who asked most is named as that and no more."""
    brk = native(LIBC, "brk")
    often = [
        replace(constructed_site(n, (brk, native("/l/libx.so", "parse"), python("serve", n)), 2 * MIB), kind="brk")
        for n in (1, 2)
    ]
    once = replace(constructed_site(3, (brk, native("/l/liby.so", "print")), 3 * MIB), kind="brk")
    finding = draft_findings(constructed_case(once, *often), growth_bytes=140 * MIB, seconds=20.0)
    assert len(finding) == 1
    culprit = finding[0].culprit
    assert culprit is not None
    assert culprit.extends
    assert culprit.function == "parse"
    assert HEAP_REQUEST_ONLY in finding[0].against


@pytest.mark.parametrize(
    ("frames", "block", "extends"),
    [
        ((*MALLOC, native("/l/libx.so", "load")), 1 * MIB, False),  # a block with its own mapping
        ((*MALLOC, native("/l/libx.so", "load")), 64 * MIB, True),  # a further heap of an arena
        ((*LEAF, native("/l/libjemalloc.so.2", "je_extent"), native("/l/libx.so", "load")), 2 * MIB, True),
        ((*LEAF, native("/bin/python3.11", "_PyObject_ArenaMmap"), python("load", 3)), 1 * MIB, True),
        ((*LEAF, native("/l/libx.so", "load")), 64 * MIB, False),  # its own mmap
        ((*MALLOC, native("/l/libstdc++.so.6", "operator new"), native("/l/libx.so", "load")), 1 * MIB, False),
    ],
)
def test_a_block_with_its_own_mapping_does_not_extend_a_heap(
    frames: tuple[Frame, ...], block: int, extends: bool
) -> None:
    site = constructed_site(1, frames, block)
    culprit = growth_groups(constructed_case(site))[0].culprit
    assert culprit is not None
    assert culprit.extends is extends


def grown(**bytes_by_layer: int) -> dict[int, dict[Layer, int]]:
    return {PID: {LAYER_NAMES[name]: size for name, size in bytes_by_layer.items()}}


LAYER_NAMES: dict[str, Layer] = {"anonymous": "anon-mmap", "native": "native-heap", "java": "jvm-heap"}


def test_a_runtime_heap_is_recognized_by_the_owners_of_mappings() -> None:
    sites = [
        constructed_site(n, (native("/srv/app", "runtime.sysMap"), native("/srv/app", name)), 4 * MIB)
        for n, name in ((1, "main.store"), (2, "main.load"), (3, "main.store"))
    ]
    case = constructed_case(*sites)
    found = draft_findings(case, 240 * MIB, 20.0, grown(anonymous=MIB, native=238 * MIB))
    assert [(f.layer, len(f.sites)) for f in found] == [("native-heap", 3)]
    assert found[0].culprit is not None
    assert (found[0].culprit.function, found[0].culprit.extends) == ("main.store", True)


@pytest.mark.parametrize(("anonymous", "native_heap"), [(160, 0), (160, 160), (0, 40)])
def test_memory_stays_in_its_layer_if_no_heap_explains_it(anonymous: int, native_heap: int) -> None:
    site = constructed_site(1, (*LEAF, native("/l/libx.so", "load")), 8 * MIB)
    change = grown(anonymous=anonymous * MIB, native=native_heap * MIB)
    assert [f.layer for f in draft_findings(constructed_case(site), 160 * MIB, 20.0, change)] == ["anon-mmap"]


def test_a_heap_that_other_groups_explain_is_not_the_owner() -> None:
    own = constructed_site(1, (*LEAF, native("/l/libx.so", "load")), 4 * MIB)
    heap = replace(constructed_site(2, (native(LIBC, "brk"), native("/l/liby.so", "parse")), 4 * MIB), kind="brk")
    found = draft_findings(constructed_case(own, heap), 160 * MIB, 20.0, grown(anonymous=0, native=80 * MIB))
    assert sorted(f.layer for f in found) == ["anon-mmap", "native-heap"]


def test_pages_of_the_v8_heap_name_no_function() -> None:
    frames = (*LEAF, native("/usr/bin/node", "v8::base::OS::Allocate(void*)"), native("/usr/bin/node", "node::Run()"))
    site = constructed_site(1, frames, MIB)
    (group,) = growth_groups(constructed_case(site))
    assert group.layer == "native-heap"
    assert group.culprit is not None
    assert (group.culprit.library, group.culprit.function, group.culprit.extends) == ("node", None, True)


def test_a_single_mapping_has_no_rate() -> None:
    assert site_rate(replace(constructed_site(1, LEAF, MIB), outstanding_count=1)) is None
    assert site_rate(replace(constructed_site(1, LEAF, MIB), outstanding_count=1, kind="mremap")) is not None


def test_a_group_is_reduced_to_its_growing_sites() -> None:
    churned = constructed_site(1, (*LEAF, python("buffer", 4), python("batch", 9)), 0)
    points = tuple(replace(p, outstanding_bytes=(p.t_ns // NS_PER_S % 3) * 50 * MIB) for p in churned.timeline)
    churned = replace(churned, timeline=points, outstanding_bytes=100 * MIB, resident_bytes=100 * MIB)
    kept = constructed_site(2, (*LEAF, python("buffer", 4), python("serve", 11)), MIB)
    (finding,) = draft_findings(constructed_case(churned, kept), 0, 20.0)
    assert [site.outstanding_bytes for site in finding.sites] == [20 * MIB]
    assert finding.trend is not None
    assert finding.trend.shape == "linear"
