"""Makes the generated pages of docs/: `python scripts/gen_docs.py`; with --check, exits 1 when one is stale."""

import sys
from pathlib import Path

from memforensics.remedies.catalogue import load_catalogue
from memforensics.remedies.page import catalogue_page

DOCS = Path(__file__).resolve().parent.parent / "docs"


def pages() -> dict[str, str]:
    """File name under docs/ -> its text."""
    return {"remedies.md": catalogue_page(load_catalogue())}


def main(check: bool) -> int:
    stale = [name for name, text in pages().items() if not _is(DOCS / name, text)]
    for name in stale:
        if check:
            print(f"docs/{name} is stale: run python scripts/gen_docs.py", file=sys.stderr)
        else:
            (DOCS / name).write_text(pages()[name], encoding="utf-8")
            print(f"wrote docs/{name}")
    return 1 if stale and check else 0


def _is(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
