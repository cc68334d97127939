"""What each condition of the catalogue answers: met, unmet or unknown, and what it says it saw."""

from dataclasses import replace
from typing import Any

import pytest
from fixtures.constructed import (
    BASE,
    LIBC,
    LIST_STACK,
    PID,
    UCM,
    UCS,
    case,
    finding_site,
    growing_finding,
    native,
    python,
    snapshot,
    target,
    ucx_hook,
    ucx_modules,
)

from memforensics.case.model import Case, Culprit, EnvVar, Finding, HeapState, HookAudit, Mapping, Module, Stack
from memforensics.remedies.conditions import (
    CmdlineCondition,
    Condition,
    EnvCondition,
    HeapCondition,
    HookCondition,
    HugePagesCondition,
    LayerCondition,
    ModuleCondition,
    RoleCondition,
    SiteCondition,
    UnreadCondition,
    VersionCondition,
    evidence_of,
)
from memforensics.remedies.evidence import MatchContext, environment
from memforensics.units import MIB

OTHER = 77  # another process of the case, which says nothing about this one


def judged(condition: Condition, finding: Finding | None = None, seen: Case | None = None) -> tuple[str, str, str]:
    """State, text and reference."""
    outcome = condition.evaluate(MatchContext(finding or growing_finding(), seen or case()))
    return outcome.state, outcome.text, outcome.ref


# --- stacks


def weighing(mib: int, stack: Stack = LIST_STACK, **more: Any) -> Any:
    return replace(finding_site(stack, inside=None), outstanding_bytes=mib * MIB, **more)


POOL = SiteCondition(frames=("libucs*!ucs_mpool_grow | libucs*!ucs_mpool_get",), share=0.5)


@pytest.mark.parametrize(("mib", "state"), [(49, "unmet"), (50, "met"), (51, "met")])
def test_matching_sites_must_hold_the_share(mib: int, state: str) -> None:
    finding = growing_finding(weighing(mib, finding_site().stack), weighing(100 - mib))
    told = judged(POOL, finding)
    assert told[0] == state
    assert f"{mib}% of the outstanding bytes come through" in told[1]
    if state == "met":
        assert told[1].endswith("through ucs_mpool_grow (libucs.so.0.0.0)")
        assert told[2] == f"sites/{PID}"
    else:
        assert told[1].startswith("only ")


def test_the_largest_matching_site_is_cited() -> None:
    frames = (native("ucs_mpool_get", UCS), *LIST_STACK.frames)
    finding = growing_finding(weighing(10, finding_site().stack), weighing(30, Stack(frames=frames)))
    assert "ucs_mpool_get (libucs.so.0.0.0)" in judged(POOL, finding)[1]


def test_other_kinds_and_empty_sites_are_ignored() -> None:
    fitting = finding_site().stack
    finding = growing_finding(weighing(40, fitting), weighing(60, kind="fault"), weighing(0))
    assert judged(POOL, finding)[0] == "met"
    told = judged(POOL, growing_finding(weighing(60, fitting, kind="fault"), weighing(0, fitting)))
    assert told == ("unknown", "no stacks of mmap or mremap or brk or malloc calls were captured", "")


def test_each_pattern_must_match_a_frame() -> None:
    both = SiteCondition(frames=("libc.so*!mmap", "archive.py!Archive.keep"))
    told = judged(both, growing_finding(weighing(1)))
    assert told[1].endswith("mmap (libc.so.6), Archive.keep (archive.py)")
    assert (
        judged(SiteCondition(frames=("libc.so*!mmap", "archive.py!drop")), growing_finding(weighing(1)))[0] == "unmet"
    )
    assert judged(SiteCondition(frames=("libc.so*!Archive.keep",)), growing_finding(weighing(1)))[0] == "unmet"
    told = judged(SiteCondition(frames=("libx*!f", "liby*!g")), growing_finding(weighing(1)))
    assert told[1] == "only 0% of the outstanding bytes come through libx*!f and liby*!g"


def test_the_outermost_matching_frame_is_named() -> None:
    nested = Stack(frames=(native("ucs_mpool_get", UCS), python("f", "/a.py", 1), native("ucs_mpool_grow", UCS)))
    assert judged(POOL, growing_finding(weighing(1, nested)))[1].endswith("through ucs_mpool_grow (libucs.so.0.0.0)")
    bare = Stack(frames=(native(None, ""),))
    assert judged(SiteCondition(frames=("*!*",)), growing_finding(weighing(1, bare)))[1].endswith("through ? (?)")


