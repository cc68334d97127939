"""The catalogue and the matcher, on constructed findings."""

from dataclasses import replace
from pathlib import Path

import pytest
from fixtures.constructed import (
    BASE,
    LIST_STACK,
    PID,
    UCM,
    UCS,
    case,
    draft,
    finding_site,
    native,
    target,
    ucx_modules,
)

from memforensics.case.model import EnvVar, Finding, HeapState, Module, Stack
from memforensics.errors import UsageError
from memforensics.remedies.catalogue import PACKAGED, load_catalogue, parse_entry
from memforensics.remedies.conditions import EnvCondition, Scene
from memforensics.remedies.match import match

CATALOGUE = load_catalogue()
UCX_TEXT = (PACKAGED / "ucx-invq.toml").read_text()


def names(finding: Finding) -> list[str]:
    return [f"{r.name} {r.value}" for r in finding.remedies]


def test_the_queue_is_named_with_its_ladder_in_order() -> None:
    found = match(draft(), case(), CATALOGUE)
    assert (found.cause, found.verdict) == ("ucx-invq", "leak")
    assert names(found) == ["UCX >= 1.21.0", "UCX_RCACHE_MAX_UNRELEASED 1024", "UCX_MEM_MMAP_HOOK_MODE none"]
    assert all(remedy.source.startswith("https://github.com/") for remedy in found.remedies)
    assert "bytes" in " ".join(found.remedies[1].caveats)
    assert "ROCm" in " ".join(found.remedies[2].caveats)
    assert any("reloc does not help" in item.text for item in found.evidence)
    assert any(item.kind == "version" and "1.19.0" in item.text for item in found.evidence)
    assert found.against == ("the trace lost events",)


def test_the_draft_is_kept() -> None:
    before = draft()
    found = match(before, case(), CATALOGUE)
    assert found.evidence[: len(before.evidence)] == before.evidence
    assert (found.sites, found.culprit, found.share, found.layer) == (
        before.sites,
        before.culprit,
        before.share,
        before.layer,
    )


@pytest.mark.parametrize("version", ["1.17.0", "1.18.1", "1.20.1"])
def test_affected_versions(version: str) -> None:
    found = match(replace(draft(), culprit=None), case(modules=ucx_modules(version), hooks=()), CATALOGUE)
    assert found.cause == "ucx-invq"


@pytest.mark.parametrize("version", ["1.16.0", "1.21.0", "1.22.0"])
def test_other_versions_are_not_it(version: str) -> None:
    found = match(replace(draft(), culprit=None), case(modules=ucx_modules(version), hooks=()), CATALOGUE)
    assert found.cause is None
    assert found.remedies == ()


def test_an_unknown_version_lowers_the_confidence_and_is_said() -> None:
    anonymous = replace(draft(), culprit=None)
    sure = match(anonymous, case(), CATALOGUE)
    unsure = match(anonymous, case(modules=ucx_modules(None), hooks=()), CATALOGUE)
    assert unsure.cause == "ucx-invq"
    assert unsure.confidence < sure.confidence
    assert any("version of UCX could not be read" in text for text in unsure.against)


def test_two_copies_the_one_on_the_stack_counts() -> None:
    other = tuple(
        replace(m, path=m.path.replace("/libucx/lib/", "/nixl.libs/"), version="1.21.0") for m in ucx_modules()
    )
    assert match(draft(), case(modules=(*other, *ucx_modules())), CATALOGUE).cause == "ucx-invq"


def test_the_same_pool_outside_the_hooks_is_not_it() -> None:
    pool = Stack(frames=(native("mmap", "/usr/lib/libc.so.6"), native("ucs_mpool_grow", UCS)))
    assert match(draft(finding_site(pool, inside=None)), case(), CATALOGUE).cause is None


def test_growth_of_another_program_with_ucx_loaded_is_not_it() -> None:
    found = match(draft(finding_site(LIST_STACK, inside=None)), case(), CATALOGUE)
    assert (found.cause, found.remedies) == (None, ())
    assert "ucx" not in repr(found.evidence).lower()


def test_growth_without_stacks_in_another_layer_is_not_possibly_it() -> None:
    """A heap that grows while UCX is loaded: no mapping was made, so no stack excludes it, but its layer does."""
    unseen = replace(draft(), sites=(), culprit=None)
    found = match(replace(unseen, layer="native-heap"), case(), CATALOGUE)
    assert "ucx-invq" not in repr(found.evidence)
    assert any("ucx-invq" in item.text for item in match(unseen, case(), CATALOGUE).evidence)


def test_a_pass_through_the_mmap_hook_is_not_it() -> None:
    through = Stack(frames=(native("ucm_mmap", UCM, hook=True), *LIST_STACK.frames))
    assert match(draft(finding_site(through, inside="mmap")), case(), CATALOGUE).cause is None


def test_most_of_the_memory_must_come_that_way() -> None:
    list_site = replace(finding_site(LIST_STACK, inside=None), outstanding_bytes=4 * 1024**3)
    assert match(draft(finding_site(), list_site), case(), CATALOGUE).cause is None


