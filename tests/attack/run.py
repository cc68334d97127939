"""Runs the attacks and prints a Markdown table: how many attempts of each were withstood.

    python tests/attack/run.py [--runs N] [--first NUMBER] [--markdown FILE] [NAME...]

Exit code 0 when all were withstood, else 1.
"""

import argparse
import importlib
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from attack import ATTACKS, Attack

MODULES = ("gdb_killed", "command_killed", "interrupted")


def repeat(attack: Attack, runs: int, first: int) -> tuple[int, list[str]]:
    """The number of attempts that memforensics withstood, and what went wrong in the others."""
    wrong = []
    for number in range(first, first + runs):
        try:
            found = attack.attempt(number)
        except Exception as error:  # noqa: BLE001 - any failure of an attempt is a result
            found = f"{type(error).__name__}: {error}"
        if found is not None:
            wrong.append(f"attempt {number}: {found}")
            print(f"  {attack.name}: {wrong[-1]}", file=sys.stderr, flush=True)
    return runs - len(wrong), wrong


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the attacks.")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--runs", type=int, help="instead of each attack's own number")
    parser.add_argument(
        "--first", type=int, default=0, help="the number of the first attempt, to go on from earlier runs"
    )
    parser.add_argument("--markdown", type=Path, help="also write the table there")
    options = parser.parse_args()
    for module in MODULES:
        importlib.import_module(f"attack.{module}")
    chosen = [one for one in ATTACKS if not options.names or one.name in options.names]
    unknown = set(options.names) - {one.name for one in chosen}
    if unknown:
        parser.error(f"no such attack: {', '.join(sorted(unknown))}; there are {', '.join(a.name for a in ATTACKS)}")
    lines = ["| attack | withstood | seconds |", "|---|---|---|"]
    print("\n".join(lines), flush=True)
    failed = False
    for attack in chosen:
        runs = options.runs or attack.runs
        began = time.monotonic()
        good, wrong = repeat(attack, runs, options.first)
        failed = failed or bool(wrong)
        lines.append(f"| {attack.text} (`{attack.name}`) | {good} of {runs} | {time.monotonic() - began:.0f} |")
        print(lines[-1], flush=True)
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
