"""Skip by capability, fail by request: MEMFORENSICS_REQUIRE_ALL=1 (CI sets it) makes a missing privilege a failure."""

import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
REQUIRE_ALL = os.environ.get("MEMFORENSICS_REQUIRE_ALL") == "1"


def _why_no_bpf() -> str | None:
    if os.geteuid() != 0:
        return "needs root (CAP_BPF, CAP_PERFMON)"
    if not Path("/usr/lib/python3/dist-packages/bcc").is_dir():
        return "needs bcc: apt-get install python3-bpfcc"
    if not Path("/sys/kernel/tracing/events").is_dir():
        return "needs tracefs: mount -t tracefs nodev /sys/kernel/tracing"
    return None


def _why_missing(marker: str) -> str | None:
    """Why a test with that marker cannot run here; None when it can."""
    if marker == "needs_root":
        return None if os.geteuid() == 0 else "needs root"
    if marker == "needs_bpf":
        return _why_no_bpf()
    if marker == "needs_bpftrace":
        return _why_no_bpf() or (None if shutil.which("bpftrace") else "needs bpftrace: apt-get install bpftrace")
    if marker == "needs_gdb":
        return None if shutil.which("gdb") and os.geteuid() == 0 else "needs gdb (apt-get install gdb) and root"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in ("needs_root", "needs_bpf", "needs_bpftrace", "needs_gdb"):
        if item.get_closest_marker(marker) is None:
            continue
        why = _why_missing(marker)
        if why is not None:
            if REQUIRE_ALL:
                pytest.fail(f"{why} (MEMFORENSICS_REQUIRE_ALL=1 turns this skip into a failure)", pytrace=False)
            pytest.skip(why)
