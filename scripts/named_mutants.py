"""Changes that a reviewer made and that no test noticed at the time. Each must now fail a unit test.

    scripts/named_mutants.py          all of tests/named_mutants.toml; writes their rows in docs/mutants.md
    scripts/named_mutants.py veto     those with this word in their name

Unlike mutmut they change module constants and whole lines. Each is made in a copy of the repository.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "mutants.md"
LIMIT_S = 300
COPIED = ("memforensics", "tests", "benchmarks", "docs", "examples", "scripts", "pyproject.toml", "README.md")


def load() -> list[dict[str, Any]]:
    """Each has name, file, old (part of a line, once in the file), new, and tests (arguments of pytest)."""
    found: list[dict[str, Any]] = tomllib.loads((ROOT / "tests" / "named_mutants.toml").read_text())["mutant"]
    return found


def killed_by(mutant: dict[str, Any], copy: Path) -> str | None:
    """The test that failed. None if all passed. SystemExit if the file does not have the text exactly once, or if
    pytest did not run the tests."""
    path = copy / mutant["file"]
    text = path.read_text()
    if text.count(mutant["old"]) != 1:
        raise SystemExit(f"{mutant['name']}: {mutant['file']} has {text.count(mutant['old'])} times: {mutant['old']}")
    path.write_text(text.replace(mutant["old"], mutant["new"]))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not live", *mutant["tests"]]
    try:
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    finally:
        path.write_text(text)
    failed = re.search(r"^(?:FAILED|ERROR) tests/\w+/([^\s\[]+)", done.stdout, re.MULTILINE)
    if done.returncode == 0:
        return None
    if done.returncode != 1 or failed is None:
        raise SystemExit(f"{mutant['name']}: pytest ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr}")
    return failed[1]


def write_page(found: dict[str, str | None]) -> None:
    """Writes their rows; the other rows stay."""
    before, _, rest = PAGE.read_text().partition("<!-- named -->")
    old, _, after = rest.partition("<!-- end of named -->")
    rows = {row.split(" | ")[0].removeprefix("| "): row for row in old.splitlines() if row.startswith("| ")}
    lines = ["| change | in | noticed by |", "|---|---|---|"]
    for mutant in load():
        name, file = mutant["name"], mutant["file"].removeprefix("memforensics/")
        test = found.get(name)
        noticed = f"`{test.replace('::', ' ')}`" if test else "**no test**"
        lines += [f"| {name} | `{file}` | {noticed} |"] if name in found else [rows[name]] if name in rows else []
    PAGE.write_text(f"{before}<!-- named -->\n{chr(10).join(lines)}\n<!-- end of named -->{after}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("word", nargs="?", default="")
    word = parser.parse_args().word
    found: dict[str, str | None] = {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".venvs"))
            else:
                shutil.copy2(ROOT / name, copy / name)
        for mutant in load():
            if word in mutant["name"]:
                test = found[mutant["name"]] = killed_by(mutant, copy)
                print(f"{mutant['name']}: {test or 'SURVIVED'}", flush=True)
                write_page(found)
    return int(None in found.values())


if __name__ == "__main__":
    sys.exit(main())