@pytest.mark.parametrize("verdict", ["steady", "insufficient-data"])
def test_what_does_not_grow_gets_no_remedy(verdict: str) -> None:
    still = replace(draft(), verdict=verdict)  # type: ignore[arg-type]
    assert match(still, case(), CATALOGUE) == still


@pytest.mark.parametrize("source", ["live", "exec"])
def test_a_remedy_in_place_is_not_offered_again(source: str) -> None:
    variable = EnvVar(name="UCX_RCACHE_MAX_UNRELEASED", value="64k", source=source)  # type: ignore[arg-type]
    found = match(draft(), case(targets=(target(variable),)), CATALOGUE)
    assert names(found) == ["UCX >= 1.21.0", "UCX_MEM_MMAP_HOOK_MODE none"]
    assert any("UCX_RCACHE_MAX_UNRELEASED=64k is set already" in text for text in found.against)
    assert found.confidence < match(draft(), case(), CATALOGUE).confidence


def test_another_value_of_the_variable_is_named() -> None:
    variable = EnvVar(name="UCX_RCACHE_MAX_UNRELEASED", value="inf", source="live")
    found = match(draft(), case(targets=(target(variable),)), CATALOGUE)
    assert "now UCX_RCACHE_MAX_UNRELEASED=inf (live environment)" in found.remedies[1].caveats


def test_rocm_moves_the_hook_mode_to_the_end_and_warns() -> None:
    rocm = Module(pid=PID, path="/opt/rocm/lib/libamdhip64.so.6", start=0x7F1000000000)
    found = match(draft(), case(modules=(*ucx_modules(), rocm)), CATALOGUE)
    assert found.remedies[-1].name == "UCX_MEM_MMAP_HOOK_MODE"
    assert any("ROCm libraries are mapped" in caveat for caveat in found.remedies[-1].caveats)


def test_hashed_names_of_bundled_copies_fit() -> None:
    def hashed(path: str) -> str:
        return path.replace(".so.0.0.0", "-97f10f8d.so.0.0.0")

    frames = tuple(
        replace(frame, module=hashed(frame.module)) if frame.module else frame
        for frame in draft().sites[0].stack.frames
    )
    modules = tuple(replace(m, path=hashed(m.path)) for m in ucx_modules())
    found = match(draft(finding_site(Stack(frames=frames))), case(modules=modules), CATALOGUE)
    assert found.cause == "ucx-invq"


def test_retention_needs_the_heap_to_have_been_read() -> None:
    retained = replace(
        draft(finding_site(LIST_STACK, inside=None)), layer="allocator-retention", verdict="retention", culprit=None
    )
    assert match(retained, case(), CATALOGUE).cause is None
    heap = HeapState(
        pid=PID, t_ns=BASE, allocator="glibc", retained_bytes=900, system_bytes=1000, in_use_bytes=100, arenas=28
    )
    found = match(retained, case(heaps=(heap,)), CATALOGUE)
    assert found.cause == "glibc-arenas"
    assert found.remedies[0].name == "MALLOC_ARENA_MAX"


def test_llama_server_prompt_cache_is_bounded() -> None:
    cached = Stack(
        frames=(
            native("mmap", "/usr/lib/libc.so.6"),
            native("server_prompt_cache::alloc(server_prompt const&, unsigned long)", "/opt/llama/llama-server"),
        )
    )
    growing = replace(draft(finding_site(cached, inside=None)), layer="native-heap", culprit=None)
    server = target(role="llama-server", cmdline=("llama-server", "-m", "model.gguf"))
    found = match(growing, case(targets=(server,)), CATALOGUE)
    assert (found.cause, found.verdict) == ("llama-cacheram", "bounded")
    off = target(role="llama-server", cmdline=("llama-server", "--cache-ram", "0"))
    assert match(growing, case(targets=(off,)), CATALOGUE).cause is None


def test_nothing_is_firm_without_its_evidence() -> None:
    """No entry becomes a cause on a process of which nothing is known."""
    bare = replace(draft(finding_site(Stack(frames=()), inside=None)), culprit=None)
    empty = case(targets=(), modules=(), hooks=(), hook_audits=(), sites=(), heaps=())
    for layer in ("anon-mmap", "native-heap", "allocator-retention", "python-object", "unattributed"):
        found = match(replace(bare, layer=layer), empty, CATALOGUE)  # type: ignore[arg-type]
        assert (found.cause, found.remedies) == (None, ()), layer


def test_a_plausible_entry_is_mentioned_never_firm() -> None:
    plausible = parse_entry(UCX_TEXT.replace('certainty = "V"', 'certainty = "P"'), "ucx-invq.toml")
    found = match(draft(), case(), (plausible,))
    assert (found.cause, found.remedies, found.verdict) == (None, (), "growing")
    assert any(item.kind == "possible-cause" for item in found.evidence)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('id = "ucx-invq"', 'id = "UCX invq"', "lower case"),
        ("strength = 0.7", "strenght = 0.7", "strenght"),
        ("strength = 0.7", "strength = 7", "shares"),
        ('layer = "anon-mmap"', 'layer = "anon"', "anon"),
        ('range = ">=1.17.0,<1.21.0"', 'range = "from 1.17"', "from 1.17"),
        ("libucm*!*", "libucm*", "file!function"),
        ('kind = "version"', 'kind = "versions"', "versions"),
        ('satisfied_by = "(?i)none"', 'satisfied_by = "("', "unterminated"),
        ("title =", "title", ""),
    ],
)
def test_a_bad_file_is_named_with_its_fault(old: str, new: str, why: str) -> None:
    with pytest.raises(UsageError, match=r"mine\.toml") as raised:
        parse_entry(UCX_TEXT.replace(old, new), "mine.toml")
    assert why in raised.value.why


