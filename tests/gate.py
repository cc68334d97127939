"""The gate: with MEMFORENSICS_REQUIRE_ALL=1 (.ci/run sets it) a skipped test fails. Loaded by conftest.py.

Without it a test skips where its machine lacks something. With it every skip fails, wherever it comes from: a marker, a
`pytest.skip` inside a test or a fixture, `importorskip`, a whole module, an empty set of parameters. `NOT_TO_BE_HAD`
lists the reasons that stay skips: what no setup of ours can bring."""

import os
import re
from collections.abc import Generator
from typing import Any, TypeVar

import pytest

REQUIRE_ALL = os.environ.get("MEMFORENSICS_REQUIRE_ALL") == "1"

# The whole reason of a skip (a pattern) -> why no setup of ours can bring it.
NOT_TO_BE_HAD = {
    r"rustc cannot link here": "rustc comes with the machine; where it has no linker of its own, setup brings none",
    r"needs a CPython 3\.12 or later with trampolines": "a build without them is the distributor's choice",
    r"no 32-bit compiler": "gcc-multilib conflicts with the cross compilers that a machine may have",
    r"in a PID namespace: no kernel threads to be seen": "a container hides the host's kernel threads",
    r"\S+ was built without DWARF, or stripped": "a wheel's libraries are as its maker built them",
    r"was built without DWARF": "as above",
}

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def fails(reason: str) -> bool:
    """Whether a skip for that reason is a failure here."""
    return REQUIRE_ALL and not any(re.fullmatch(known, reason) for known in NOT_TO_BE_HAD)


def _judged(report: Report) -> Report:
    """The report; as a failure where it is a skip that must not be. An expected failure is no skip."""
    if report.skipped and not hasattr(report, "wasxfail"):
        where, line, reason = _skip(report.longrepr)
        if fails(reason):
            report.outcome = "failed"
            report.longrepr = f"{where}:{line}: skipped, and MEMFORENSICS_REQUIRE_ALL=1: {reason}"
    return report


def _skip(longrepr: Any) -> tuple[str, int, str]:
    """Path, line and reason."""
    if isinstance(longrepr, tuple):
        path, line, reason = longrepr
        return str(path), int(line), str(reason).removeprefix("Skipped: ")
    return "", 0, str(longrepr)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _judged((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _judged((yield))
