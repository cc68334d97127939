"""What became of the blocks of a site: births by time, deaths, releases, and blocks that nothing points to."""

import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cli import diagnose
from processes import compiled, python, running
from tracing import PAGE, Traced, traced

from memforensics.case.store import CaseFile
from memforensics.errors import PermissionNeeded
from memforensics.jobs.case.conclude import conclude_case
from memforensics.probes.ebpf.mmap.accounting import MmapAccounting
from memforensics.probes.ebpf.mmap.probe import mmap_trace
from memforensics.probes.ebpf.mmap.reconcile import Reconciler
from memforensics.probes.heap.references import Block, old_blocks, search
from memforensics.remedies.catalogue import Catalogue
from memforensics.target import open_process

pytestmark = [pytest.mark.live, pytest.mark.needs_bpf]


def _next_slot(run: Traced) -> None:
    """Polls until the slot of time that is open has ended."""
    slots = run.trace.accounting._slots  # type: ignore[union-attr]
    before = len(slots.bounds)
    end = time.monotonic() + 10
    while time.monotonic() < end:
        run.poll()
        slots = run.trace.accounting._slots  # type: ignore[union-attr]
        if len(slots.bounds) > before:
            return
        time.sleep(0.02)
    raise AssertionError("no slot ended")


def test_cohorts_of_births_and_survivors() -> None:
    with traced([compiled("trace_leaker.c")], mmap_trace()) as run:
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


def test_a_failed_comparison_with_proc_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionNeeded("not allowed to read maps", privilege="CAP_SYS_PTRACE")

    with traced([compiled("trace_leaker.c")], mmap_trace()) as run:
        monkeypatch.setattr(Reconciler, "reconcile", refuse)
        losses = run.result().losses
    (loss,) = [loss for loss in losses if "that failed" in loss.what]
    assert loss.count == 1
    assert "CAP_SYS_PTRACE" in loss.reduce


# --- references


def _unreferenced(run: Traced) -> tuple[int, int]:
    """Sampled blocks of the largest site, and those that neither of two searches found a pointer to."""
    accounting, pid = run.trace.accounting, run.child.pid
    assert isinstance(accounting, MmapAccounting)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        run.poll()
        now = time.monotonic_ns()
        site = max(accounting.blocks(pid), key=lambda site: len(site.blocks), default=None)
        blocks = old_blocks(site.blocks, site.cohorts, now, random.Random(1)) if site else ()
        if len(blocks) >= 24:
            break
        time.sleep(0.2)
    with closing(open_process(pid)) as process:
        first = search(process, blocks)
        time.sleep(1)
        standing = {block for site in accounting.blocks(pid) for block in site.blocks}
        second = search(process, first.unreferenced & standing)
    assert not first.why
    assert not second.why
    return len(blocks), len(second.unreferenced)


@pytest.mark.parametrize("how", ["packed", "file", "guarded", "epoll"])
def test_a_block_whose_address_is_kept_is_never_lost(how: str) -> None:
    with traced([compiled("keep_pointers.c"), how, "400"], mmap_trace()) as run:
        assert _unreferenced(run)[1] == 0


def test_an_address_that_python_keeps_as_an_integer_is_a_pointer() -> None:
    with traced(python("keep_mappings.py", "addresses"), mmap_trace()) as run:
        assert _unreferenced(run)[1] == 0


@pytest.mark.parametrize("language", ["C", "Python"])
def test_blocks_without_a_pointer_are_lost(language: str) -> None:
    in_c: list[str | Path] = [compiled("keep_pointers.c"), "lost", "400"]
    in_python = python("keep_mappings.py", "forgotten")
    with traced(in_c if language == "C" else in_python, mmap_trace()) as run:
        tested, lost = _unreferenced(run)
        assert tested >= 24
        assert lost >= 0.9 * tested


