"""What one tick of a watch shows: to a pipe, on a screen, to a scraper; how old each figure is."""

import io
import json
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from fixtures.constructed import BASE, PID, SECOND, case, diagnosis, growing_finding, snapshot, target
from rich.text import Text

from memforensics.case.model import Case, Diagnosis, KernelTotals, Layer, LayerRow, Sample
from memforensics.case.views import Ages, WatchTick
from memforensics.cli.screen.redraw import Screen
from memforensics.jobs.case.conclude import conclude_case
from memforensics.remedies.catalogue import load_catalogue
from memforensics.remedies.match import match
from memforensics.report.json.shapes import json_bytes
from memforensics.report.json.watch import watch
from memforensics.report.prometheus import metrics
from memforensics.report.terminal.console import Console
from memforensics.report.terminal.watch import Part, WatchScreen, help_parts, sparkline
from memforensics.report.watch_line import watch_line
from memforensics.units import MIB

ROWS = (LayerRow(layer="anon-mmap", in_rss=True, bytes=90 * MIB, change_bytes=MIB, verdict="growing"),)
SAMPLE = Sample(pid=PID, t_ns=BASE, rss_anon=100 * MIB, rss_file=10 * MIB, rss_shmem=0)


def told(**more: Any) -> Diagnosis:
    return replace(diagnosis(), layers=ROWS, **more)


def tick(**more: Any) -> WatchTick:
    whole = WatchTick(
        t_ns=BASE + 60 * SECOND,
        elapsed_s=60.0,
        case=case(snapshots=(snapshot(),)),
        diagnosis=told(),
        now={PID: SAMPLE},
        ages=Ages(verdict_ns=BASE + 58 * SECOND, layers_ns=BASE + 52 * SECOND, oldest_ns=BASE + 20 * SECOND),
        line=(90 * MIB, 95 * MIB, 100 * MIB),
    )
    return replace(whole, **more)