def test_a_call_inside_another_function_does_not_match() -> None:
    inside = SiteCondition(frames=("libucs*!*",), inside=("munmap", "free"))
    told = judged(inside)
    assert told[0] == "met"
    assert told[1].endswith(", inside munmap")
    assert judged(inside, growing_finding(finding_site(inside="mmap")))[0] == "unmet"
    assert judged(inside, growing_finding(finding_site(inside=None)))[0] == "unmet"
    assert "inside" not in judged(POOL)[1]


# --- hooks, modules, versions

HOOKED = HookCondition(functions=("munmap", "free"), owner="libucm*")


def test_a_hook_of_that_function_by_that_library() -> None:
    assert judged(HOOKED) == ("met", "munmap is hooked (inline) by libucm.so.0.0.0", f"hooks/{PID}/munmap")
    assert judged(HookCondition(functions=("munmap",), owner="libother*"))[0] == "unmet"


def test_without_an_audit_of_this_process_hooks_are_unknown() -> None:
    only_mmap = case(hooks=(ucx_hook("mmap"),))
    assert judged(HOOKED, seen=only_mmap) == ("unmet", "no hook of munmap or free by libucm* was found", "")
    elsewhere = tuple(replace(audit, pid=OTHER) for audit in only_mmap.hook_audits)
    assert isinstance(elsewhere[0], HookAudit)
    assert judged(HOOKED, seen=replace(only_mmap, hook_audits=elsewhere))[0] == "unknown"
    of_another = case(hooks=(replace(ucx_hook(), pid=OTHER),), hook_audits=())
    assert judged(HOOKED, seen=of_another)[0] == "unknown"


def test_a_hook_without_a_known_owner_does_not_match() -> None:
    nobody = case(hooks=(replace(ucx_hook(), owner_path=None),))
    assert judged(HOOKED, seen=nobody)[0] == "unmet"


def test_a_module_is_mapped_or_seen_on_a_stack() -> None:
    pattern = ModuleCondition(name="libfoo* | libucs*")
    assert judged(pattern) == ("met", "libucs.so.0.0.0 is mapped", f"modules/{PID}/{UCS}")
    assert judged(pattern, seen=case(modules=())) == ("met", "libucs.so.0.0.0 is mapped", "")
    elsewhere = growing_finding(finding_site(LIST_STACK))
    of_another = tuple(replace(module, pid=OTHER) for module in ucx_modules())
    assert judged(pattern, elsewhere, case(modules=of_another)) == ("unknown", "no libfoo* | libucs* is mapped", "")
    others = (Module(pid=PID, path=LIBC, start=1),)
    assert judged(pattern, elsewhere, case(modules=others))[0] == "unmet"
    assert judged(pattern, elsewhere, case(modules=(*of_another, *others)))[0] == "unmet"


UCX = VersionCondition(name="libuc[ms].so*", range=">=1.17.0,<1.21.0", product="UCX")


def test_a_version_says_where_and_how_it_was_read() -> None:
    told = judged(UCX, replace(growing_finding(), culprit=None))
    text = "UCX 1.19.0 is loaded (libucm.so.0.0.0, by ucp_get_version_string)"
    assert told == ("met", text, f"modules/{PID}/{UCM}")


def test_the_culprit_and_a_hooks_owner_have_versions_too() -> None:
    unread = case(modules=ucx_modules(None), hooks=())
    told = judged(UCX, growing_finding(), unread)
    assert told == ("met", "UCX 1.19.0 is loaded (libucs.so.0.0.0)", f"modules/{PID}/{UCS}")
    nobody = replace(growing_finding(), culprit=None)
    told = judged(UCX, nobody, case(modules=(), hooks=(replace(ucx_hook(), owner_version_how="symbol"),)))
    assert told == ("met", "UCX 1.19.0 is loaded (libucm.so.0.0.0, by symbol)", f"modules/{PID}/{UCM}")
    other = replace(
        growing_finding(), culprit=Culprit(library="libz.so.1", path="/usr/lib/libz.so.1", version="1.18.0")
    )
    assert judged(UCX, other, unread)[0] == "unknown"


def test_versions_of_other_processes_are_ignored() -> None:
    of_another = tuple(replace(module, pid=OTHER) for module in ucx_modules())
    told = judged(UCX, replace(growing_finding(), culprit=None), case(modules=of_another, hooks=()))
    assert told == ("unknown", "the version of UCX could not be read", "")


