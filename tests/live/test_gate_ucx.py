"""prove and ci on the real UCX: the setting that works, and a gate that fails on the leak."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli import memforensics
from defusedxml.ElementTree import parse

pytestmark = [pytest.mark.live, pytest.mark.needs_bpf, pytest.mark.needs_ucx]

Example = Callable[..., list[str | Path]]
SETTINGS = ["UCX_RCACHE_MAX_UNRELEASED=1024", "UCX_MEM_MMAP_HOOK_MODE=none", "UCX_MEM_MMAP_HOOK_MODE=reloc"]


def test_prove_names_the_setting_that_works(ucx_example: Example) -> None:
    variants = [word for setting in SETTINGS for word in ("--env", setting)]
    command = ucx_example("1.19.0", "--rate", "150")
    done = memforensics("prove", *variants, "--duration", "14s", "--rounds", "1", "--json", "--", *command, timeout=240)
    assert done.returncode == 0, done.stderr
    found = {variant["name"]: variant for variant in json.loads(done.stdout)["variants"]}
    assert {name: variant["effect"] for name, variant in found.items()} == {
        "plain": "baseline",
        "UCX_RCACHE_MAX_UNRELEASED=1024": "works",
        "UCX_MEM_MMAP_HOOK_MODE=none": "works",
        "UCX_MEM_MMAP_HOOK_MODE=reloc": "none",
    }
    plain = found["plain"]["growth"]["bytes_per_minute"]
    assert plain["low"] > 0
    assert 0.7 < plain["estimate"] / (150 * 64 * 144 * 60) < 1.2
    assert found["UCX_MEM_MMAP_HOOK_MODE=none"]["growth"]["bytes_per_minute"]["high"] < 0.1 * plain["estimate"]


@pytest.mark.parametrize(("version", "verdict", "code"), [("1.19.0", "leak", 1), ("1.21.0", "steady", 0)])
def test_gate_fails_on_the_leak_and_passes_the_fixed_version(
    ucx_example: Example, tmp_path: Path, version: str, verdict: str, code: int
) -> None:
    junit, page = tmp_path / "gate.xml", tmp_path / "gate.md"
    done = memforensics(
        "ci", "--duration", "20s", "--junit", junit, "--report", page, "--record", tmp_path / "gate.case", "--json",
        "--", *ucx_example(version, "--rate", "150"),
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    scenario = json.loads(done.stdout)["scenarios"][0]
    assert (scenario["verdict"], scenario["passed"]) == (verdict, code == 0)
    suite = parse(junit).getroot()
    assert len(list(suite.iter("failure"))) == code
    assert ("UCX_RCACHE_MAX_UNRELEASED" in page.read_text()) is (code == 1)
    assert Path(scenario["case"]).exists()
