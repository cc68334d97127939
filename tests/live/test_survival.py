"""What became of the blocks of a site: births by time, deaths, releases, and blocks that nothing points to."""

import time

import pytest
from processes import compiled
from tracing import PAGE, Traced, traced

from memforensics.errors import PermissionNeeded
from memforensics.probes.ebpf.reconcile import Account
from memforensics.probes.mmap_trace import MmapTrace

pytestmark = [pytest.mark.live, pytest.mark.needs_bpf]


def _next_slot(run: Traced) -> None:
    """Polls until the slot of time that is open has ended."""
    slots = run.trace._slots  # type: ignore[union-attr]
    before = len(slots.bounds) if slots else 0
    end = time.monotonic() + 10
    while time.monotonic() < end:
        run.poll()
        slots = run.trace._slots  # type: ignore[union-attr]
        if slots is not None and len(slots.bounds) > before:
            return
        time.sleep(0.02)
    raise AssertionError("no slot ended")


def test_births_by_time_and_what_is_left_of_them() -> None:
    with traced([compiled("trace_leaker.c")], MmapTrace()) as run:
        run.do(f"leak 7 {2 * PAGE}")
        run.do(f"churn 13 {3 * PAGE}")
        _next_slot(run)
        _next_slot(run)
        run.do(f"leak 11 {2 * PAGE}")
        run.do("partial 5")
        result = run.result()
    kept = [c for c in result.only("leak_1", "leak_many").cohorts if c.born_count]
    assert [(c.born_count, c.left_count, c.left_bytes // PAGE) for c in kept] == [(7, 7, 14), (11, 11, 22)]
    churned = [c for c in result.only("leak_1", "churn_many").cohorts if c.born_count]
    assert [(c.born_count, c.left_count) for c in churned] == [(13, 0)]
    cut = [c for c in result.only("leak_1", "partial_many").cohorts if c.born_count]
    assert [(c.born_bytes // PAGE, c.born_count, c.left_bytes // PAGE, c.left_count) for c in cut] == [(40, 5, 20, 5)]
    (summary,) = result.summaries.values()
    assert [slot.count for slot in summary.releases if slot.count] == [13, 15]
    assert all(site.effective_births is None for site in result.sites)


def test_a_comparison_with_proc_that_fails_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionNeeded("not allowed to read maps", privilege="CAP_SYS_PTRACE")

    with traced([compiled("trace_leaker.c")], MmapTrace()) as run:
        monkeypatch.setattr(Account, "reconcile", refuse)
        losses = run.result().losses
    (loss,) = [loss for loss in losses if "that failed" in loss.what]
    assert loss.count == 1
    assert "sudo" in loss.reduce
