"""Line tables of every interpreter here, against what each says of its own standard library."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from processes import python
from test_cpython_stacks import interpreters, label

from memforensics.runtimes.cpython.locations import line_at, ranges

pytestmark = pytest.mark.live
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("interpreter", interpreters(), ids=label)
def test_every_line_of_the_standard_library(interpreter: str) -> None:
    major, _, minor = Path(interpreter).name[len("python") :].partition(".")
    version = (int(major), int(minor))
    output = subprocess.run(python("cpy_lines.py", interpreter=interpreter), capture_output=True, check=True).stdout
    codes = [json.loads(line) for line in output.splitlines()]
    assert len(codes) > 300
    for code in codes:
        found = list(ranges(version, bytes.fromhex(code["table"]), code["first"]))
        for start, end, line in code["lines"]:
            if line is None:
                continue
            for offset in range(start, end, 2):
                assert line_at(found, offset, code["first"]) == line


def test_the_offsets_are_those_of_the_headers() -> None:
    """The generator in its --check mode, on every interpreter here that came with its headers."""
    prefixes = [path for path in (Path(one).parents[1] for one in interpreters()) if has_headers(path)]
    if not prefixes:
        pytest.skip("needs the headers of a CPython (include/python3.X)")
    generator = ROOT / "scripts" / "gen_cpython_offsets.py"
    checked = subprocess.run(
        [sys.executable, generator, "--check", *prefixes], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def has_headers(prefix: Path) -> bool:
    return any(prefix.glob("include/python3.*/internal/pycore_pystate.h"))
