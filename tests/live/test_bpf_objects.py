"""Programs load whatever else the process does."""

import contextlib
import signal
from pathlib import Path

import pytest

from memforensics.probes.ebpf.loader.program_set import Sizes, StackPrograms
from memforensics.probes.ebpf.mmap.programs import SOURCE, TRACEPOINTS, MmapPrograms

pytestmark = [pytest.mark.live, pytest.mark.needs_bpf]


def test_signals_do_not_prevent_loading() -> None:
    """The verifier gives up on a long program when a signal is pending."""
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: seen.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        MmapPrograms(files=False, python=True).close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen


def walker(**defines: int) -> StackPrograms:
    return StackPrograms(SOURCE, {"MAX_LIVE": 1024, "TRACK_FILES": 1, **defines}, python=True, sizes=Sizes())


def scratch_bytes(programs: StackPrograms) -> int:
    return programs.engine._maps["scratches"].value_size


def test_the_verifier_accepts_the_programs_of_aarch64() -> None:
    """Except two: they read the first argument in place, which that machine keeps beyond the registers of this one."""
    with contextlib.closing(walker(__TARGET_ARCH_arm64=1)) as programs:
        for function in set(TRACEPOINTS.values()) - {"on_mmap_exit", "on_munmap_exit"}:
            programs.engine._load(function)


def test_the_arch_variable_of_kernel_builds_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bcc compiles for the machine that ARCH names."""
    with contextlib.closing(walker()) as programs:
        here = scratch_bytes(programs)
    monkeypatch.setenv("ARCH", "arm64")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with contextlib.closing(walker()) as programs:
        assert scratch_bytes(programs) == here
