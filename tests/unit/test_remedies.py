"""The catalogue and the matcher, on constructed findings."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from cli import memforensics
from fixtures.constructed import (
    BASE,
    LIBC,
    LIBS,
    LIST_STACK,
    PID,
    UCM,
    UCS,
    case,
    finding_site,
    growing_finding,
    native,
    target,
    ucx_modules,
)

from memforensics.case.model import EnvVar, Finding, HeapState, Layer, Module, Stack
from memforensics.errors import UsageError
from memforensics.remedies.catalogue import PACKAGED, load_catalogue, parse_entry, parse_memunits
from memforensics.remedies.conditions import EnvCondition, VersionCondition
from memforensics.remedies.evidence import MatchContext
from memforensics.remedies.match import match

CATALOGUE = load_catalogue()
UCX_TEXT = (PACKAGED / "ucx-invq.toml").read_text()


def names(finding: Finding) -> list[str]:
    return [f"{r.name} {r.value}" for r in finding.remedies]


def test_the_ucx_leak_has_its_remedies_in_order() -> None:
    found = match(growing_finding(), case(), CATALOGUE)
    assert (found.cause, found.verdict) == ("ucx-invq", "leak")
    assert names(found) == ["UCX >= 1.21.0", "UCX_RCACHE_MAX_UNRELEASED 1024", "UCX_MEM_MMAP_HOOK_MODE none"]
    assert all(remedy.source.startswith("https://github.com/") for remedy in found.remedies)
    assert "bytes" in " ".join(found.remedies[1].caveats)
    assert "ROCm" in " ".join(found.remedies[2].caveats)
    assert any("reloc does not help" in item.text for item in found.evidence)
    assert any(item.kind == "version" and "1.19.0" in item.text for item in found.evidence)
    assert found.against == ("the trace lost events",)


def test_evidence_and_culprit_of_the_finding_are_kept() -> None:
    before = growing_finding()
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
    found = match(replace(growing_finding(), culprit=None), case(modules=ucx_modules(version), hooks=()), CATALOGUE)
    assert found.cause == "ucx-invq"


@pytest.mark.parametrize("version", ["1.16.0", "1.21.0", "1.22.0"])
def test_fixed_version_offers_no_remedy(version: str) -> None:
    found = match(replace(growing_finding(), culprit=None), case(modules=ucx_modules(version), hooks=()), CATALOGUE)
    assert found.cause is None
    assert found.remedies == ()


def test_an_unknown_version_lowers_the_confidence() -> None:
    anonymous = replace(growing_finding(), culprit=None)
    sure = match(anonymous, case(), CATALOGUE)
    unsure = match(anonymous, case(modules=ucx_modules(None), hooks=()), CATALOGUE)
    assert unsure.cause == "ucx-invq"
    assert unsure.confidence < sure.confidence
    assert any("version of UCX could not be read" in text for text in unsure.against)


def bundled_ucx(version: str | None) -> tuple[Module, ...]:
    """A second copy of UCX, in another folder."""
    return tuple(replace(m, path=m.path.replace("/libucx/lib/", "/nixl.libs/"), version=version) for m in ucx_modules())


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize(("on_stack", "other", "cause"), [("1.19.0", "1.21.0", "ucx-invq"), ("1.21.0", "1.19.0", None)])
def test_the_copy_on_the_stacks_counts(on_stack: str, other: str, cause: str | None, is_first: bool) -> None:
    copies = [ucx_modules(on_stack), bundled_ucx(other)]
    modules = tuple(module for copy in (copies if is_first else reversed(copies)) for module in copy)
    found = match(replace(growing_finding(), culprit=None), case(modules=modules, hooks=()), CATALOGUE)
    assert found.cause == cause
    if cause:
        (version,) = [item for item in found.evidence if item.kind == "version"]
        assert re.search(r"UCX 1\.19\.0 is loaded \(.*/libucx/lib/libuc.\.so.* on the stacks", version.text)
        assert re.search(r"another copy is mapped: 1\.21\.0 \(.*/nixl\.libs/libuc.\.so", version.text)
        assert "/libucx/lib/" in version.ref


def test_the_version_of_another_copy_does_not_count() -> None:
    modules = (*ucx_modules(None), *bundled_ucx("1.21.0"))
    found = match(replace(growing_finding(), culprit=None), case(modules=modules, hooks=()), CATALOGUE)
    assert found.cause == "ucx-invq"
    assert any(
        "could not be read of the copy on the stacks; another copy is mapped: 1.21.0" in t for t in found.against
    )


def test_two_versions_without_stacks_are_unknown() -> None:
    condition = VersionCondition(name="libuc[mpst]*.so*", range=">=1.17.0,<1.21.0", product="UCX")
    bare = replace(growing_finding(finding_site(Stack(frames=()))), culprit=None)
    outcome = condition.evaluate(MatchContext(bare, case(modules=(*ucx_modules(), *bundled_ucx("1.21.0")), hooks=())))
    assert outcome.state == "unknown"
    assert re.search(r"1\.19\.0 \(.*/libucx/lib/.*1\.21\.0 \(.*/nixl\.libs/", outcome.text)


CUDA_IPC = f"{LIBS}/ucx/libuct_cuda.so.0.0.0"


def cuda_ipc_finding() -> Finding:
    opened = Stack(frames=(native("mmap", "/usr/lib/libc.so.6"), native("uct_cuda_ipc_map_memhandle", CUDA_IPC)))
    return replace(growing_finding(finding_site(opened, inside=None)), layer="device", culprit=None)


@pytest.mark.parametrize(
    ("version", "offered"),
    [
        ("1.20.1", ["UCX >= 1.21.0"]),
        ("1.21.0", ["UCX_CUDA_IPC_CACHE_MAX_REGIONS 1024"]),
        (None, ["UCX >= 1.21.0", "UCX_CUDA_IPC_CACHE_MAX_REGIONS 1024"]),
    ],
)
def test_only_options_of_the_mapped_version_are_offered(version: str | None, offered: list[str]) -> None:
    modules = (*ucx_modules(version), Module(pid=PID, path=CUDA_IPC, start=0x7F1000000000), *bundled_ucx("1.22.0"))
    found = match(cuda_ipc_finding(), case(modules=modules, hooks=()), CATALOGUE)
    assert (found.cause, names(found)) == ("ucx-cudaipc", offered)
    left_out = [item.text for item in found.evidence if item.kind == "not-offered"]
    assert len(left_out) == 2 - len(offered)
    if version == "1.20.1":
        assert left_out[0].startswith(
            "UCX_CUDA_IPC_CACHE_MAX_REGIONS=1024 is not offered: it needs UCX >=1.21.0, but UCX 1.20.1 is loaded"
        )
    if version is None:
        assert all("could not be read" in remedy.caveats[-1] for remedy in found.remedies)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("1024", 1024),
        (" 64k", 64 << 10),
        ("8MB", 8 << 20),
        ("512G", 512 << 30),
        ("1t", 1 << 40),
        ("7b", 7),
        ("inf", None),
        ("auto", None),
        ("1.5G", None),
        ("-1", None),
        ("64q", None),
        ("64kx", None),
        ("", None),
    ],
)
def test_sizes_are_parsed_as_ucx_parses_them(value: str, size: int | None) -> None:
    assert parse_memunits(value) == size


@pytest.mark.parametrize(
    ("value", "is_in_place"), [("1024", True), ("1G", True), ("1025M", False), ("512G", False), ("inf", False)]
)
def test_only_a_small_finite_value_of_max_unreleased_is_in_place(value: str, is_in_place: bool) -> None:
    variable = EnvVar(name="UCX_RCACHE_MAX_UNRELEASED", value=value, source="live")
    found = match(growing_finding(), case(targets=(target(variable),)), CATALOGUE)
    assert ("UCX_RCACHE_MAX_UNRELEASED 1024" not in names(found)) is is_in_place
    assert any("is already set" in text for text in found.against) is is_in_place


@pytest.mark.parametrize(
    ("value", "is_in_place"), [("none", True), ("NONE", True), ("nonempty", False), ("a none", False)]
)
def test_satisfied_by_matches_the_whole_value(value: str, is_in_place: bool) -> None:
    variable = EnvVar(name="UCX_MEM_MMAP_HOOK_MODE", value=value, source="live")
    found = match(growing_finding(), case(targets=(target(variable),)), CATALOGUE)
    assert ("UCX_MEM_MMAP_HOOK_MODE none" not in names(found)) is is_in_place


def test_a_dropped_remedy_has_its_reason() -> None:
    dropping = parse_entry(UCX_TEXT.replace('effect = "last"', 'effect = "drop"'), "ucx-invq.toml")
    rocm = Module(pid=PID, path="/opt/rocm/lib/libamdhip64.so.6", start=0x7F1000000000)
    found = match(growing_finding(), case(modules=(*ucx_modules(), rocm)), (dropping,))
    assert names(found) == ["UCX >= 1.21.0", "UCX_RCACHE_MAX_UNRELEASED 1024"]
    (left_out,) = [item.text for item in found.evidence if item.kind == "not-offered"]
    assert left_out.startswith("UCX_MEM_MMAP_HOOK_MODE=none is not offered: The process maps ROCm libraries")
    assert len(names(match(growing_finding(), case(), (dropping,)))) == 3


def test_the_same_pool_outside_the_hooks_does_not_match() -> None:
    pool = Stack(frames=(native("mmap", "/usr/lib/libc.so.6"), native("ucs_mpool_grow", UCS)))
    assert match(growing_finding(finding_site(pool, inside=None)), case(), CATALOGUE).cause is None


def test_other_growth_with_ucx_loaded_does_not_match() -> None:
    found = match(growing_finding(finding_site(LIST_STACK, inside=None)), case(), CATALOGUE)
    assert (found.cause, found.remedies) == (None, ())
    assert "ucx" not in repr(found.evidence).lower()


def test_growth_without_stacks_in_another_layer_is_not_possible_ucx() -> None:
    """A heap that grows while UCX is loaded: no mapping was made, so no stack excludes it, but its layer does."""
    unseen = replace(growing_finding(), sites=(), culprit=None)
    found = match(replace(unseen, layer="native-heap"), case(), CATALOGUE)
    assert "ucx-invq" not in repr(found.evidence)
    assert any("ucx-invq" in item.text for item in match(unseen, case(), CATALOGUE).evidence)


def test_a_call_passed_through_the_mmap_hook_does_not_match() -> None:
    through = Stack(frames=(native("ucm_mmap", UCM, hook=True), *LIST_STACK.frames))
    assert match(growing_finding(finding_site(through, inside="mmap")), case(), CATALOGUE).cause is None


def test_most_of_the_memory_must_match() -> None:
    list_site = replace(finding_site(LIST_STACK, inside=None), outstanding_bytes=4 * 1024**3)
    assert match(growing_finding(finding_site(), list_site), case(), CATALOGUE).cause is None


@pytest.mark.parametrize("verdict", ["steady", "insufficient-data"])
def test_memory_that_does_not_grow_gets_no_remedy(verdict: str) -> None:
    still = replace(growing_finding(), verdict=verdict)  # type: ignore[arg-type]
    assert match(still, case(), CATALOGUE) == still


@pytest.mark.parametrize("source", ["live", "exec"])
def test_a_remedy_in_place_is_not_offered_again(source: str) -> None:
    variable = EnvVar(name="UCX_RCACHE_MAX_UNRELEASED", value="64k", source=source)  # type: ignore[arg-type]
    found = match(growing_finding(), case(targets=(target(variable),)), CATALOGUE)
    assert names(found) == ["UCX >= 1.21.0", "UCX_MEM_MMAP_HOOK_MODE none"]
    assert any("UCX_RCACHE_MAX_UNRELEASED=64k is already set" in text for text in found.against)
    assert found.confidence < match(growing_finding(), case(), CATALOGUE).confidence


def test_the_current_value_of_the_variable_is_named() -> None:
    variable = EnvVar(name="UCX_RCACHE_MAX_UNRELEASED", value="inf", source="live")
    found = match(growing_finding(), case(targets=(target(variable),)), CATALOGUE)
    assert found.remedies[1].caveats[-1].startswith("current value: UCX_RCACHE_MAX_UNRELEASED=inf (live environment); ")


def test_rocm_moves_the_hook_mode_to_the_end_and_warns() -> None:
    rocm = Module(pid=PID, path="/opt/rocm/lib/libamdhip64.so.6", start=0x7F1000000000)
    found = match(growing_finding(), case(modules=(*ucx_modules(), rocm)), CATALOGUE)
    assert found.remedies[-1].name == "UCX_MEM_MMAP_HOOK_MODE"
    assert any("maps ROCm libraries" in caveat for caveat in found.remedies[-1].caveats)


def test_hashed_names_of_bundled_copies_match() -> None:
    def hashed(path: str) -> str:
        return path.replace(".so.0.0.0", "-97f10f8d.so.0.0.0")

    frames = tuple(
        replace(frame, module=hashed(frame.module)) if frame.module else frame
        for frame in growing_finding().sites[0].stack.frames
    )
    modules = tuple(replace(m, path=hashed(m.path)) for m in ucx_modules())
    found = match(growing_finding(finding_site(Stack(frames=frames))), case(modules=modules), CATALOGUE)
    assert found.cause == "ucx-invq"


def test_retention_needs_a_heap_reading() -> None:
    retained = replace(
        growing_finding(finding_site(LIST_STACK, inside=None)),
        layer="allocator-retention",
        verdict="retention",
        culprit=None,
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
    growing = replace(growing_finding(finding_site(cached, inside=None)), layer="native-heap", culprit=None)
    server = target(role="llama-server", cmdline=("llama-server", "-m", "model.gguf"))
    found = match(growing, case(targets=(server,)), CATALOGUE)
    assert (found.cause, found.verdict) == ("llama-cacheram", "bounded")
    off = target(role="llama-server", cmdline=("llama-server", "--cache-ram", "0"))
    assert match(growing, case(targets=(off,)), CATALOGUE).cause is None


def thread_stacks_grow(*functions: tuple[str, str], layer: Layer = "thread-stack") -> Finding:
    """Growth by one stack of these functions: (function, library), innermost first."""
    stack = Stack(frames=tuple(native(function, library) for function, library in functions))
    return replace(growing_finding(finding_site(stack, inside=None)), layer=layer, culprit=None)


MMAP, START_THREAD = ("mmap", LIBC), ("pthread_create", LIBC)
PARALLEL_REGION = ("GOMP_parallel", "/opt/torch/lib/libgomp-a34b3233.so.1")


@pytest.mark.parametrize("region", [PARALLEL_REGION, ("__kmpc_fork_call", "/opt/lib/libiomp5.so")])
def test_growth_by_openmp_teams(region: tuple[str, str]) -> None:
    found = match(thread_stacks_grow(MMAP, START_THREAD, region), case(), CATALOGUE)
    assert found.cause == "openmp-teams"
    assert names(found) == ["one executor ", "OMP_NUM_THREADS 1"]


@pytest.mark.parametrize(
    "growth",
    [
        pytest.param(thread_stacks_grow(MMAP, START_THREAD, ("work", "/l/libpool.so")), id="threads of the program"),
        pytest.param(thread_stacks_grow(MMAP, PARALLEL_REGION), id="memory that OpenMP maps for no thread"),
        pytest.param(thread_stacks_grow(MMAP, START_THREAD, PARALLEL_REGION, layer="anon-mmap"), id="another layer"),
    ],
)
def test_growth_without_openmp_teams(growth: Finding) -> None:
    assert match(growth, case(), CATALOGUE).cause is None


def test_no_entry_is_a_cause_without_evidence() -> None:
    """No entry becomes a cause on a process of which nothing is known."""
    bare = replace(growing_finding(finding_site(Stack(frames=()), inside=None)), culprit=None)
    empty = case(targets=(), modules=(), hooks=(), hook_audits=(), sites=(), heaps=())
    for layer in ("anon-mmap", "native-heap", "allocator-retention", "python-object", "unattributed"):
        found = match(replace(bare, layer=layer), empty, CATALOGUE)
        assert (found.cause, found.remedies) == (None, ()), layer


def test_a_plausible_entry_is_only_mentioned() -> None:
    plausible = parse_entry(UCX_TEXT.replace('certainty = "V"', 'certainty = "P"'), "ucx-invq.toml")
    found = match(growing_finding(), case(), (plausible,))
    assert (found.cause, found.remedies, found.verdict) == (None, (), "growing")
    assert any(item.kind == "possible-cause" for item in found.evidence)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('id = "ucx-invq"', 'id = "UCX invq"', "lower case"),
        ("strength = 0.7", "strenght = 0.7", "strenght"),
        ("strength = 0.7", "strength = 7", "0 to 1"),
        ('layer = "anon-mmap"', 'layer = "anon"', "anon"),
        ('range = ">=1.17.0,<1.21.0"', 'range = "from 1.17"', "from 1.17"),
        ("libucm*!*", "libucm*", "file!function"),
        ('kind = "version"', 'kind = "versions"', "versions"),
        ('satisfied_by = "(?i)none"', 'satisfied_by = "("', "unterminated"),
        ('satisfied_up_to = "1G"', 'satisfied_up_to = "1.5G"', "1.5G"),
        ("title =", "title", ""),
    ],
)
def test_an_invalid_file_is_named_with_its_error(old: str, new: str, why: str) -> None:
    with pytest.raises(UsageError, match=r"mine\.toml") as raised:
        parse_entry(UCX_TEXT.replace(old, new), "mine.toml")
    assert why in raised.value.why


def test_a_folder_adds_and_replaces_entries(tmp_path: Path) -> None:
    (tmp_path / "ucx-invq.toml").write_text(UCX_TEXT.replace("1024", "2048"))
    (tmp_path / "ours.toml").write_text(UCX_TEXT.replace('id = "ucx-invq"', 'id = "ours"'))
    (tmp_path / "notes.txt").write_text("no entry")
    loaded = {entry.id: entry for entry in load_catalogue(tmp_path)}
    assert set(loaded) == {entry.id for entry in CATALOGUE} | {"ours"}
    assert loaded["ucx-invq"].remedies[1].value == "2048"


def test_a_hostile_folder_is_refused_at_once(tmp_path: Path) -> None:
    entry = tmp_path / "x.toml"
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "secret").write_text("password = 'hunter2'\n")

    def refused(why: str) -> str:
        with pytest.raises(UsageError, match=why) as caught:
            load_catalogue(tmp_path)
        entry.rmdir() if entry.is_dir() else entry.unlink()
        return str(caught.value)

    os.mkfifo(entry)
    refused("not a regular file")
    for link, why in (
        ("fifo", "not a regular"),
        ("/dev/zero", "not a regular"),
        ("x.toml", "Too many"),
        ("no", "No such"),
    ):
        entry.symlink_to(link)
        refused(why)
    entry.symlink_to("secret")
    assert "hunter2" not in refused("not a catalogue entry")
    entry.mkdir()
    refused("not a regular file")
    entry.touch()
    os.truncate(entry, 1 << 30)
    refused("larger than 64 KiB")
    for text in (
        "a = " + "[\n" * 30_000,
        "a = " + "{a=" * 1300,
        "a." * 2000 + "a = 1",
        "a." * 30_000 + "a = 1",
        '"\x1b[2J" = 1',
        "\0",
        "\x1b[2J",
    ):
        entry.write_text(text)
        assert len(refused("not a catalogue entry")) < 1000
    entry.write_bytes(b"a = '\xff'")
    refused("utf-8")
    for number in range(1001):
        (tmp_path / f"e{number}.toml").touch()
    with pytest.raises(UsageError, match=r"1001 \.toml files"):
        load_catalogue(tmp_path)


def test_escape_characters_of_an_entry_are_shown_as_text(tmp_path: Path) -> None:
    hostile = UCX_TEXT.replace('id = "ucx-invq"', 'id = "x"').replace('title = "', 'title = "\\u001b[2J\\u202e')
    (tmp_path / "x.toml").write_text(hostile)
    for words in (["list"], ["show", "x"]):
        done = memforensics("remedies", *words, "--folder", tmp_path)
        assert done.returncode == 0, done.stderr
        assert "\\x1b[2J" in done.stdout
        assert "\x1b" not in done.stdout


def test_an_id_is_the_name_of_its_file(tmp_path: Path) -> None:
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
    split = growing_finding(finding_site(only_ucm), finding_site(only_ucs))
    assert match(split, case(), CATALOGUE).cause is None


def conflicts(finding: Finding) -> list[str]:
    return [item.ref for item in finding.evidence if item.kind == "conflict"]


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_conflicting_settings_are_mentioned_with_the_cause(name: str) -> None:
    nixl = Module(pid=PID, path="/srv/nixl/libnixl.so", start=0x7F1000000000)
    modules = (*ucx_modules(), nixl)
    variable = EnvVar(name=name, value="max_split_size_mb:64,expandable_segments:True", source="live")
    found = match(growing_finding(), case(modules=modules, targets=(target(variable),)), CATALOGUE)
    assert found.cause == "ucx-invq"
    assert conflicts(found) == ["remedies/nixl-expandable"]
    off = EnvVar(name=name, value="expandable_segments:False", source="live")
    assert conflicts(match(growing_finding(), case(modules=modules, targets=(target(off),)), CATALOGUE)) == []


def test_a_variable_missing_at_exec_is_unknown() -> None:
    """The program may have set it later: only the live environment can say no."""
    condition = EnvCondition(name="UCX_TLS", value=".*")
    other = EnvVar(name="UCX_LOG_LEVEL", value="info", source="exec")
    seen = [
        condition.evaluate(MatchContext(growing_finding(), case(targets=(target(*variables),)))).state
        for variables in ((), (other,), (replace(other, source="live"),))
    ]
    assert seen == ["unknown", "unknown", "unmet"]


def test_arenas_alone_do_not_make_heap_growth_retention() -> None:
    heap = HeapState(
        pid=PID, t_ns=BASE, allocator="glibc", retained_bytes=600, system_bytes=1000, in_use_bytes=400, arenas=28
    )
    growing = replace(growing_finding(finding_site(LIST_STACK, inside=None)), layer="native-heap", culprit=None)
    found = match(growing, case(heaps=(heap,)), CATALOGUE)
    assert (found.cause, found.verdict) == (None, "growing")


def test_a_limit_of_one_mebibyte_is_a_limit() -> None:
    cached = Stack(frames=(native("server_prompt_cache::alloc()", "/opt/llama/llama-server"),))
    growing = replace(growing_finding(finding_site(cached, inside=None)), layer="native-heap", culprit=None)
    for value, cause in (("1", "llama-cacheram"), ("0", None), ("-1", None), ("10", "llama-cacheram")):
        server = target(role="llama-server", cmdline=("llama-server", "--cache-ram", value))
        assert match(growing, case(targets=(server,)), CATALOGUE).cause == cause, value


def test_losses_of_the_trace_lower_the_confidence() -> None:
    lossless = match(growing_finding(), case(losses=()), CATALOGUE)
    assert lossless.against == ()
    assert lossless.confidence > match(growing_finding(), case(), CATALOGUE).confidence
