"""Programs are loaded whatever else the process does."""

import signal

import pytest

from memforensics.probes.ebpf.programs import MmapPrograms

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