def test_an_invalid_version_is_unknown() -> None:
    told = judged(UCX, replace(growing_finding(), culprit=None), case(modules=ucx_modules("master"), hooks=()))
    assert told == ("unknown", "the version of UCX is 'master', which is not a version number", "")
    before_release = judged(
        UCX, replace(growing_finding(), culprit=None), case(modules=ucx_modules("1.20.0rc1"), hooks=())
    )
    assert before_release[0] == "met"


# --- the environment and the command line


def with_env(*variables: EnvVar) -> Case:
    return case(targets=(target(*variables),))


LAZY = EnvCondition(name="CUDA_MODULE_LOADING | CML", value="LAZY|lazy")


def test_a_variable_by_either_name() -> None:
    for name in ("CUDA_MODULE_LOADING", "CML"):
        told = judged(LAZY, seen=with_env(EnvVar(name=name, value="lazy")))
        assert told == ("met", f"{name}=lazy (environment at exec)", "")
        told = judged(LAZY, seen=with_env(EnvVar(name=name, value="lazy or not", source="live")))
        assert told == ("unmet", f"{name}=lazy or not (live environment)", "")


def test_only_the_live_environment_shows_a_missing_variable() -> None:
    text = "CUDA_MODULE_LOADING | CML is not in the environment that was read"
    assert judged(LAZY, seen=with_env(EnvVar(name="A", value="1"))) == ("unknown", text, "")
    assert judged(LAZY, seen=with_env(EnvVar(name="A", value="1", source="live"))) == ("unmet", text, "")
    assert judged(LAZY, seen=case(targets=())) == ("unknown", text, "")


def test_the_live_environment_has_priority() -> None:
    both = target(EnvVar(name="A", value="old"), EnvVar(name="A", value="new", source="live"))
    assert environment(both, "A") == ("new", "live environment")
    assert environment(both, "B") == (None, "")
    assert environment(None, "A") == (None, "")


def test_a_role() -> None:
    engine = case(targets=(target(role="vLLM engine"),))
    assert judged(RoleCondition(role="vLLM engine"), seen=engine) == ("met", "the process is vLLM engine", "")
    assert judged(RoleCondition(role="llama-server"), seen=engine)[0] == "unmet"
    assert judged(RoleCondition(role="llama-server"))[:2] == ("unmet", "the role of the process is not known")
    assert judged(RoleCondition(role="llama-server"), seen=case(targets=()))[0] == "unmet"


def test_words_of_the_command_line() -> None:
    port = r"(^| )--port 80\d\d( |$)"
    assert judged(CmdlineCondition(pattern=port, says="has a port")) == ("met", "has a port", "")
    assert judged(CmdlineCondition(pattern=port, says="has none", absent=True)) == ("unmet", "has none", "")
    assert judged(CmdlineCondition(pattern="--host", says="has a host")) == ("unmet", "has a host", "")
    assert judged(CmdlineCondition(pattern="--host", says="has none", absent=True)) == ("met", "has none", "")
    for seen in (case(targets=()), case(targets=(target(cmdline=()),))):
        told = judged(CmdlineCondition(pattern="--host", says="has none", absent=True), seen=seen)
        assert told == ("unknown", "the command line could not be read", "")


def test_a_layer() -> None:
    assert judged(LayerCondition(layers=("shmem", "anon-mmap"))) == ("met", "the growth is in the layer anon-mmap", "")
    assert judged(LayerCondition(layers=("shmem",)))[0] == "unmet"


def test_a_fact_that_cannot_be_read_is_unknown() -> None:
    assert judged(UnreadCondition(what="the GPU")) == ("unknown", "not read: the GPU", "")


# --- heaps and huge pages


def heap(t_ns: int = BASE, retained: int | None = 60, system: int | None = 100, **more: Any) -> HeapState:
    return HeapState(
        pid=PID, t_ns=t_ns, **{"allocator": "glibc", "retained_bytes": retained, "system_bytes": system, **more}
    )


RETAINS = HeapCondition(allocator="glibc", retained_share=0.5)
ARENAS = HeapCondition(allocator="glibc", retained_share=0.5, arenas=8)


def test_the_last_heap_reading_counts() -> None:
    two = case(heaps=(heap(BASE + 5, retained=50), heap(BASE, retained=10)))
    text = "glibc keeps 50% of its memory free and resident"
    assert judged(RETAINS, seen=two) == ("met", text, f"heaps/{PID}/{BASE + 5}")
    assert judged(RETAINS, seen=case(heaps=(heap(retained=49),)))[0] == "unmet"