def test_blocks_at_chosen_addresses_are_marked() -> None:
    with traced([compiled("keep_pointers.c"), "placed", "400"], mmap_trace()) as run:
        _next_slot(run)
        placed = run.result().only("map_block")
    assert placed.placed
    with traced([compiled("keep_pointers.c"), "array", "400"], mmap_trace()) as run:
        _next_slot(run)
        chosen_by_kernel = run.result().only("map_block")
    assert not chosen_by_kernel.placed


def test_every_other_block_is_lost() -> None:
    with traced([compiled("keep_pointers.c"), "half", "400"], mmap_trace()) as run:
        tested, lost = _unreferenced(run)
        assert tested * 0.2 < lost < tested * 0.8


def test_a_search_makes_no_page_present() -> None:
    script = "import mmap\nroom = mmap.mmap(-1, 1 << 28, flags=34)\nroom[:4096] = bytes(4096)\n"
    script += "print('ready', flush=True)\ninput()"
    with running(["python3", "-c", script]) as child, closing(open_process(child.pid)) as process:
        before = process.sample()
        found = search(process, [Block(0, ((0x5A5A_1234_5000, 0x5A5A_1234_6000),))])
        after = process.sample()
    assert (after.rss, after.swap) == (before.rss, before.swap)
    assert len(found.unreferenced) == 1
    assert 0 < found.bytes_read <= before.rss


def test_a_process_that_is_too_large_is_not_searched() -> None:
    with closing(open_process(os.getpid())) as process:
        found = search(process, [Block(0, ((0x5A5A_1234_5000, 0x5A5A_1234_6000),))], limit_bytes=1 << 20)
    assert found.bytes_read == 0
    assert "at most 1.0 MiB are searched" in found.why


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("cases")
    commands = {
        "lost": [compiled("keep_pointers.c"), "lost", "300"],
        "fifo": [compiled("keep_pointers.c"), "fifo", "100"],  # full after 40 s
    }

    def one(command: list[str | Path]) -> dict[str, Any]:
        with running(command) as child:
            return diagnose(child.pid, folder)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(commands, pool.map(one, commands.values()), strict=True))


@pytest.mark.parametrize(
    ("name", "kind", "verdict"),
    [("lost", "lost", "leak"), ("fifo", "referenced", "growing")],
)
def test_diagnose_says_whether_anything_points_to_what_stays(
    reports: dict[str, dict[str, Any]], name: str, kind: str, verdict: str
) -> None:
    """A FIFO that is not yet full has no deaths and grows in a line: that is no leak."""
    finding = reports[name]["findings"][0]
    assert (reports[name]["verdict"], finding["verdict"]) == (verdict, verdict)
    assert finding["layer"] == "anon-mmap"
    kinds = [item["kind"] for item in finding["evidence"]]
    assert [k for k in kinds if k in ("lost", "referenced")] == [kind]
    assert sum(cohort["born_count"] for cohort in finding["sites"][0]["cohorts"]) == finding["sites"][0]["count"]


# --- memory mapped inside munmap


@pytest.mark.needs_ucx
def test_the_leak_of_ucx_shows_without_the_catalogue(
    ucx_example: Callable[..., list[str | Path]], tmp_path: Path
) -> None:
    """Pieces of a pool that are mapped inside munmap, as many per munmap all the time, and none is unmapped."""

    def one(version: str) -> list[str]:
        with running(ucx_example(version, "--rate", "max"), timeout=60) as child:
            case_file = diagnose(child.pid, tmp_path, "--duration", "30s")["_case"]
        with CaseFile.open(Path(case_file)) as file:
            report = conclude_case(file.load(), Catalogue(()))
        return [report.verdict, *(item.kind for finding in report.findings for item in finding.evidence)]

    with ThreadPoolExecutor(2) as pool:
        leaking, fixed = pool.map(one, ["1.19.0", "1.21.0"])
    assert "give-back-hook" in leaking
    assert "lost" not in leaking
    assert leaking[0] == "leak"
    assert "give-back-hook" not in fixed
    assert fixed[0] != "leak"
