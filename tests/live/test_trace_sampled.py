"""What is sampled, to keep a bound on the overhead: estimates of known answers, without a bias."""

import json
import math
import subprocess
import sys

import pytest
from processes import compiled, running
from tracing import traced

from memforensics.case.model import AllocationSite, Loss, TraceSummary
from memforensics.probes.base import Budget
from memforensics.probes.ebpf.faults.probe import FaultTrace, fault_trace
from memforensics.probes.ebpf.faults.programs import SAMPLE_PERIOD
from memforensics.probes.ebpf.mmap.probe import MmapTrace, mmap_trace
from memforensics.probes.ebpf.overhead import TOP_LEVEL
from memforensics.target import open_process

pytestmark = [pytest.mark.live, pytest.mark.needs_bpf]

PAGE = 4096
LEVEL = 4  # one of sixteen single pages
SIGMAS = 5.5  # one in 25 million, by chance


def sampled(probe: MmapTrace | FaultTrace, *commands: str) -> tuple[list[AllocationSite], TraceSummary, list[Loss]]:
    """What a probe that walks at LEVEL says of the leaker."""
    with running([compiled("trace_leaker.c", "-fomit-frame-pointer")]) as child:
        process = open_process(child.pid)
        try:
            probe.open(process, Budget(seconds=4))
            probe.programs.set_sampling_level(LEVEL)
            for command in commands:
                child.tell(command)
                child.wait_for("done")
                list(probe.poll())
            evidence = list(probe.close())
        finally:
            probe.close()
            process.close()
    sites = [e for e in evidence if isinstance(e, AllocationSite) and not e.file_backed]
    (summary,) = (e for e in evidence if isinstance(e, TraceSummary))
    return sites, summary, [e for e in evidence if isinstance(e, Loss)]


def through(sites: list[AllocationSite], function: str) -> tuple[int, int, int]:
    """Outstanding bytes, outstanding blocks, and blocks ever, through a function."""
    mine = [s for s in sites if function in [frame.function for frame in s.stack.frames]]
    return (
        sum(s.outstanding_bytes for s in mine),
        sum(s.outstanding_count for s in mine),
        sum(s.allocated_count for s in mine),
    )


def spread(blocks: int, sample_period: int) -> float:
    """SIGMAS of the estimated number of blocks: each counts for `sample_period` with a chance of 1 in as many."""
    return SIGMAS * math.sqrt(blocks * (sample_period - 1))


def test_estimates_of_what_is_outstanding_are_unbiased() -> None:
    sites, summary, _ = sampled(mmap_trace(), "leak 2000 4096", "partial 1000", "churn 20000 12288")
    kept, count, ever = through(sites, "leak_many")
    assert abs(count - 2000) < spread(2000, 16)
    assert (kept, ever) == (count * PAGE, count)
    # of 8 pages each, of which the first, the last and two in the middle were unmapped
    kept, count, ever = through(sites, "partial_many")
    assert abs(kept - 1000 * 4 * PAGE) < spread(1000, 2) * 4 * PAGE
    assert kept == count * 4 * PAGE
    # of a size that is found to be balanced, one in 256
    assert through(sites, "churn_many")[:2] == (0, 0)
    churned = through(sites, "churn_many")[2]
    assert abs(churned - 20_000) < spread(20_000, 256)
    assert summary.unwalked
    assert summary.unwalked > 10_000


def test_pages_of_faults_are_unbiased() -> None:
    sites, summary, losses = sampled(fault_trace(), "leak 3000 4096", "churn 1000 8192", "partial 300")
    kept, count, _ = through(sites, "leak_many")
    assert abs(count - 3000) < spread(3000, 16)
    assert kept == count * PAGE
    kept, count, ever = through(sites, "churn_many")
    assert kept == 0  # also where others touched pages at the same addresses, unsampled, since
    assert abs(ever - 2000) < spread(2000, 16)
    kept, count, _ = through(sites, "partial_many")
    assert abs(count - 300 * 4) < spread(300 * 4, 16)
    assert summary.unwalked
    assert [loss.count for loss in losses if "--overhead" in loss.reduce] == [summary.unwalked]