def text_of(one: WatchTick, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    for part in WatchScreen().parts(one, footer="Ctrl-C ends", width=width):
        console.print(part.shown)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_json_has_current_sizes_and_ages() -> None:
    line = json.loads(json_bytes(watch(tick())))
    assert line["rss_bytes"] == 110 * MIB
    assert line["age_s"] == {"verdict": 2.0, "layers": 8.0, "oldest_mapping": 40.0}
    never = watch(tick(ages=Ages(verdict_ns=BASE + 60 * SECOND))).age_s
    assert (never.verdict, never.layers, never.oldest_mapping) == (0.0, None, None)


def test_screen_shows_ages() -> None:
    shown = text_of(tick())
    assert "110 MiB, watched for 1 m, verdict as of 2 s ago" in shown
    assert "Layers  as of 8 s ago, partly as of 40 s ago" in shown
    fresh = text_of(tick(ages=Ages(*(BASE + 60 * SECOND,) * 3)))
    assert " ago" not in fresh


def test_metrics_have_rss_and_layer_age() -> None:
    found = {family.name: family.samples for family in metrics(tick())}
    assert found["memforensics_layer_age_seconds"][0].value == 8.0
    assert found["memforensics_rss_bytes"][0].value == 110 * MIB


def test_search_for_the_cause_is_shown() -> None:
    searching = tick(search="searching for the cause (12 s)")
    assert "searching for the cause (12 s)" in text_of(searching)
    assert watch_line(searching).endswith("searching for the cause (12 s)")
    assert watch(searching).search == "searching for the cause (12 s)"


def test_stopped_process_is_shown() -> None:
    stopped = tick(now={PID: replace(SAMPLE, state="T")})
    assert f"stopped: {PID}" in text_of(stopped)
    assert [member.stopped for member in watch(stopped).members] == [True]
    assert [member.stopped for member in watch(tick()).members] == [False]


def test_exited_process_is_in_no_layer_while_the_tree_lives() -> None:
    child = replace(snapshot(), pid=PID + 1)
    both = case(targets=(target(), target(pid=PID + 1, ppid=PID)), snapshots=(snapshot(), child))
    left = replace(both, targets=(target(), target(pid=PID + 1, ppid=PID, exited_ns=BASE, left_how="it exited")))
    over = replace(both, targets=tuple(replace(each, exited_ns=BASE) for each in both.targets))

    def rss(whole: Case) -> int:
        return sum(row.bytes or 0 for row in conclude_case(whole).layers if row.in_rss)

    alone = rss(case(snapshots=(snapshot(),)))
    assert (rss(both), rss(left), rss(over)) == (2 * alone, alone, 2 * alone)


@pytest.mark.parametrize("width", [40, 60, 80, 99, 100, 120, 200])
def test_no_line_is_wider_than_the_screen(width: int) -> None:
    assert max(map(len, text_of(tick(), width).splitlines())) <= width


def test_parts_without_news_are_reused() -> None:
    screen = WatchScreen()
    first = screen.parts(tick(), footer="f", width=100)
    second = screen.parts(tick(is_news=False, elapsed_s=61.0), footer="f", width=100)
    same = [a is b for a, b in zip(first, second, strict=True)]
    assert same.count(False) == 3  # the size, the line, and how old the layers are
    third = screen.parts(tick(elapsed_s=62.0), footer="f", width=100)
    assert not any(a is b for a, b in zip(second, third, strict=True))
    wider = screen.parts(tick(is_news=False), footer="f", width=110)
    assert not any(a is b for a, b in zip(third, wider, strict=True))


# --- drawing in place ---------------------------------------------------------------------------------------------


def terminal(written: str) -> list[str]:
    """What stands on a terminal without colours after that was written to it."""
    lines, row = [""], 0
    for word in re.findall(r"\x1b\[\??\d*[A-Za-z]|\n|\r|[^\x1b\n\r]+", written):
        if word == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif word.startswith("\x1b["):
            number, kind = re.fullmatch(r"\x1b\[(\??\d*)(.)", word).groups()  # type: ignore[union-attr]
            if kind == "F":
                row -= int(number)
                assert row >= 0, "above the first line"
            elif kind == "J":
                del lines[row:]
                lines.append("")
            elif kind == "K":
                lines[row] = ""
            else:
                assert kind in "hl"
        elif word != "\r":
            lines[row] = word
    return lines


def show(frames: Iterable[list[str]], height: int = 20) -> tuple[list[str], list[int]]:
    """What stands there at the end, and how much each frame wrote."""
    out = io.StringIO()
    kept: dict[str, Part] = {}
    sizes = []
    with Screen(Console(width=40, height=height, file=io.StringIO(), color_system=None), out) as screen:
        for frame in frames:
            before = len(out.getvalue())
            screen.show([kept.setdefault(line, Part(Text(line))) for line in frame])
            sizes.append(len(out.getvalue()) - before)
    return terminal(out.getvalue()), sizes


def test_terminal_shows_the_last_frame() -> None:
    frames = [["a", "b", "c"], ["a", "B", "c"], ["a"], ["x", "a", "y", "c"], ["x", "a", "y", "d"]]
    for end in range(1, len(frames) + 1):
        assert [line for line in show(frames[:end])[0] if line] == frames[end - 1]


def test_unchanged_lines_are_not_written() -> None:
    long = ["l" * 39] * 10
    _, sizes = show([["1", *long], ["2", *long], ["2", *long]])
    assert sizes[0] > 390
    assert sizes[1] < 40
    assert sizes[2] == 0


def test_lines_that_do_not_fit_are_left_out() -> None:
    shown, _ = show([[f"line {i}" for i in range(30)], [f"line {i}" for i in range(30, 60)]], height=10)
    assert [line for line in shown if line] == [f"line {i}" for i in range(30, 39)]


def test_sparkline_spans_its_values() -> None:
    assert sparkline([], 10) == ""
    assert sparkline([5, 5, 5], 10) == "▁▁▁"
    assert sparkline([0, 50, 100], 10) == "▁▅█"


def test_last_line_says_why_the_watch_ended() -> None:
    line = watch_line(tick(ended="the time is over"))
    assert line.startswith("2025-10-09T09:54:20Z  the time is over: leak, ")
    assert "RSS" not in line


def test_line_begins_with_the_time() -> None:
    lines = [watch_line(tick()), watch_line(tick(ended="the time is over", diagnosis=told(headline="")))]
    assert all(line.startswith("2025-10-09T09:54:20Z  ") for line in lines)
    assert [line.rstrip() for line in lines] == lines


# --- what fits ----------------------------------------------------------------------------------------------------

LAYER_NAMES: tuple[Layer, ...] = (
    "anon-mmap", "native-heap", "python-object", "allocator-retention", "thread-stack", "shmem", "file",
)  # fmt: skip
SIZES = [(80, 24), (100, 30), (120, 40)]


def crowded(**more: Any) -> WatchTick:
    """Several processes, layers, mappings that grow, losses, events, and a leak with its remedies."""
    found = match(growing_finding(), case(), load_catalogue())
    rows = tuple(
        LayerRow(layer=layer, in_rss=True, bytes=(90 - n) * MIB, change_bytes=n * MIB, verdict="steady")
        for n, layer in enumerate(LAYER_NAMES)
    )
    pids = range(PID, PID + 9)
    group = diagnosis().groups[0]
    whole = case(targets=tuple(target(pid=pid, ppid=PID) for pid in pids), losses=(case().losses[0],) * 3)
    answer = replace(
        diagnosis(found),
        layers=(*ROWS, *rows[1:]),
        groups=(group,) * 5,
        members=tuple(replace(diagnosis().members[0], pid=pid) for pid in pids),
        kernel_totals=KernelTotals(swap=MIB, locked=MIB),
    )
    now = {pid: replace(SAMPLE, pid=pid) for pid in pids}
    happened = tuple((PID, f"event {n}") for n in range(4))
    return tick(case=whole, diagnosis=answer, now=now, events=happened, **more)


def screen_of(one: WatchTick, size: tuple[int, int], *, helps: bool = False) -> list[str]:
    out = io.StringIO()
    console = Console(width=size[0], height=size[1], file=io.StringIO(), color_system=None)
    with Screen(console, out) as screen:
        parts = WatchScreen().parts(one, footer="the footer", width=size[0], case_file="leak.case")
        screen.show(help_parts(one, footer="the footer") if helps else parts, last=one.ended is not None)
    return terminal(out.getvalue())[:-1]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ended", [None, "the time is over"])
def test_screen_fits_the_terminal(size: tuple[int, int], ended: str | None) -> None:
    lines = screen_of(crowded(ended=ended), size)
    shown = "\n".join(lines)
    assert len(lines) < size[1] - (2 if ended else 0)
    assert max(map(len, lines)) <= size[0]
    assert "LEAK" in lines[0]
    assert re.search(r"growth +\+402 MiB/min", shown)
    assert re.search(r"anon-mmap +90.0 MiB", shown)
    assert re.search(r"sum = RSS +609 MiB", shown)
    assert "UCX_RCACHE_MAX_UNRELEASED=1024" in shown
    assert lines[-1] == "the footer"


def test_hidden_layers_are_summed() -> None:
    shown = "\n".join(screen_of(crowded(), (80, 24)))
    assert re.search(r"3 more layers +255 MiB", shown)
    assert "more layers" not in "\n".join(screen_of(crowded(), (120, 60)))


@pytest.mark.parametrize("size", SIZES)
def test_last_screen_of_a_leak_shows_remedies_and_the_case(size: tuple[int, int]) -> None:
    shown = "\n".join(screen_of(crowded(ended="the time is over"), size))
    for words in ("UCX >= 1.21.0", "UCX_MEM_MMAP_HOOK_MODE=none", "memforensics report leak.case"):
        assert words in shown
    unkept = text_of(crowded(ended="the time is over"), 100)
    assert "not recorded; use --record FILE" in unkept


def test_exited_process_has_no_next_step() -> None:
    growing = replace(diagnosis(), verdict="growing", next_step=f"memforensics diagnose {PID}")
    gone = case(targets=(target(exited_ns=BASE, left_how="it exited"),))
    ended = tick(diagnosis=growing, ended=f"process {PID}: it exited")
    assert "memforensics diagnose" in text_of(ended)
    assert "memforensics diagnose" not in text_of(replace(ended, case=gone))


@pytest.mark.parametrize("size", SIZES)
def test_help_fits_and_names_the_keys(size: tuple[int, int]) -> None:
    lines = screen_of(crowded(), size, helps=True)
    assert len(lines) < size[1]
    assert [line.split()[0] for line in lines if line.startswith(("  q", "  ?", "  Ctrl"))] == ["q", "?", "Ctrl-C"]
    assert lines[-1] == "the footer"
