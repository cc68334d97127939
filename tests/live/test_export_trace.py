"""trace-mmap as it is used: ticks, several processes, children or not, filters; the same sites from a saved case."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli import memforensics
from processes import Child, compiled, running
from terminal import terminal

from memforensics.analysis.site_groups import SiteFilter
from memforensics.analysis.trace_view import Selection, view_of_case
from memforensics.case.views import TraceTick, TraceView
from memforensics.jobs.case.conclude import load_case
from memforensics.jobs.trace.run import trace_ticks
from memforensics.report.export import EXPORT_FORMATS, export_view

pytestmark = [pytest.mark.live, pytest.mark.needs_bpf]


def leaker() -> list[str | Path]:
    return [compiled("trace_leaker.c", "-fomit-frame-pointer")]


def traced(pids: list[int], act: Callable[[], object], record: Path | None = None, **options: Any) -> TraceView:
    """What a trace of them gives, during which `act` is done once; it ends after that."""
    done = False
    ticks = trace_ticks(pids, seconds=20, record=record, stop=lambda: done, **options)
    last: TraceTick | None = None
    with contextlib.closing(ticks):
        for last in ticks:
            if last.phase == "tracing" and not done:
                act()
                done = True
    assert last is not None
    assert last.ended is not None
    return last.view


def tell(child: Child, command: str) -> int | None:
    """The PID of the child that the command made, if it did."""
    child.tell(command)
    while True:
        line = child.read_line()
        if line == "done":
            return None
        if line.startswith("child"):
            child.wait_for("done")
            return int(line.split()[1])


def named(view: TraceView) -> list[tuple[int, str | None, int, int]]:
    return [
        (g.pid, g.named.function if g.named else None, g.outstanding_bytes, g.outstanding_count) for g in view.groups
    ]


def test_filter_on_several_processes() -> None:
    def act() -> None:
        tell(one, "leak 13 12288")
        tell(two, "leak 7 8192")
        tell(two, "grow 5")

    with running(leaker()) as one, running(leaker()) as two:
        wanted = Selection(sort="count", filters=(SiteFilter("func", "leak_many"),))
        view = traced([two.pid, one.pid, two.pid], act, selection=wanted)
    assert named(view) == [(one.pid, "leak_1", 13 * 12288, 13), (two.pid, "leak_1", 7 * 8192, 7)]
    assert [(g.named.function, g.outstanding_count) for g in view.left_out if g.named] == [("grow_one", 5)]
    assert {summary.pid for summary in view.case.traces} == {one.pid, two.pid}


def test_trace_goes_on_when_one_process_exits() -> None:
    left = False
    with running(leaker()) as one, running(leaker()) as two:
        ticks = trace_ticks([one.pid, two.pid], seconds=20, stop=lambda: left)
        told = False
        for tick in ticks:
            if tick.phase == "tracing" and not told:
                told = True
                tell(one, "leak 13 12288")
                tell(two, "leak 7 8192")
            elif len(tick.view.groups) == 2 and not left:
                one.popen.kill()
                one.popen.wait()
                left = True
    assert [pid for pid, _ in tick.view.left] == [one.pid]
    assert named(tick.view) == [(one.pid, "leak_1", 13 * 12288, 13), (two.pid, "leak_1", 7 * 8192, 7)]


@pytest.mark.parametrize("children", [True, False])
def test_children_are_traced_unless_disabled(children: bool) -> None:
    forked: list[int | None] = []

    def act() -> None:
        tell(child, "leak 3 12288")
        forked.append(tell(child, "fork 17 8192"))

    with running(leaker()) as child:
        view = traced([child.pid], act, children=children)
    expected = [(child.pid, "leak_1", 3 * 12288, 3)]
    if children:
        assert forked[0] is not None
        expected.insert(0, (forked[0], "leak_1", 17 * 8192, 17))
    assert named(view) == expected
    assert {site.pid for site in view.case.sites} == {pid for pid, *_ in expected}


def test_saved_case_exports_the_same_files(tmp_path: Path) -> None:
    case = tmp_path / "leak.case"
    with running(leaker()) as child:
        view = traced([child.pid], lambda: tell(child, "leak 13 12288"), case)
    for form in ("folded", "speedscope", "perfetto"):
        assert export_view(view_of_case(load_case(case)), form) == export_view(view, form)
    for form in EXPORT_FORMATS:
        output = tmp_path / f"leak.{form}"
        done = memforensics("case", case, "--format", form, "--output", output)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert output.stat().st_mode & 0o777 == 0o600
        assert output.read_bytes()
    (line,) = (tmp_path / "leak.folded").read_text().splitlines()
    assert line.endswith(f" {13 * 12288}")
    assert memforensics("case", case, "--format", "pprof", "--sites", "malloc").returncode == 3


def test_ctrl_c_on_a_pipe_keeps_the_result(tmp_path: Path) -> None:
    case = tmp_path / "leak.case"
    words = ["trace-mmap", "--duration", "60s", "--stacks", "--record", str(case)]
    with running(leaker()) as child:
        with subprocess.Popen(
            [sys.executable, "-m", "memforensics", *words, str(child.pid)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as tracer:
            leaked = 0
            while not has_sites(case):
                tell(child, "leak 1 4096")
                leaked += 1
                time.sleep(0.1)
            tracer.send_signal(signal.SIGINT)
            out, err = tracer.communicate(timeout=60)
        assert tracer.returncode == 130
    assert err.splitlines()[0] == f"memforensics: interrupted; the evidence so far is in {case}"
    assert "\x1b" not in out
    assert re.search(r"^1 +[\d.]+ KiB .*leak_1", out, re.MULTILINE)
    assert out.index("leak_many") < out.index("coverage")
    told = json.loads(export_view(view_of_case(load_case(case)), "speedscope"))
    assert 4096 <= told["profiles"][0]["endValue"] <= leaked * 4096


def has_sites(case: Path) -> bool:
    if not case.exists():
        return False
    listed = memforensics("case", case, "--json")
    return listed.returncode == 0 and json.loads(listed.stdout)["tables"]["allocation_site"] > 0


# --- the live screen --------------------------------------------------------------------------------------------------


def test_live_screen_takes_keys(tmp_path: Path) -> None:
    with running(leaker()) as child, terminal(tmp_path, "trace-mmap", child.pid, "--duration", "60s") as screen:
        screen.wait_for("nothing outstanding yet.*q ends")
        screen.wait_for(r"tracing \d")
        tell(child, "leak 13 12288")
        screen.wait_for(r"▸ +156 KiB .* 13 .*leak_1")
        screen.press("e")
        screen.wait_for(r"site 1.* 9 leak_many .*10 main ")
        screen.press("e", "p")
        screen.wait_for("p resumes")
        tell(child, "grow 5")
        tell(child, "leak 8 12288")
        frozen = screen.wait_for(r"▸.*?\n")[0]
        assert "156 KiB" in frozen
        screen.press("p")
        screen.wait_for(r"▸ +252 KiB .* 21 ")
        screen.press("s", "s", "j")
        screen.wait_for(r" 21 .*▸ +100 KiB .* 5 .*grow_one.*by count")
        screen.press("q")
        ended = screen.wait_for(r"coverage.*exit code 0")[0]
        assert "q ends" not in screen.screen()
        assert "lost" in ended


def test_ctrl_c_on_a_small_terminal_shows_the_result(tmp_path: Path) -> None:
    words = ("trace-mmap", "--duration", "60s", "--min-age", "1h")
    with running(leaker()) as child, terminal(tmp_path, *words, child.pid, columns=60, lines=12) as screen:
        screen.wait_for(r"tracing \d")
        tell(child, "leak 13 12288")
        screen.wait_for("1 site with 156 KiB left out by --filter or --min-age")
        screen.press("C-c")
        screen.wait_for("exit code 130")
