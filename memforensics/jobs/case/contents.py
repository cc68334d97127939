"""`case FILE`: what is in a case file, and its tables for other programs."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memforensics.case.model import CaseMeta, Target
from memforensics.case.store import SCHEMA_VERSION, CaseFile
from memforensics.units import NS_PER_S, duration_text, size_text

# Table -> its column of CLOCK_MONOTONIC nanoseconds, for the time span.
_TIMES = {"sample": "t_ns", "snapshot": "t_ns", "trace_summary": "ended_ns", "captured_stack": "t_ns", "pause": "t_ns"}


@dataclass(frozen=True, slots=True)
class Listing:
    """What a case holds. Times are Unix nanoseconds; None where nothing has a time."""

    path: Path
    file_bytes: int  # with its write-ahead log
    meta: CaseMeta
    targets: tuple[Target, ...]
    counts: dict[str, int]  # table -> rows
    began_wall_ns: int | None
    ended_wall_ns: int | None

    @property
    def seconds(self) -> float | None:
        if self.began_wall_ns is None or self.ended_wall_ns is None:
            return None
        return (self.ended_wall_ns - self.began_wall_ns) / NS_PER_S


def listing(path: Path) -> Listing:
    """Reads what is asked often, not the whole. CaseError when it is no case."""
    with CaseFile.open(path) as file:
        meta, counts = file.meta(), file.counts()
        spans = (file.span(table, column) for table, column in _TIMES.items() if counts[table])
        times = [t for span in spans if span is not None for t in span]
        targets = file.targets()
    wal = path.with_name(f"{path.name}-wal")
    return Listing(
        path=path,
        file_bytes=path.stat().st_size + (wal.stat().st_size if wal.exists() else 0),
        meta=meta,
        targets=targets,
        counts=counts,
        began_wall_ns=meta.anchor.wall_at(min(times)) if times else None,
        ended_wall_ns=meta.anchor.wall_at(max(times)) if times else None,
    )


def listing_object(case: Listing) -> dict[str, Any]:
    """For --json."""
    from memforensics.report.json.report import iso_time
    from memforensics.text import utf8

    return {
        "path": utf8(str(case.path)),
        "file_bytes": case.file_bytes,
        "schema": SCHEMA_VERSION,
        "memforensics": case.meta.memforensics_version,
        "command": case.meta.command,
        "hostname": case.meta.hostname,
        "kernel": case.meta.kernel,
        "began": iso_time(case.began_wall_ns),
        "ended": iso_time(case.ended_wall_ns),
        "seconds": case.seconds,
        "targets": [
            {"pid": t.pid, "comm": t.comm, "cmdline": list(t.cmdline), "role": t.role, "left": t.left_how}
            for t in case.targets
        ],
        "tables": case.counts,
    }


def json_text(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def listing_text(case: Listing) -> str:
    """For people: a block of lines."""
    from memforensics.report.json.report import iso_time
    from memforensics.text import visible

    lines = [
        f"{visible(str(case.path))}  {size_text(case.file_bytes)}",
        f"  made by    memforensics {case.meta.memforensics_version}, {visible(case.meta.command)}"
        f" on {visible(case.meta.hostname or '?')} (Linux {visible(case.meta.kernel or '?')})",
    ]
    if case.seconds is not None:
        lines.append(f"  time       {iso_time(case.began_wall_ns) or '?'}, {duration_text(case.seconds)}")
    for target in case.targets:
        root = "  (named)" if target.pid == case.meta.root_pid else ""
        left = f"  left: {visible(target.left_how)}" if target.left_how else ""
        line = visible(" ".join(target.cmdline) or target.comm)
        lines.append(f"  process    {target.pid}{root}  {line[:90]}{left}")
    lines += [f"  {count:>9,}  {table}" for table, count in case.counts.items() if count]
    return "\n".join(lines) + "\n"


_FORMULA = re.compile(r"[=+@\t\r-]")
_PERMS = re.compile(r"[r-][w-][x-][sp]")


def _no_formula(cell: object) -> object:
    is_formula = isinstance(cell, str) and _FORMULA.match(cell) and not _PERMS.fullmatch(cell)
    return f"'{cell}" if is_formula else cell


def table_csv(path: Path, table: str) -> str:
    """One table as CSV, by pandas, with the columns as they are stored (nested values as JSON text; addresses of
    mappings as hexadecimal text). Whole numbers stay whole where some are missing. A text that a spreadsheet would
    take for a formula gets an apostrophe in front. CaseError when there is none."""
    import pandas

    with CaseFile.open(path) as file:
        names, rows = file.rows(table)
    frame = pandas.DataFrame([[_no_formula(cell) for cell in row] for row in rows], columns=names, dtype=object)
    text: str = frame.to_csv(index=False, lineterminator="\n")
    return text
