"""Every export, opened by its real consumer: pprof, the speedscope viewer and its schema, a browser."""

import base64
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from browser import Page, browser
from consumers import pprof, speedscope, trace_processor
from exported import HOSTILE, SITES, TOTAL, profile, site
from trace_processor import TraceProcessor

from memforensics.case.model import Frame
from memforensics.report.export import export
from memforensics.report.export.profile import frame_name, text

pytestmark = pytest.mark.live


# --- pprof ------------------------------------------------------------------------------------------------------------


def pprof_says(file: Path, *words: str) -> str:
    program = pprof()
    assert program is not None
    return subprocess.run([program, *words, file], capture_output=True, text=True, check=True).stdout


@pytest.mark.needs_pprof
def test_pprof_reads_the_export(tmp_path: Path) -> None:
    file = tmp_path / "leak.pb.gz"
    file.write_bytes(export(profile(), "pprof"))
    raw = pprof_says(file, "-raw")
    assert re.search(r"alloc_objects/count alloc_space/bytes inuse_objects/count inuse_space/bytes\[dflt\]", raw)
    held = {tuple(map(int, found)) for found in re.findall(r"^ *(\d+) +(\d+) +(\d+) +(\d+):", raw, re.MULTILINE)}
    assert held == {(s.allocated_count, s.allocated_bytes, s.outstanding_count, s.outstanding_bytes) for s in SITES}
    assert "Time: 2023-11-14 22:13:25 +0000 UTC" in raw  # the anchor, and five seconds
    assert "Duration: 10" in raw
    assert pprof_says(file, "-top").startswith(f"File: server\nBuild ID: {'ab' * 20}\n")
    for mapping in ("libpool.so.1 " + "cd" * 20, "libplain.so " + "ef" * 20):
        assert mapping in raw
    assert re.search(r"0x77 M=\d+ *$", raw, re.MULTILINE)  # no name: the address in the file is kept


@pytest.mark.needs_pprof
def test_pprof_sums_match(tmp_path: Path) -> None:
    file = tmp_path / "leak.pb.gz"
    file.write_bytes(export(profile(), "pprof"))
    top = pprof_says(file, "-top", "-unit=B", "-cum")
    assert f"{TOTAL}B total" in top
    rows = re.findall(r"^ *\S+ +\S+% +\S+% +(\S+) +\S+% +(.*)$", top, re.MULTILINE)
    cumulated = {function.strip(): size for size, function in rows}
    assert cumulated["main"] == f"{10 << 20}B"
    assert cumulated["Server.serve"] == f"{7 << 20}B"
    assert cumulated["tiny (inline)"] == cumulated["Server.serve"]
    of_one = pprof_says(file, "-top", "-unit=B", "-tagfocus=pid=42:42")
    assert f"{512 << 10}B" in of_one
    freed = pprof_says(file, "-top", "-unit=B", "-sample_index=alloc_space")
    assert f"{TOTAL + 4096 + (1 << 20)}B total" in freed


# --- speedscope -------------------------------------------------------------------------------------------------------


def speedscope_folder() -> Path:
    folder = speedscope()
    assert folder is not None
    return folder


@pytest.mark.needs_speedscope
def test_speedscope_file_matches_its_schema() -> None:
    schema = json.loads((speedscope_folder() / "file-format-schema.json").read_text())
    check = jsonschema.Draft7Validator(schema)
    for sites in (SITES, SITES[:1], ()):
        check.validate(json.loads(export(profile(sites), "speedscope")))


@pytest.mark.needs_speedscope
@pytest.mark.needs_browser
def test_speedscope_viewer_opens_the_file(tmp_path: Path) -> None:
    data = base64.b64encode(export(profile(), "speedscope")).decode()
    script = tmp_path / "leak.js"  # the way in which speedscope's own command line hands a file to the viewer
    script.write_text(f'speedscope.loadFileFromBase64("leak.speedscope.json", "{data}")')
    with browser() as page:
        page.open(f"{(speedscope_folder() / 'index.html').as_uri()}#localProfilePath={script}")
        page.wait_until("document.body.innerText.includes('outstanding bytes')")
        assert page.evaluate("document.title").startswith("memforensics trace-mmap")
        assert page.evaluate("document.body.innerText.match(/outstanding bytes \\((1\\/5)\\)/)[1]") == "1/5"
        assert page.problems == []


# --- perfetto ---------------------------------------------------------------------------------------------------------

CALLSTACKS = """
WITH RECURSIVE up(id, leaf, name, parent, depth) AS (
    SELECT c.id, c.id, f.name, c.parent_id, 0
    FROM stack_profile_callsite c JOIN stack_profile_frame f ON f.id = c.frame_id
    UNION ALL
    SELECT c.id, up.leaf, f.name, c.parent_id, up.depth + 1
    FROM up JOIN stack_profile_callsite c ON c.id = up.parent JOIN stack_profile_frame f ON f.id = c.frame_id
)
SELECT pid, sum(size), sum(count), (
    SELECT group_concat(name, ';') FROM (SELECT name FROM up WHERE leaf = callsite_id ORDER BY depth)
)
FROM heap_profile_allocation JOIN process USING (upid) GROUP BY pid, callsite_id
"""


