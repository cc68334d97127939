"""Each .bt script on a program with known answers: N mappings of M bytes appear as N and M."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from processes import Child, compiled, running

from memforensics.case.model import AllocationSite, Loss, TraceSummary
from memforensics.errors import TargetGone
from memforensics.probes.base import Budget
from memforensics.probes.ebpf.bpftrace import BpftraceTrace, Printed, parse_output
from memforensics.target import open_process

pytestmark = [pytest.mark.live, pytest.mark.needs_bpftrace]
SCRIPTS = Path(__file__).parent.parent.parent / "scripts" / "bpftrace"
KEPT, BLOCK, CHURNED = 97, 16384, 503
PAGES = KEPT * BLOCK // 4096


@pytest.fixture
def program() -> Path:
    return compiled("bt_maps.c", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls")


def traced(script: str, child: Child) -> Printed:
    """What the stand-alone script prints about one round of the program."""
    command = ["bpftrace", "-f", "json", str(SCRIPTS / script), str(child.pid), "60"]
    tracer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert tracer.stdout is not None
        while "tracing" not in (line := tracer.stdout.readline()):
            assert line, "bpftrace ended"
        child.tell("go")
        child.wait_for("done")
        tracer.send_signal(signal.SIGINT)
        return parse_output(tracer.communicate(timeout=60)[0])
    finally:
        if tracer.poll() is None:
            tracer.kill()
            tracer.wait()


def by_function(printed: Printed, name: str, function: str) -> int:
    found = [value for stack, value in printed.maps[name].items() if f"{function}+" in stack]
    assert len(found) == 1, printed.maps[name]
    return found[0]


def test_outstanding_mmap(program: Path) -> None:
    with running([program, str(KEPT), str(BLOCK), str(CHURNED)]) as child:
        printed = traced("outstanding_mmap.bt", child)
    assert by_function(printed, "@outstanding_count", "keep_blocks") == KEPT
    assert by_function(printed, "@outstanding_bytes", "keep_blocks") == KEPT * BLOCK
    assert by_function(printed, "@mapped_count", "churn_blocks") == CHURNED
    assert by_function(printed, "@outstanding_bytes", "churn_blocks") == 0
    assert printed.number("@unmapped_count") == CHURNED
    assert printed.number("@unmapped_bytes") == CHURNED * BLOCK
    assert printed.number("@not_recorded") == 0


def test_page_faults(program: Path) -> None:
    with running([program, str(KEPT), str(BLOCK), str(CHURNED)]) as child:
        printed = traced("page_faults.bt", child)
    assert by_function(printed, "@faults", "touch") == PAGES


def test_rss_growth(program: Path) -> None:
    with running([program, str(KEPT), str(BLOCK), str(CHURNED)]) as child:
        printed = traced("rss_growth.bt", child)
    grown = sum(value for stack, value in printed.maps["@anon"].items() if "touch+" in stack)
    # The kernel's counter is per CPU: 4096 is the first change, which only begins the count.
    assert grown == pytest.approx((PAGES - 1) * 4096, abs=64 * 4096)


def test_the_probe_reports_sites_and_its_limits(program: Path) -> None:
    with running([program, str(KEPT), str(BLOCK), str(CHURNED)]) as child:
        process, probe = open_process(child.pid), BpftraceTrace()
        assert probe.availability(process).status == "partial"
        probe.open(process, Budget(seconds=10))
        child.tell("go")
        child.wait_for("done")
        assert list(probe.poll()) == []
        evidence = list(probe.close())
        assert list(probe.close()) == evidence, "closing twice changes nothing"
        process.close()
        assert child.alive
    sites = [e for e in evidence if isinstance(e, AllocationSite)]
    top = sites[0]
    assert (top.outstanding_count, top.outstanding_bytes) == (KEPT, KEPT * BLOCK)
    assert any(f.function == "keep_blocks" and f.module == str(program) for f in top.stack.frames)
    assert top.stack.complete
    (summary,) = [e for e in evidence if isinstance(e, TraceSummary)]
    assert summary.engine == "bpftrace"
    assert summary.events == KEPT + 2 * CHURNED
    assert summary.rss_growth_bytes == pytest.approx(KEPT * BLOCK, abs=512 * 1024)
    assert not [e for e in evidence if isinstance(e, Loss)]


def test_incomplete_stacks_without_frame_pointers_are_a_loss() -> None:
    with running([compiled("bt_maps.c"), str(KEPT), str(BLOCK), str(CHURNED)]) as child:
        process, probe = open_process(child.pid), BpftraceTrace()
        probe.open(process, Budget(seconds=10))
        child.tell("go")
        child.wait_for("done")
        evidence = list(probe.close())
        process.close()
    losses = [e for e in evidence if isinstance(e, Loss) and e.what.startswith("stacks cut short")]
    assert [(loss.count, loss.reduce) for loss in losses] == [(KEPT + CHURNED, "--engine bcc")]


def test_a_target_that_exits(program: Path) -> None:
    with running([program, "1", "4096", "0"]) as child:
        process, probe = open_process(child.pid), BpftraceTrace()
        probe.open(process, Budget(seconds=10))
        os.kill(child.pid, signal.SIGKILL)
        child.popen.wait()
        with pytest.raises(TargetGone):
            list(probe.poll())
        assert any(isinstance(e, TraceSummary) for e in probe.close())
        process.close()
