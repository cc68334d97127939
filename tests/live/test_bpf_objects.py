"""Programs are loaded whatever else the process does."""

import contextlib
import signal
from pathlib import Path

import pytest

from memforensics.probes.ebpf import layout
from memforensics.probes.ebpf.loaded import Sizes, StackPrograms
from memforensics.probes.ebpf.programs import TRACEPOINTS, MmapPrograms

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


def test_what_is_written_for_aarch64_is_taken_by_the_verifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bcc compiles for the machine that ARCH names. One program reads in place what only arm64's registers have, and is
    not taken here."""
    own = {"x86": 21 * 8, "arm64": (31 + 4) * 8 + 8 + 8}  # bytes of struct pt_regs as far as we read it, and of x30
    rest = set()
    for machine in own:
        monkeypatch.setenv("ARCH", machine)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
        defines = {"MAX_LIVE": 1024, "TRACK_FILES": 1}
        programs = StackPrograms("mmap.bpf.c", defines, layout.TARGET, python=True, sizes=Sizes())
        with contextlib.closing(programs):
            rest.add(programs.engine._maps["scratches"].value_size - own[machine])
            for function in set(TRACEPOINTS.values()) - {"on_munmap_exit"}:
                programs.engine._load(function)
    assert len(rest) == 1
