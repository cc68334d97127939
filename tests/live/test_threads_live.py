"""Threads of real programs: ended and never joined, ended and cached, joined late, blocked for good, and a pool."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cli import diagnose
from processes import compiled, python, running
from tracing import line_of

pytestmark = [pytest.mark.live, pytest.mark.needs_bpf]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """All at once: each is idle most of the time."""
    folder = tmp_path_factory.mktemp("cases")
    ending = compiled("threads_end.c")
    variants: dict[str, Sequence[str | Path]] = {
        "unjoined": [ending, "unjoined"],
        "detached": [ending, "detached"],
        "batch": [ending, "batch", "100"],
        "blocked": python("threads_block.py"),
        "pool": python("threads_block.py", "--pool", "30"),
    }

    def one(name: str) -> dict[str, Any]:
        with running(variants[name]) as child:
            return diagnose(child.pid, folder)

    with ThreadPoolExecutor(len(variants)) as pool:
        return dict(zip(variants, pool.map(one, variants), strict=True))


def kinds(finding: dict[str, Any]) -> set[str]:
    return {item["kind"] for item in finding["evidence"]}


def test_stacks_of_threads_that_nobody_joins_are_a_leak(reports: dict[str, dict[str, Any]]) -> None:
    report = reports["unjoined"]
    assert report["verdict"] == "leak"
    finding = report["findings"][0]
    assert finding["layer"] == "thread-stack"
    assert "ended-threads" in kinds(finding)
    assert finding["culprit"]["function"] == "start_one"
    assert "ended threads started by start_one in threads_end were never joined" in report["headline"]
    assert next(row for row in report["layers"] if row["layer"] == "thread-stack")["verdict"] == "leak"


@pytest.mark.parametrize("name", ["detached", "batch", "pool"])
def test_healthy_threads_are_no_leak(reports: dict[str, dict[str, Any]], name: str) -> None:
    assert reports[name]["verdict"] != "leak"
    assert not any("ended-threads" in kinds(finding) for finding in reports[name]["findings"])


def test_threads_that_do_not_end_are_named(reports: dict[str, dict[str, Any]]) -> None:
    report = reports["blocked"]
    assert report["verdict"] == "growing"
    finding = report["findings"][0]
    assert finding["layer"] == "thread-stack"
    assert "threads" in kinds(finding)
    line = line_of("threads_block.py", "start")
    assert finding["title"].endswith(f"threads started by request (threads_block.py:{line}) have not ended")
    assert finding["share"] > 0.5