def test_own_folder_adds_and_replaces(tmp_path: Path) -> None:
    (tmp_path / "ucx-invq.toml").write_text(UCX_TEXT.replace("1024", "2048"))
    (tmp_path / "ours.toml").write_text(UCX_TEXT.replace('id = "ucx-invq"', 'id = "ours"'))
    (tmp_path / "notes.txt").write_text("no entry")
    loaded = {entry.id: entry for entry in load_catalogue(tmp_path)}
    assert set(loaded) == {entry.id for entry in CATALOGUE} | {"ours"}
    assert loaded["ucx-invq"].remedies[1].value == "2048"


def test_an_id_is_its_file_s_name(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text(UCX_TEXT)
    with pytest.raises(UsageError, match=r"other\.toml"):
        load_catalogue(tmp_path)
    with pytest.raises(UsageError, match="no folder"):
        load_catalogue(tmp_path / "none")


def test_every_packaged_entry_is_sourced_and_explained() -> None:
    for entry in CATALOGUE:
        assert entry.sources, entry.id
        assert 40 < len(entry.why) < 900, entry.id
        assert all(r.source and r.text.endswith(".") for r in entry.remedies), entry.id


def test_env_remedies_need_a_restart() -> None:
    assert {r.scope for e in CATALOGUE for r in e.remedies if r.kind == "env"} == {"restart"}


def test_the_hooked_path_is_needed_on_the_same_stack() -> None:
    only_ucm = Stack(frames=(native("ucm_munmap", UCM, hook=True),))
    only_ucs = Stack(frames=(native("ucs_mpool_grow", UCS),))
    split = draft(finding_site(only_ucm), finding_site(only_ucs))
    assert match(split, case(), CATALOGUE).cause is None


def conflicts(finding: Finding) -> list[str]:
    return [item.ref for item in finding.evidence if item.kind == "conflict"]


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_settings_that_do_not_go_together_are_mentioned_beside_the_cause(name: str) -> None:
    nixl = Module(pid=PID, path="/srv/nixl/libnixl.so", start=0x7F1000000000)
    modules = (*ucx_modules(), nixl)
    variable = EnvVar(name=name, value="max_split_size_mb:64,expandable_segments:True", source="live")
    found = match(draft(), case(modules=modules, targets=(target(variable),)), CATALOGUE)
    assert found.cause == "ucx-invq"
    assert conflicts(found) == ["remedies/nixl-expandable"]
    off = EnvVar(name=name, value="expandable_segments:False", source="live")
    assert conflicts(match(draft(), case(modules=modules, targets=(target(off),)), CATALOGUE)) == []


def test_a_variable_that_exec_did_not_have_is_unknown_not_unset() -> None:
    """The program may have set it later: only the live environment can say no."""
    condition = EnvCondition(name="UCX_TLS", value=".*")
    other = EnvVar(name="UCX_LOG_LEVEL", value="info", source="exec")
    seen = [
        condition.judge(Scene(draft(), case(targets=(target(*variables),)))).state
        for variables in ((), (other,), (replace(other, source="live"),))
    ]
    assert seen == ["unknown", "unknown", "unmet"]


def test_growth_of_the_heap_is_never_called_retention_by_the_arenas_alone() -> None:
    heap = HeapState(
        pid=PID, t_ns=BASE, allocator="glibc", retained_bytes=600, system_bytes=1000, in_use_bytes=400, arenas=28
    )
    growing = replace(draft(finding_site(LIST_STACK, inside=None)), layer="native-heap", culprit=None)
    found = match(growing, case(heaps=(heap,)), CATALOGUE)
    assert (found.cause, found.verdict) == (None, "growing")


def test_a_limit_of_one_mebibyte_is_a_limit() -> None:
    cached = Stack(frames=(native("server_prompt_cache::alloc()", "/opt/llama/llama-server"),))
    growing = replace(draft(finding_site(cached, inside=None)), layer="native-heap", culprit=None)
    for value, cause in (("1", "llama-cacheram"), ("0", None), ("-1", None), ("10", "llama-cacheram")):
        server = target(role="llama-server", cmdline=("llama-server", "--cache-ram", value))
        assert match(growing, case(targets=(server,)), CATALOGUE).cause == cause, value


def test_losses_of_the_trace_lower_the_confidence() -> None:
    lossless = match(draft(), case(losses=()), CATALOGUE)
    assert lossless.against == ()
    assert lossless.confidence > match(draft(), case(), CATALOGUE).confidence
