"""Skip by capability. With MEMFORENSICS_REQUIRE_ALL=1 (CI sets it) `gate` turns every skip into a failure."""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from consumers import chromium, pprof, speedscope, trace_processor
from gate import REQUIRE_ALL, pytest_make_collect_report, pytest_runtest_makereport
from hypothesis import HealthCheck, Phase, settings
from processes import EXAMPLE, TESTS

__all__ = ["pytest_make_collect_report", "pytest_runtest_makereport"]  # the hooks of the gate

# Property tests have no deadline. The gate uses the same 100 examples each time. Other runs use 30 new ones, to be fast
# and to try more over many runs.
settings.register_profile(
    "memforensics",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=REQUIRE_ALL,
    max_examples=100 if REQUIRE_ALL else 30,
)
settings.load_profile("memforensics")
# Any example kills a mutant, so examples are neither shrunk nor stored.
PHASES = (Phase.explicit, Phase.generate)
settings.register_profile(
    "mutants", settings.get_profile("memforensics"), max_examples=40, database=None, phases=PHASES
)


def _why_no_bpf() -> str | None:
    if os.geteuid() != 0:
        return "needs root (CAP_BPF, CAP_PERFMON)"
    if not Path("/usr/lib/python3/dist-packages/bcc").is_dir():
        return "needs bcc: apt-get install python3-bpfcc"
    if not Path("/sys/kernel/tracing/events").is_dir():
        return "needs tracefs: mount -t tracefs nodev /sys/kernel/tracing"
    return None


@functools.lru_cache
def _why_no_ucx() -> str | None:
    """Whether the example can create, or already has, its environment."""
    made = subprocess.run([sys.executable, EXAMPLE, "--prepare"], capture_output=True, text=True, check=False)
    return None if made.returncode == 0 else f"needs the UCX wheel: {made.stderr.strip()[-200:]}"


def _why_missing(marker: str) -> str | None:
    """Why a test with this marker cannot run. None if it can."""
    if marker == "needs_root":
        return None if os.geteuid() == 0 else "needs root"
    if marker == "needs_bpf":
        return _why_no_bpf()
    if marker == "needs_bpftrace":
        return _why_no_bpf() or (None if shutil.which("bpftrace") else "needs bpftrace: apt-get install bpftrace")
    if marker == "needs_ucx":
        return _why_no_ucx()
    if marker == "needs_web":
        is_there = (Path(os.environ.get("MEMFORENSICS_WEB_DIR", "")) / "bin" / "uvicorn").exists()
        return None if is_there else "needs uvicorn, FastAPI and gunicorn: make setup-test, then . .make/env"
    if marker == "needs_gdb":
        return None if shutil.which("gdb") and os.geteuid() == 0 else "needs gdb (apt-get install gdb) and root"
    if marker == "needs_browser":
        return None if chromium() else "needs Chromium: apt-get install chromium"
    if marker == "needs_pprof":
        return None if pprof() else "needs pprof: apt-get install golang-go"
    if marker == "needs_speedscope":
        return None if speedscope() else "needs the speedscope viewer: make setup-test"
    if marker == "needs_aarch64":
        return None if (TESTS.parent / ".make/aarch64").is_dir() else "needs libraries for aarch64: make setup-test"
    if marker == "needs_trace_processor":
        return None if trace_processor() else "needs Perfetto's trace processor: make setup-test"
    return None


MARKERS = (
    "needs_root",
    "needs_bpf",
    "needs_bpftrace",
    "needs_gdb",
    "needs_ucx",
    "needs_web",
    "needs_browser",
    "needs_pprof",
    "needs_speedscope",
    "needs_trace_processor",
    "needs_aarch64",
)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in MARKERS:
        if item.get_closest_marker(marker) is None:
            continue
        why = _why_missing(marker)
        if why is not None:
            pytest.skip(why)


@pytest.fixture(scope="session")
def ucx_example() -> Callable[..., list[str | Path]]:
    """ucx_example("1.19.0", "--rate", "max"): the command line of the example, for tests.processes.running."""

    def command(ucx_version: str = "1.19.0", *arguments: str) -> list[str | Path]:
        return [sys.executable, "-u", EXAMPLE, "--ucx-version", ucx_version, *arguments]

    return command
