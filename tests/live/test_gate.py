"""The gate of .ci/run: with MEMFORENSICS_REQUIRE_ALL=1 a skip fails, unless setup.sh cannot install what is missing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from junitparser import JUnitXml, TestSuite
from processes import TESTS, interpreters

from memforensics.runtimes.cpython.offsets import known_versions

pytestmark = pytest.mark.live

SKIPS = {
    "inside a test": "def test_it(): pytest.skip('needs zram')",
    "inside a fixture": "@pytest.fixture\ndef lack(): pytest.skip('needs zram')\ndef test_it(lack): pass",
    "by a mark": "@pytest.mark.skipif(True, reason='needs zram')\ndef test_it(): pass",
    "by an import": "def test_it(): pytest.importorskip('no_such_module')",
    "by a whole module": "pytest.skip('needs zram', allow_module_level=True)",
    "by an empty set of parameters": "@pytest.mark.parametrize('one', [])\ndef test_it(one): pass",
    "by an empty fixture": "@pytest.fixture(params=[])\ndef one(request): pass\ndef test_it(one): pass",
    "by unittest": "import unittest\nclass TestIt(unittest.TestCase):\n def test_it(self): self.skipTest('needs zram')",
}
STAYS = {
    "a reason that setup cannot remove": "def test_it(): pytest.skip('rustc cannot link here')",
    "an expected failure": "@pytest.mark.xfail\ndef test_it(): raise ValueError('as expected')",
    "a test that passes": "def test_it(): pass",
}


def outcomes(folder: Path, *, require_all: bool) -> dict[str, str]:
    """Runs pytest on one file per case, in a worker of xdist. The element of the JUnit report and its text, by case."""
    cases = {**SKIPS, **STAYS}
    for number, source in enumerate(cases.values()):
        (folder / f"test_{number}.py").write_text(f"import pytest\n{source}\n")
    (folder / "pytest.ini").write_text("[pytest]\njunit_family = xunit1\n")
    words = ["-n", "1", "-p", "gate", "-p", "no:hypothesispytest", "-p", "no:cacheprovider"]
    words += ["--continue-on-collection-errors", "--junit-xml", str(folder / "report.xml"), str(folder)]
    subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        env={**os.environ, "PYTHONPATH": str(TESTS), "MEMFORENSICS_REQUIRE_ALL": "1" if require_all else "0"},
        capture_output=True,
        check=False,
    )
    found = {}
    for case in JUnitXml.fromfile(str(folder / "report.xml")).iterchildren(TestSuite):  # type: ignore[no-untyped-call]
        for test in case:
            number = int(re.search(r"test_(\d+)", f"{test.classname} {test.name}")[1])  # type: ignore[index]
            found[list(cases)[number]] = " ".join(f"{each._tag}: {each.message} {each.text}" for each in test.result)
    return found


@pytest.fixture(scope="module")
def required(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return outcomes(tmp_path_factory.mktemp("required"), require_all=True)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return outcomes(tmp_path_factory.mktemp("elsewhere"), require_all=False)


@pytest.mark.parametrize("case", SKIPS)
def test_a_skip_fails_if_everything_is_required(required: dict[str, str], case: str) -> None:
    assert re.match("(failure|error): ", required[case])
    assert "skipped, and MEMFORENSICS_REQUIRE_ALL=1: " in required[case]


@pytest.mark.parametrize("case", SKIPS)
def test_a_skip_passes_otherwise(elsewhere: dict[str, str], case: str) -> None:
    assert elsewhere[case].startswith("skipped: ")


@pytest.mark.parametrize("case", STAYS)
def test_allowed_skips_do_not_fail(required: dict[str, str], elsewhere: dict[str, str], case: str) -> None:
    assert not re.match("failure|error", required[case])
    assert not re.match("failure|error", elsewhere[case])


def test_the_gate_is_loaded_here(pytestconfig: pytest.Config) -> None:
    hooks = {each.function.__module__ for each in pytestconfig.hook.pytest_runtest_makereport.get_hookimpls()}
    assert "gate" in hooks


@pytest.mark.parametrize("version", [f"{major}.{minor}" for major, minor in known_versions()])
def test_every_supported_cpython_is_here(version: str) -> None:
    """Tests run on each interpreter that `interpreters` finds."""
    if version not in interpreters():
        pytest.skip(f"needs CPython {version}: pyenv install {version}")
