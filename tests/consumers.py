"""The programs that open the exports. `make setup-test` installs them. None if a program is missing."""

import glob
import shutil
from pathlib import Path

ROOT = Path(__file__).parent.parent


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def pprof() -> str | None:
    """Google's pprof, alone or as the tool of a Go package."""
    return shutil.which("pprof") or next(iter(sorted(glob.glob("/usr/lib/go-*/pkg/tool/*/pprof"), reverse=True)), None)


def speedscope() -> Path | None:
    """The folder with the viewer's index.html and the schema of its file format."""
    folder = ROOT / ".make" / "speedscope" / "package" / "dist" / "release"
    return folder if (folder / "index.html").exists() else None


def trace_processor() -> Path | None:
    """The folder with the WebAssembly build of Perfetto's trace processor; Node.js runs it."""
    folder = ROOT / ".make" / "trace_processor"
    return folder if shutil.which("node") and (folder / "trace_processor.wasm").exists() else None
