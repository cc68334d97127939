"""A trace of a program without symbols, named later from its debug file; inlined functions at once and later."""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from cli import memforensics
from processes import LEAKERS, compiled, running

from memforensics.case.model import AllocationSite, Frame
from memforensics.case.store import CaseFile
from memforensics.jobs.case.symbolize import NO_FILE, symbolize
from memforensics.jobs.trace.run import trace_ticks

pytestmark = pytest.mark.live

KEPT = 7
PAGE = 4096
# Leaf first, below libc's mmap; each called on the line that says so.
CHAIN = [("map_one", True), ("map_counted", True), ("keep", False), ("keep_many", False), ("main", False)]


def program(folder: Path) -> tuple[Path, Path]:
    """(the program without symbols, its debug file in another folder)."""
    whole = compiled("sym_inline.c", "-O2", "-fomit-frame-pointer", "-Wl,--build-id")
    stripped, debug = folder / "inline", folder / "debug" / "any-name"
    debug.parent.mkdir()
    subprocess.run(["objcopy", "--only-keep-debug", whole, debug], check=True)
    subprocess.run(["strip", "-o", stripped, whole], check=True)
    return stripped, debug


def recorded(program: Path, case: Path) -> None:
    """A trace of it while it keeps KEPT mappings."""
    done = False
    with running([program, str(KEPT)]) as child:
        ticks = trace_ticks([child.pid], seconds=20, record=case, stop=lambda: done)
        with contextlib.closing(ticks):
            for tick in ticks:
                if tick.phase == "tracing" and not done:
                    child.tell("go")
                    child.wait_for("done")
                    done = True


def kept(case: Path) -> AllocationSite:
    """The site of the mappings that it kept."""
    with CaseFile.open(case) as file:
        sites = file.load().sites
    found = [s for s in sites if s.outstanding_bytes == KEPT * PAGE and s.allocated_count == KEPT]
    assert len(found) == 1, [(s.outstanding_bytes, s.allocated_count) for s in sites]
    return found[0]


def own(site: AllocationSite, program: Path) -> list[Frame]:
    return [frame for frame in site.stack.frames if frame.module == str(program)]


def named(frames: Sequence[Frame]) -> list[tuple[str | None, bool]]:
    return [(frame.function, frame.inlined) for frame in frames]


def places(frames: Sequence[Frame]) -> list[tuple[str, int | None]]:
    return [(Path(frame.file or "").name, frame.line) for frame in frames]


def expected_places() -> list[tuple[str, int]]:
    lines = (LEAKERS / "sym_inline.c").read_text().splitlines()
    return [
        ("sym_inline.c", next(n for n, line in enumerate(lines, 1) if f"/* in {name} */" in line)) for name, _ in CHAIN
    ]


@pytest.mark.needs_bpf
def test_a_trace_without_symbols_is_named_later(tmp_path: Path) -> None:
    stripped, debug = program(tmp_path)
    case, new = tmp_path / "leak.case", tmp_path / "named.case"
    recorded(stripped, case)

    before = own(kept(case), stripped)
    assert len(before) >= 3
    for frame in before:
        assert (frame.function, frame.file, frame.line) == (None, None, None)
        assert frame.build_id
        assert frame.offset
    stripped.unlink()  # "another machine": nothing of the program is here
    nothing = symbolize(case)
    assert nothing.unnamed[str(stripped), before[0].build_id, NO_FILE] == len({frame.offset for frame in before})
    assert own(kept(case), stripped) == before

    done = memforensics("case", "symbolize", case, "--debug-dir", debug.parent, "--output", new, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["named"] >= 3
    assert told["inlined"] == 2
    after = own(kept(new), stripped)
    assert named(after[: len(CHAIN)]) == CHAIN
    assert places(after[: len(CHAIN)]) == expected_places()
    assert own(kept(case), stripped) == before  # the old one is as it was

    in_place = symbolize(case, folders=[debug])
    assert in_place.named == told["named"]
    assert own(kept(case), stripped) == after
    again = symbolize(case, folders=[debug])
    assert (again.named, again.placed, again.inlined, again.stacks_changed) == (0, 0, 0, 0)


@pytest.mark.needs_bpf
def test_a_debug_file_of_another_build_names_nothing(tmp_path: Path) -> None:
    stripped, _ = program(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(compiled("sym_inline.c", "-O3", "-Wl,--build-id"), other / "inline")
    case = tmp_path / "leak.case"
    recorded(stripped, case)
    stripped.unlink()
    before = kept(case)
    done = symbolize(case, folders=[other])
    assert any(module == str(stripped) and why == NO_FILE for module, _, why in done.unnamed)
    assert own(kept(case), stripped) == own(before, stripped)


@pytest.mark.needs_bpf
def test_a_trace_shows_inlined_functions_at_once(tmp_path: Path) -> None:
    whole = compiled("sym_inline.c", "-O2", "-fomit-frame-pointer", "-Wl,--build-id")
    case = tmp_path / "leak.case"
    recorded(whole, case)
    found = own(kept(case), whole)
    assert named(found[: len(CHAIN)]) == CHAIN
    assert places(found[: len(CHAIN)]) == expected_places()
