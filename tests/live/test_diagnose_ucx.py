"""diagnose on the real UCX: it finds and explains the leak, and finds nothing in a fixed version."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cli import diagnose, memforensics, python_frames
from processes import running

pytestmark = [pytest.mark.live, pytest.mark.needs_bpf, pytest.mark.needs_ucx]

Command = Sequence[str | Path]
RATE = 80  # requests a second: about 42 MiB a minute
BYTES_PER_MINUTE = RATE * 64 * 144 * 60


@pytest.fixture(scope="module")
def reports(
    ucx_example: Callable[..., list[str | Path]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """All variants, three at a time."""
    folder = tmp_path_factory.mktemp("cases")
    rate = ("--rate", str(RATE))
    variants: dict[str, tuple[Command, dict[str, str]]] = {
        "leak": (ucx_example("1.19.0", *rate), {}),
        "fixed": (ucx_example("1.21.0", *rate), {}),
        "limited": (ucx_example("1.19.0", *rate), {"UCX_RCACHE_MAX_UNRELEASED": "1024"}),
        "unhooked": (ucx_example("1.19.0", *rate), {"UCX_MEM_MMAP_HOOK_MODE": "none"}),
        "got": (ucx_example("1.19.0", *rate), {"UCX_MEM_MMAP_HOOK_MODE": "reloc"}),
        "shell": (["/bin/sh", "-c", '"$0" "$@"; true', *ucx_example("1.19.0", *rate)], {}),
        "worker": (ucx_example("1.19.0", *rate, "--workers", "1"), {}),
    }

    def one(variant: tuple[Command, dict[str, str]]) -> dict[str, Any]:
        command, env = variant
        with running(command, env=env, timeout=60) as child:
            report = diagnose(child.pid, folder)
            os.kill(report["findings"][0]["pid"] if report["findings"] else child.pid, 0)  # it lives
            return report | {"_pid": child.pid}

    with ThreadPoolExecutor(3) as pool:
        return dict(zip(variants, pool.map(one, variants.values()), strict=True))


LEAKING = ["leak", "got", "shell", "worker"]


@pytest.mark.parametrize("variant", LEAKING)
def test_leak_is_found_and_explained(reports: dict[str, dict[str, Any]], variant: str) -> None:
    report = reports[variant]
    assert (report["verdict"], report["exit_code"]) == ("leak", 1)
    finding = report["findings"][0]
    assert finding["cause"] == "ucx-invq"
    assert finding["layer"] == "anon-mmap"
    assert finding["confidence"] > 0.9
    assert finding["share"] > 0.9
    assert finding["culprit"]["library"].startswith("libucs.so")
    assert finding["culprit"]["version"] == "1.19.0"
    assert finding["culprit"]["caller"]["function"] == "Model.stage_tensor"
    assert finding["culprit"]["caller"]["file"].endswith("service.py")
    rate = report["growth"]["bytes_per_minute"]
    assert rate["low"] <= BYTES_PER_MINUTE * 1.1
    assert rate["high"] >= BYTES_PER_MINUTE * 0.8


@pytest.mark.parametrize("variant", LEAKING)
def test_stack_reaches_from_the_application_to_the_system_call(
    reports: dict[str, dict[str, Any]], variant: str
) -> None:
    site = reports[variant]["findings"][0]["sites"][0]
    assert site["inside"] == "munmap"
    names = [frame["function"] for frame in site["stack"]]
    kinds = [frame["kind"] for frame in site["stack"]]
    # in mode reloc libucs's own calls of mmap are not sent through libucm
    way_down = ["mmap"] if variant == "got" else ["syscall", "ucm_orig_mmap_syscall"]
    expected = [*way_down, "ucs_mpool_grow", "ucm_event_dispatch", "ucm_munmap"]
    assert [name for name in names if name in expected] == expected
    assert kinds[names.index("ucm_munmap")] == "hook"
    assert [name for name, _, _ in python_frames(site)][:4] == [
        "Model.stage_tensor", "Model.run_inference", "Server.handle_request", "Server.worker_loop",
    ]  # fmt: skip
    assert names.index("ucm_munmap") < names.index("Model.stage_tensor")


@pytest.mark.parametrize(("variant", "mechanism"), [("leak", "inline"), ("shell", "inline"), ("got", "got")])
def test_hooks_name_library_and_mechanism(reports: dict[str, dict[str, Any]], variant: str, mechanism: str) -> None:
    hooks = {hook["function"]: hook for hook in reports[variant]["hooks"]}
    for function in ("mmap", "munmap"):
        assert hooks[function]["mechanism"] == mechanism
        assert hooks[function]["owner"]["library"].startswith("libucm.so")
        assert hooks[function]["owner"]["version"] == "1.19.0"
        assert hooks[function]["owner"]["build_id"]
    if mechanism == "inline":
        assert "GOT" in hooks["munmap"]["meaning"]


def test_remedies_come_in_the_order_to_try_them(reports: dict[str, dict[str, Any]]) -> None:
    finding = reports["leak"]["findings"][0]
    assert [(r["name"], r["value"]) for r in finding["remedies"]] == [
        ("UCX", ">= 1.21.0"), ("UCX_RCACHE_MAX_UNRELEASED", "1024"), ("UCX_MEM_MMAP_HOOK_MODE", "none"),
    ]  # fmt: skip
    assert all(remedy["source"].startswith("https://") for remedy in finding["remedies"])
    assert any("ROCm" in caveat for caveat in finding["remedies"][2]["caveats"])
    evidence = " ".join(item["text"] for item in finding["evidence"])
    assert "1.17.0 to 1.20.x" in evidence
    assert "heap profiler" in evidence


@pytest.mark.parametrize("variant", ["fixed", "limited", "unhooked"])
def test_fixed_version_offers_no_remedy(reports: dict[str, dict[str, Any]], variant: str) -> None:
    report = reports[variant]
    assert report["verdict"] in ("steady", "bounded"), report["headline"]
    assert report["exit_code"] == 0
    assert [remedy for finding in report["findings"] for remedy in finding["remedies"]] == []


@pytest.mark.parametrize("variant", ["shell", "worker"])
def test_growing_child_is_named(reports: dict[str, dict[str, Any]], variant: str) -> None:
    report = reports[variant]
    pids = [child["pid"] for child in report["target"]["children"]]
    assert report["findings"][0]["pid"] in pids
    assert report["findings"][0]["pid"] != report["_pid"]
    assert str(report["findings"][0]["pid"]) in report["headline"]


def test_traced_mappings_explain_the_growth(reports: dict[str, dict[str, Any]]) -> None:
    coverage = reports["leak"]["observed"]["coverage"][0]["coverage"]
    assert 0.9 < coverage < 1.1


@pytest.mark.parametrize("variant", ["leak", "fixed"])
def test_markdown_of_the_saved_case_names_the_same_cause(reports: dict[str, dict[str, Any]], variant: str) -> None:
    done = memforensics("report", reports[variant]["_case"], "--format", "md")
    assert done.returncode == 0
    assert done.stdout.startswith(f"# {reports[variant]['verdict']}: ")
    assert ("UCX_RCACHE_MAX_UNRELEASED=1024" in done.stdout) is (variant == "leak")
