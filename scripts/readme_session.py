"""Writes the output of a real `memforensics demo` into the README (`make readme`). Do not edit that part by hand.

Run it in a checkout with a neutral path, such as /srv/memforensics: the output contains paths.
"""

import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- session: begin (made by `make readme` from a real run) -->", "<!-- session: end -->"
LAST = "Intercepted functions"  # the first heading that the README leaves out


def main() -> int:
    done = subprocess.run(
        [Path(sys.executable).with_name("memforensics"), "demo", "--duration", "30s"],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    shown, heading, _ = done.stdout.partition(f"\n{LAST}")
    if " LEAK " not in shown or not heading:
        print("the demo did not find its leak; the README is unchanged", file=sys.stderr)
        return 1
    rest = "(below: intercepted functions, why it grows, the evidence, all layers, the cost of the observation)"
    before, _, after = README.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = after.partition(END)
    text = f"{before}{BEGIN}\n\n```text\n{shown.strip()}\n\n{rest}\n```\n\n{END}{after}"
    README.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
