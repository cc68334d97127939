"""The gate: with MEMFORENSICS_REQUIRE_ALL=1 (.ci/run sets it) a skipped test fails. conftest.py loads it.

Without the variable a test is skipped if the machine lacks something. With it every skip fails, whatever its origin: a
marker, `pytest.skip` in a test or a fixture, `importorskip`, a whole module, an empty set of parameters.
`ALLOWED_SKIPS` lists the exceptions: what setup.sh cannot install."""

import os
import re
from collections.abc import Generator
from typing import Any, TypeVar

import pytest

REQUIRE_ALL = os.environ.get("MEMFORENSICS_REQUIRE_ALL") == "1"

# The whole reason of a skip (a pattern) -> why setup.sh cannot install it.
ALLOWED_SKIPS = {
    r"rustc cannot link here": "rustc is part of the machine, and setup.sh installs no linker for it",
    r"needs a CPython 3\.12 or later with trampolines": "a build without them is the distributor's choice",
    r"no 32-bit compiler": "gcc-multilib conflicts with the cross compilers that a machine may have",
    r"in a PID namespace: no kernel threads to be seen": "a container does not show the host's kernel threads",
    r"\S+ was built without DWARF, or stripped": "the libraries of a wheel are as published",
    r"was built without DWARF": "as above",
}

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def fails(reason: str) -> bool:
    """Whether a skip with this reason is a failure."""
    return REQUIRE_ALL and not any(re.fullmatch(known, reason) for known in ALLOWED_SKIPS)


def _judged(report: Report) -> Report:
    """The report, as a failure if it is a skip that is not allowed. An expected failure is not a skip."""
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
