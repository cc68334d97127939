"""What one tick of a watch shows: to a pipe, on a screen, to a scraper; how old each figure is."""

import io
import json
import re
from collections.abc import Iterable
from dataclasses import replace

import pytest
from fixtures.constructed import BASE, PID, SECOND, case, diagnosis, snapshot, target
from rich.console import Console
from rich.text import Text

from memforensics.case.model import Case, Diagnosis, LayerRow, Sample
from memforensics.cli.screen import Screen
from memforensics.jobs.conclude import conclude_case
from memforensics.report.prometheus import metrics
from memforensics.report.terminal_watch import WatchScreen, sparkline
from memforensics.report.watch_line import Ages, WatchTick, watch_object, watch_text
from memforensics.units import MIB

ROWS = (LayerRow(layer="anon-mmap", in_rss=True, bytes=90 * MIB, change_bytes=MIB, verdict="growing"),)
SAMPLE = Sample(pid=PID, t_ns=BASE, rss_anon=100 * MIB, rss_file=10 * MIB, rss_shmem=0)


def told(**more: object) -> Diagnosis:
    return replace(diagnosis(), layers=ROWS, **more)  # type: ignore[arg-type]


def tick(**more: object) -> WatchTick:
    whole = WatchTick(
        t_ns=BASE + 60 * SECOND,
        elapsed_s=60.0,
        case=case(snapshots=(snapshot(),)),
        diagnosis=told(),
        now={PID: SAMPLE},
        ages=Ages(verdict_ns=BASE + 58 * SECOND, layers_ns=BASE + 52 * SECOND, oldest_ns=BASE + 20 * SECOND),
        line=(90 * MIB, 95 * MIB, 100 * MIB),
    )
    return replace(whole, **more)  # type: ignore[arg-type]


def text_of(one: WatchTick, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    for part in WatchScreen().parts(one, footer="Ctrl-C ends", width=width):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_line_tells_sizes_of_now_and_how_old_the_rest_is() -> None:
    line = json.loads(json.dumps(watch_object(tick())))
    assert line["rss_bytes"] == 110 * MIB
    assert line["age_s"] == {"verdict": 2.0, "layers": 8.0, "oldest_mapping": 40.0}
    never = watch_object(tick(ages=Ages(verdict_ns=BASE + 60 * SECOND)))
    assert never["age_s"] == {"verdict": 0.0, "layers": None, "oldest_mapping": None}


def test_the_screen_tells_it_in_words() -> None:
    shown = text_of(tick())
    assert "110 MiB, seen for 1 m, judged 2 s ago" in shown
    assert "as read 8 s ago (mappings that did not change: up to 40 s)" in shown
    fresh = text_of(tick(ages=Ages(*(BASE + 60 * SECOND,) * 3)))
    assert " ago" not in fresh


def test_a_scraper_is_told_too() -> None:
    found = {family.name: family.samples for family in metrics(tick())}
    assert found["memforensics_layer_age_seconds"][0].value == 8.0
    assert found["memforensics_rss_bytes"][0].value == 110 * MIB


def test_the_search_for_the_cause_is_told() -> None:
    searching = tick(search="looking for the cause (12 s)")
    assert "looking for the cause (12 s)" in text_of(searching)
    assert watch_text(searching).endswith("looking for the cause (12 s)")
    assert watch_object(searching)["search"] == "looking for the cause (12 s)"


def test_a_process_that_is_stopped_is_said_to_be() -> None:
    stopped = tick(now={PID: replace(SAMPLE, state="T")})
    assert f"stopped: {PID}" in text_of(stopped)
    assert [member["stopped"] for member in watch_object(stopped)["members"]] == [True]
    assert [member["stopped"] for member in watch_object(tick())["members"]] == [False]


def test_memory_of_a_process_that_left_is_in_no_layer_while_the_tree_lives() -> None:
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


def test_only_news_is_laid_out_anew() -> None:
    screen = WatchScreen()
    first = screen.parts(tick(), footer="f", width=100)
    second = screen.parts(tick(is_news=False, elapsed_s=61.0), footer="f", width=100)
    same = [a is b for a, b in zip(first, second, strict=True)]
    assert same.count(False) == 2  # the sizes, and how old the layers are
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
    kept: dict[str, Text] = {}
    sizes = []
    with Screen(Console(width=40, height=height, file=io.StringIO(), color_system=None), out) as screen:
        for frame in frames:
            before = len(out.getvalue())
            screen.show([kept.setdefault(line, Text(line)) for line in frame])
            sizes.append(len(out.getvalue()) - before)
    return terminal(out.getvalue()), sizes


def test_what_stands_there_is_the_last_frame() -> None:
    frames = [["a", "b", "c"], ["a", "B", "c"], ["a"], ["x", "a", "y", "c"], ["x", "a", "y", "d"]]
    for end in range(1, len(frames) + 1):
        assert [line for line in show(frames[:end])[0] if line] == frames[end - 1]


def test_what_did_not_change_is_not_written() -> None:
    long = ["l" * 39] * 10
    _, sizes = show([["1", *long], ["2", *long], ["2", *long]])
    assert sizes[0] > 390
    assert sizes[1] < 40
    assert sizes[2] == 0


def test_what_does_not_fit_is_left_out() -> None:
    shown, _ = show([[f"line {i}" for i in range(30)], [f"line {i}" for i in range(30, 60)]], height=10)
    assert [line for line in shown if line] == [f"line {i}" for i in range(30, 39)]


def test_a_sparkline_spans_its_values() -> None:
    assert sparkline([], 10) == ""
    assert sparkline([5, 5, 5], 10) == "▁▁▁"
    assert sparkline([0, 50, 100], 10) == "▁▅█"


def test_the_last_line_says_why_it_ended_and_no_size_twice() -> None:
    line = watch_text(tick(ended="the time is over"))
    assert line.startswith("the time is over: ")
    assert "RSS" not in line
