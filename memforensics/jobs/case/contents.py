"""`case FILE`: the contents of a case file, and its tables as CSV."""

import re
from pathlib import Path

from memforensics.case.store import SCHEMA_VERSION, CaseFile
from memforensics.case.views import Listing

# Table -> its column of CLOCK_MONOTONIC nanoseconds, for the time span.
_TIMES = {"sample": "t_ns", "snapshot": "t_ns", "trace_summary": "ended_ns", "captured_stack": "t_ns", "pause": "t_ns"}


def listing(path: Path) -> Listing:
    """The summary of a case, without reading all of it. CaseError if it is not a case."""
    with CaseFile.open(path) as file:
        meta, counts = file.meta(), file.counts()
        spans = (file.span(table, column) for table, column in _TIMES.items() if counts[table])
        times = [t for span in spans if span is not None for t in span]
        targets = file.targets()
    wal = path.with_name(f"{path.name}-wal")
    return Listing(
        path=path,
        file_bytes=path.stat().st_size + (wal.stat().st_size if wal.exists() else 0),
        schema=SCHEMA_VERSION,
        meta=meta,
        targets=targets,
        counts=counts,
        began_wall_ns=meta.anchor.wall_at(min(times)) if times else None,
        ended_wall_ns=meta.anchor.wall_at(max(times)) if times else None,
    )


_FORMULA = re.compile(r"[=+@\t\r-]")
_PERMS = re.compile(r"[r-][w-][x-][sp]")


def _no_formula(cell: object) -> object:
    is_formula = isinstance(cell, str) and _FORMULA.match(cell) and not _PERMS.fullmatch(cell)
    return f"'{cell}" if is_formula else cell


def table_csv(path: Path, table: str) -> str:
    """One table as CSV, with the columns as they are stored: nested values as JSON text, addresses of mappings as
    hexadecimal text. Integers stay integers where some are missing. A text that a spreadsheet would take for a formula
    gets an apostrophe in front. CaseError if there is no such table."""
    import pandas

    with CaseFile.open(path) as file:
        names, rows = file.rows(table)
    frame = pandas.DataFrame([[_no_formula(cell) for cell in row] for row in rows], columns=names, dtype=object)
    text: str = frame.to_csv(index=False, lineterminator="\n")
    return text
