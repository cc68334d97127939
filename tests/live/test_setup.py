"""Set-up: a second run does nothing, and without root it says what is missing. (The first run is `make test`'s own.)"""

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.live
ROOT = Path(__file__).parent.parent.parent
SETUP = ROOT / "scripts" / "setup.sh"


def test_scripts_are_valid_bash() -> None:
    for script in (SETUP, ROOT / ".ci" / "run"):
        subprocess.run(["bash", "-n", script], check=True)
        assert os.access(script, os.X_OK)


def test_second_setup_does_nothing() -> None:
    if not (ROOT / ".make" / "stamp-test").exists():
        pytest.skip("this checkout was not set up by make")
    done = subprocess.run([SETUP, "test"], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr == ""


def test_make_has_the_documented_targets() -> None:
    for word in ("demo", "test", "lint", "setup", "calibrate"):
        subprocess.run(["make", "-n", word], cwd=ROOT, check=True, capture_output=True)
