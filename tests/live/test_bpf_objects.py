"""Programs are loaded whatever else the process does."""

import contextlib
import signal
from pathlib import Path

import pytest

from memforensics.probes.ebpf.loader import layout
from memforensics.probes.ebpf.loader.program_set import Sizes, StackPrograms
from memforensics.probes.ebpf.mmap.programs import TRACEPOINTS, MmapPrograms

pytestmark = [pytest.mark.live, pytest.mark.needs_bpf]


def test_signals_do_not_keep_programs_from_loading() -> None:
    """The verifier of a long program is asked to give up each time one comes."""
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
    return StackPrograms(
        "mmap.bpf.c", {"MAX_LIVE": 1024, "TRACK_FILES": 1, **defines}, layout.TARGET, python=True, sizes=Sizes()
    )


def scratch_bytes(programs: StackPrograms) -> int:
    return programs.engine._maps["scratches"].value_size


def test_what_is_written_for_aarch64_is_taken_by_the_verifier() -> None:
    """But for two: they read in place the first argument, which that machine keeps beyond the registers of this."""
    with contextlib.closing(walker()) as programs:
        here = scratch_bytes(programs)
    with contextlib.closing(walker(__TARGET_ARCH_arm64=1)) as programs:
        there = scratch_bytes(programs)
        for function in set(TRACEPOINTS.values()) - {"on_mmap_exit", "on_munmap_exit"}:
            programs.engine._load(function)
    registers, x30 = ((31 + 4) * 8 + 8) - 21 * 8, 8  # bytes that it has more: of struct pt_regs as far as it is read
    assert there - here == registers + x30


def test_a_variable_of_those_who_build_kernels_is_not_for_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bcc compiles for the machine that ARCH names."""
    with contextlib.closing(walker()) as programs:
        here = scratch_bytes(programs)
    monkeypatch.setenv("ARCH", "arm64")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with contextlib.closing(walker()) as programs:
        assert scratch_bytes(programs) == here
