"""The command line in a process of its own, as an operator runs it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SECONDS = "20s"


def memforensics(*words: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "memforensics", *map(str, words)], capture_output=True, text=True, timeout=timeout
    )


def diagnose(pid: int, folder: Path, *more: str) -> dict[str, Any]:
    """The report's JSON. Checks that its exit code is that of the process."""
    case = folder / f"{pid}.case"
    done = memforensics("diagnose", str(pid), "--duration", SECONDS, "--json", "--record", case, *more)
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == report["exit_code"], done.stderr
    report["_case"], report["_text"] = str(case), done.stdout
    return report


def python_frames(site: dict[str, Any]) -> list[tuple[str, str, int]]:
    """(function, file name, line) of the Python frames, leaf first."""
    return [(f["function"], Path(f["file"]).name, f["line"]) for f in site["stack"] if f["kind"] == "python"]