@pytest.mark.needs_trace_processor
def test_perfetto_trace_processor_reads_the_file() -> None:
    folder = trace_processor()
    assert folder is not None
    with TraceProcessor(folder, export(profile(), "perfetto")) as perfetto:
        assert perfetto.query("SELECT name FROM stats WHERE value > 0 AND severity IN ('error', 'data_loss')") == []
        stacks = {(pid, names): (size, count) for pid, size, count, names in perfetto.query(CALLSTACKS)}
        assert stacks == {
            (s.pid, ";".join(frame_name(f) for f in s.stack.frames)): (s.outstanding_bytes, s.outstanding_count)
            for s in SITES
        }
        assert dict(perfetto.query("SELECT pid, name FROM process WHERE pid"))[41] == "server"
        last = perfetto.query(
            "SELECT c.value, max(c.ts) FROM counter c JOIN process_counter_track t ON t.id = c.track_id "
            "WHERE t.name GLOB 'outstanding: *' GROUP BY t.id"
        )
        assert sum(size for size, _ in last) == TOTAL
        (began, wall), *_ = perfetto.query(
            "SELECT (SELECT min(ts) FROM counter), clock_value FROM clock_snapshot WHERE clock_name = 'REALTIME'"
        )
        assert (began, wall) == (profile().began_ns, profile().anchor.wall_ns)


# --- our page ---------------------------------------------------------------------------------------------------------


def opened(page: Page, tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "leak.html"
    file.write_bytes(data)
    page.requests.clear()
    page.open(file.as_uri())
    assert page.requests == [file.as_uri()]


def frames(page: Page) -> list[dict[str, Any]]:
    """What stands in the chart: text, width as a share of the whole, and whether it has the focus."""
    found: list[dict[str, Any]] = page.evaluate(
        "[...document.querySelectorAll('#chart .frame')].map((f) => ({text: f.textContent, width: f.offsetWidth /"
        " document.getElementById('chart').clientWidth, focus: f === document.activeElement,"
        " match: f.classList.contains('match'), top: f.offsetTop, label: f.getAttribute('aria-label')}))"
    )
    return found


def focused(page: Page) -> str:
    (found,) = [frame["text"] for frame in frames(page) if frame["focus"]]
    return str(found)


@pytest.mark.needs_browser
def test_page_works_in_a_browser(tmp_path: Path) -> None:
    with browser() as page:
        opened(page, tmp_path, export(profile(), "html"))
        whole = frames(page)
        shown = {frame["text"]: frame for frame in whole}
        assert shown["Server.serve (service.py:101)"]["width"] == pytest.approx((7 << 20) / TOTAL, abs=0.01)
        assert shown["pool_grow (libpool.so.1)"]["label"].startswith("pool_grow (libpool.so.1), ")
        assert [f["text"] for f in frames(page) if "</script>" in f["text"]][:1] == [f"process 42 ({text(HOSTILE)})"]

        # by keys: down to the widest callee, beside it, zoom, back
        page.evaluate("document.querySelector('#chart .frame').focus()")
        for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowDown"):
            page.press(key)
        assert focused(page) == "Server.serve (service.py:101)"
        page.press("ArrowRight")
        assert focused(page) == "load (service.py:7)"
        page.press("Enter")
        assert {f["text"] for f in frames(page) if f["width"] > 0.99} >= {"load (service.py:7)", "all"}
        assert "Server.serve (service.py:101)" not in [f["text"] for f in frames(page)]
        page.press("ArrowUp")
        assert focused(page) == "main (main.py:3)"
        page.press("Escape")
        assert [f["text"] for f in frames(page)] == [f["text"] for f in whole]

        # search, by its key
        page.press("/")
        page.type("LIBPOOL")
        page.wait_until("document.getElementById('found').textContent.includes('%')")
        assert {f["text"] for f in frames(page) if f["match"]} == {"pool_grow (libpool.so.1)", "tiny (libpool.so.1)"}
        assert page.evaluate("document.getElementById('found').textContent").startswith("9.0 MiB, 85.7%")

        # by the mouse: a click zooms, the button goes back; another measure; a flame instead of an icicle
        page.click("#chart .frame[aria-label^='Server.serve']")
        assert shown.keys() - {f["text"] for f in frames(page)}
        page.click("#reset")
        page.evaluate(
            "(() => { const m = document.getElementById('measure'); m.value = 'outstanding blocks';"
            " m.dispatchEvent(new Event('change')); })()"
        )
        assert frames(page)[0]["label"] == "all, 13 blocks, 100.0%"
        assert frames(page)[0]["top"] == 0
        page.click("#flip")
        assert frames(page)[0]["top"] > 0

        # the table: a stack can be opened, and shown in the chart
        page.evaluate("document.querySelectorAll('details')[1].open = true")
        page.click("details[open] button")
        assert focused(page) == "pool_grow (libpool.so.1)"
        assert page.problems == []
        assert page.evaluate("window.alert.toString().includes('native code') && document.images.length") == 0


@pytest.mark.needs_browser
def test_page_has_dark_and_light_colours(tmp_path: Path) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    with browser() as page:
        opened(page, tmp_path, export(profile(), "html"))
        first = page.evaluate(background)
        page.click("#theme")
        second = page.evaluate(background)
        page.click("#theme")
        assert (page.evaluate(background), second != first) == (first, True)
        assert page.problems == []


@pytest.mark.needs_browser
def test_page_handles_many_and_deep_stacks(tmp_path: Path) -> None:
    def frame(name: str) -> Frame:
        return Frame(kind="python", function=name, file="/srv/app/deep.py", line=1)

    deep = site(7, 1, 1 << 30, 1, *(frame(f"level{n}") for n in range(3000)))
    many = tuple(site(7, n, 1 << 20, 1, frame(f"leaf{n}"), frame("root")) for n in range(2, 5002))
    with browser() as page:
        opened(page, tmp_path, export(profile((deep, *many)), "html"))
        assert page.evaluate("document.querySelectorAll('#chart .frame').length") < 9000
        assert page.evaluate("document.querySelectorAll('tbody tr').length") == 200
        assert frames(page)[0]["label"] == "all, 5.9 GiB, 100.0%"
        assert page.problems == []
