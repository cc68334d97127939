"""Writes the generated files: pages of docs/ and the JSON Schema. With --check it exits with 1 if one is stale."""

import importlib
import subprocess
import sys
from pathlib import Path

from memforensics.remedies.catalogue import load_catalogue
from memforensics.remedies.page import catalogue_page
from memforensics.report.json import schema

ROOT = Path(__file__).resolve().parent.parent


def pages() -> dict[Path, str]:
    """File -> its text."""
    return {
        ROOT / "docs" / "remedies.md": catalogue_page(load_catalogue()),
        ROOT / "docs" / "cli.md": commands_page(),
        schema.FILE: schema.schema_text(),
    }


def commands_page() -> str:
    """The --help of every command, commands of groups included."""
    from memforensics.cli.app import COMMANDS

    names: list[list[str]] = []
    for name in COMMANDS:
        words = [name.replace("_", "-")]
        group = getattr(importlib.import_module(f"memforensics.cli.{name}"), "group", None)
        names += [words, *([*words, command.name] for command in (group.registered_commands if group else ()))]
    parts = ["# Commands\n\nMade from `--help` by `python scripts/gen_docs.py`; a test fails when it is stale."]
    for words in ([], *names):
        parts.append(f"## {' '.join(['memforensics', *words])}\n\n```text\n{_help(words)}\n```")
    return "\n\n".join(parts) + "\n"


def _help(words: list[str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "memforensics", *words, "--help"],
        capture_output=True, text=True, check=True, env={"COLUMNS": "100", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def main(check: bool) -> int:
    stale = {path: text for path, text in pages().items() if not _is(path, text)}
    for path, text in stale.items():
        name = path.relative_to(ROOT)
        if check:
            print(f"{name} is stale: run python scripts/gen_docs.py", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {name}")
    return 1 if stale and check else 0


def _is(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
