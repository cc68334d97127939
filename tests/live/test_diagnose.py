"""diagnose on real leaks and on healthy programs, through the command line."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cli import diagnose, memforensics, python_frames
from processes import compiled, python, running

pytestmark = [pytest.mark.live, pytest.mark.needs_bpf]

LEAKER = "diag_keep_mappings.py"


def line_of(word: str) -> int:
    """The line of the leaker that ends with the comment `# LINE word`."""
    text = (Path(__file__).parents[1] / "leakers" / LEAKER).read_text()
    return next(n for n, line in enumerate(text.splitlines(), 1) if line.endswith(f"# LINE {word}"))


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """All variants at once: each is idle most of the time, so that they do not disturb one another."""
    folder = tmp_path_factory.mktemp("cases")
    variants: dict[str, Sequence[str | Path]] = {
        "private": python(LEAKER, "--kind", "private", "--rate", "7", "--size", "262144"),
        "shared": python(LEAKER, "--kind", "shared", "--rate", "7", "--size", "262144"),
        "lru": python(LEAKER, "--hold", "lru", "--rate", "7", "--size", "262144"),
        "healthy": python(LEAKER, "--hold", "nothing", "--rate", "50", "--size", "262144"),
        "child": ["/bin/sh", "-c", '"$0" "$@"; true', *python(LEAKER, "--rate", "7", "--size", "262144")],
        "threads": [compiled("diag_thread_heap.c")],
    }
    longer = {"threads": ("--duration", "30s")}

    def one(name: str) -> dict[str, Any]:
        with running(variants[name]) as child:
            return diagnose(child.pid, folder, *longer.get(name, ())) | {"_pid": child.pid}

    with ThreadPoolExecutor(len(variants)) as pool:
        return dict(zip(variants, pool.map(one, variants), strict=True))


BYTES_PER_MINUTE = 7 * 262144 * 60


@pytest.mark.parametrize("kind", ["private", "shared"])
def test_kept_mappings_name_the_line_of_the_program(reports: dict[str, dict[str, Any]], kind: str) -> None:
    report = reports[kind]
    assert report["verdict"] in ("growing", "leak")
    finding = report["findings"][0]
    assert finding["layer"] == "anon-mmap"
    assert finding["cause"] is None
    assert finding["culprit"]["library"] == LEAKER
    assert finding["culprit"]["caller"]["function"] == "map_buffer"
    assert finding["culprit"]["caller"]["line"] == line_of("map_buffer")
    frames = python_frames(finding["sites"][0])
    assert ("keep_result", LEAKER, line_of("keep_result")) in frames
    assert [name for name, _, _ in frames][:4] == ["map_buffer", "keep_result", "handle_request", "serve"]
    rate = report["growth"]["bytes_per_minute"]
    assert rate["low"] <= BYTES_PER_MINUTE * 1.1
    assert rate["high"] >= BYTES_PER_MINUTE * 0.9
    assert finding["share"] > 0.8
    assert not finding["remedies"]
    assert "ucx" not in report["_text"].lower()


def test_filling_cache_is_not_a_leak(reports: dict[str, dict[str, Any]]) -> None:
    report = reports["lru"]
    assert report["verdict"] == "growing"
    assert report["exit_code"] == 4
    assert ("cache_result", LEAKER, line_of("cache_result")) in python_frames(report["findings"][0]["sites"][0])


def test_healthy_program_has_no_finding(reports: dict[str, dict[str, Any]]) -> None:
    report = reports["healthy"]
    assert report["verdict"] in ("steady", "bounded")
    assert report["exit_code"] == 0
    assert report["findings"] == []


def test_leak_in_a_child_names_the_child(reports: dict[str, dict[str, Any]]) -> None:
    report = reports["child"]
    assert report["verdict"] in ("growing", "leak")
    children = report["target"]["children"]
    assert len(children) == 1
    assert LEAKER in " ".join(children[0]["cmdline"])
    assert report["findings"][0]["pid"] == children[0]["pid"]
    assert report["findings"][0]["culprit"]["caller"]["line"] == line_of("map_buffer")


@pytest.mark.parametrize("kind", ["private", "shared", "lru", "healthy", "child"])
def test_layers_sum_to_the_kernels_figure(reports: dict[str, dict[str, Any]], kind: str) -> None:
    report = reports[kind]
    assert {row["layer"] for row in report["layers"]} >= {"anon-mmap", "native-heap", "file", "unattributed"}
    assert sum(row["bytes"] for row in report["layers"] if row["in_rss"] and row["bytes"] is not None) > 0


@pytest.mark.parametrize("kind", ["private", "healthy", "child"])
def test_report_on_the_case_equals_the_report_of_diagnose(reports: dict[str, dict[str, Any]], kind: str) -> None:
    again = memforensics("report", reports[kind]["_case"], "--format", "json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == {k: v for k, v in reports[kind].items() if not k.startswith("_")}


def test_heap_growing_inside_its_arena_names_the_first_touch(reports: dict[str, dict[str, Any]]) -> None:
    """No mapping is made: glibc takes what it reserved before. So page faults are traced in the second half."""
    report = reports["threads"]
    assert report["verdict"] == "growing"
    assert len(report["findings"]) == 1
    finding = report["findings"][0]
    assert finding["layer"] == "native-heap"
    assert finding["culprit"]["library"] == "diag_thread_heap"
    assert finding["culprit"]["function"].startswith("keep_block")
    assert finding["culprit"]["extends"]
    assert {site["kind"] for site in finding["sites"]} == {"fault"}
    assert "keeper" in [frame["function"] for frame in finding["sites"][0]["stack"]]
    assert not finding["remedies"]