def toucher(*commands: str, overhead: float | None = None) -> tuple[list[AllocationSite], TraceSummary, list[Loss]]:
    with traced([compiled("fault_touch.c", "-fomit-frame-pointer")], fault_trace(), overhead) as it:
        for command in commands:
            it.do(command)
        result = it.result()
    return [s for s in result.sites if not s.file_backed], result.summaries[it.child.pid], result.losses


def test_very_many_faults_are_sampled() -> None:
    """First touches are all walked; repeated touches are sampled."""
    sites, summary, losses = toucher("churn 100000", "own 997", "shared 211")
    assert through(sites, "touch_own") == (997 * PAGE, 997, 997)
    assert through(sites, "touch_shared") == (211 * PAGE, 211, 211)
    kept, _, ever = through(sites, "touch_churn")
    assert kept == 0
    assert abs(ever - 100_000) < spread(100_000, SAMPLE_PERIOD)
    assert summary.sampled_one_in == SAMPLE_PERIOD
    assert summary.unwalked
    assert summary.unwalked > 10_000
    (loss,) = losses
    assert (loss.count, loss.what.count(f"1 of {SAMPLE_PERIOD}")) == (summary.unwalked, 1)
    assert "--overhead 100%" in loss.reduce


def test_many_pages_that_are_touched_again_are_unbiased() -> None:
    sites, _, _ = toucher("again 40000")
    kept, _, ever = through(sites, "touch_first")
    assert kept == 0  # although later touches were sampled
    assert abs(ever - 40_000) < spread(40_000, SAMPLE_PERIOD // 8)
    kept, _, ever = through(sites, "touch_last")
    assert kept == ever * PAGE
    assert abs(ever - 40_000) < spread(40_000, SAMPLE_PERIOD)


def test_overhead_100_walks_each_fault() -> None:
    sites, summary, losses = toucher("churn 40000", overhead=1.0)
    assert through(sites, "touch_churn") == (0, 0, 40_000)
    assert not summary.unwalked
    assert not losses


@pytest.mark.parametrize("command", ["trace-mmap", "trace-faults"])
def test_a_trace_declines_when_its_ledger_costs_too_much(command: str) -> None:
    """A loop of nothing but mappings pays for the account more than a thousandth of a percent."""
    program = "import mmap\nprint('ready', flush=True)\nwhile True:\n m = mmap.mmap(-1, 8192); m[0] = 1; m.close()"
    with running([sys.executable, "-c", program]) as child:
        asked = [command, str(child.pid), "--duration", "60s", "--overhead", "0.001%", "--json"]
        ended = subprocess.run(
            [sys.executable, "-m", "memforensics", *asked], capture_output=True, text=True, check=False, timeout=150
        )
        assert child.alive
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    (loss,) = (loss for losses in told["losses"].values() for loss in losses if "account alone" in loss["what"])
    assert loss["reduce"].startswith("--overhead ")
    (cost,) = told["overhead"].values()
    assert cost["asked_share"] == pytest.approx(0.00001)
    assert cost["target_share"] > cost["asked_share"]


def test_a_bound_that_is_never_reached_changes_nothing() -> None:
    trace = mmap_trace()
    with running([compiled("trace_leaker.c", "-fomit-frame-pointer")]) as child:
        process = open_process(child.pid)
        try:
            trace.open(process, Budget(seconds=4, overhead=10.0))
            child.tell("leak 13 12288")
            child.wait_for("done")
            evidence = list(trace.close())
        finally:
            process.close()
    (site,) = (e for e in evidence if isinstance(e, AllocationSite) and e.outstanding_count)
    assert (site.outstanding_bytes, site.outstanding_count) == (13 * 12288, 13)
    assert not [e for e in evidence if isinstance(e, Loss)]
    assert not trace.meter.governor.is_reduced
    assert TOP_LEVEL >= LEVEL