def test_retention_needs_share_and_arenas() -> None:
    for arenas, retained, state in ((8, 50, "met"), (7, 50, "unmet"), (8, 49, "unmet")):
        told = judged(ARENAS, seen=case(heaps=(heap(retained=retained, arenas=arenas),)))
        text = f"glibc keeps {retained}% of its memory free and resident, in {arenas} arenas"
        assert told[:2] == (state, text)


def test_an_unread_or_partly_read_heap_is_unknown() -> None:
    for heaps in ((), (heap(allocator="jemalloc"),), (replace(heap(), pid=OTHER),)):
        assert judged(RETAINS, seen=case(heaps=heaps)) == ("unknown", "the glibc heap was not read", "")
    for part in (heap(retained=None, arenas=9), heap(system=0, arenas=9), heap(system=None, arenas=9), heap()):
        told = judged(ARENAS, seen=case(heaps=(part,)))
        assert told == ("unknown", "the glibc heap was read only in part", "")
    assert judged(RETAINS, seen=case(heaps=(heap(),)))[0] == "met", "arenas were not asked for"


def pages(huge: int | None, rss: int | None, size: int = 100, *, path: str = "", start: int = 0) -> Mapping:
    return Mapping(
        start=start, end=start + size, perms="rw-p", offset=0, device="00:00", inode=0, path=path,
        rss=rss, anon_huge=huge,
    )  # fmt: skip


def huge_pages(*each: tuple[Mapping, ...], share: float = 0.8) -> tuple[str, str, str]:
    snapshots = tuple(replace(snapshot(BASE + n), mappings=mappings) for n, mappings in enumerate(each))
    return judged(HugePagesCondition(share=share), seen=case(snapshots=snapshots))


def test_huge_pages_that_make_up_the_growth() -> None:
    text = "huge pages make 80% of the growth of resident anonymous memory"
    assert huge_pages((pages(10, 20, 100),), (pages(50, 70, 124),)) == ("met", text, "")
    assert huge_pages((pages(10, 20, 100),), (pages(49, 70, 100),))[0] == "unmet"
    assert huge_pages((pages(10, 20, 100),), (pages(50, 70, 125),))[0] == "unmet", "it was mapped, too"


def test_only_anonymous_mappings_count() -> None:
    before = (pages(1, 2), pages(1, 2, path="[heap]", start=200), pages(1, 2, path="[anon:x]", start=400))
    after = (pages(11, 12), pages(1, 12, path="[heap]", start=200), pages(10, 12, path="[anon:x]", start=400))
    files = (pages(0, 900, path="/a", start=600), pages(None, None, path="/b", start=800))
    text = "huge pages make 63% of the growth of resident anonymous memory"
    assert huge_pages(before, (*after, *files)) == ("unmet", text, "")


def test_huge_pages_between_the_first_and_the_last_reading() -> None:
    unread = (pages(None, 40),)
    assert huge_pages(unread, (pages(10, 20),), (pages(90, 95),), (pages(50, 60),), unread)[0] == "met"
    for readings in ([], [unread], [(pages(10, 20),)], [(pages(10, 20),), unread], [(), ()], [(pages(1, None),)] * 2):
        assert huge_pages(*readings) == ("unknown", "huge pages were not read twice", "")


def test_huge_pages_need_growth() -> None:
    text = "resident anonymous memory did not grow between the readings"
    assert huge_pages((pages(10, 20),), (pages(20, 20),)) == ("unmet", text, "")
    assert huge_pages((pages(10, 20),), (pages(11, 21),))[0] == "met"


def test_huge_pages_of_another_process_are_not_read() -> None:
    of_another = tuple(replace(snapshot(BASE + n), pid=OTHER) for n in range(2))
    assert judged(HugePagesCondition(), seen=case(snapshots=of_another))[0] == "unknown"


# --- evidence


def test_evidence_has_the_words_of_the_entry() -> None:
    condition = RoleCondition(role="vLLM engine")
    outcome = HOOKED.evaluate(MatchContext(growing_finding(), case()))
    plain, said = evidence_of(HOOKED, outcome, None), evidence_of(HOOKED, outcome, "UCX sees munmap")
    assert (plain.kind, plain.text, plain.ref) == ("hook", outcome.text, outcome.ref)
    assert said.text == f"UCX sees munmap: {outcome.text}"
    assert condition.evidence_kind == "role"
