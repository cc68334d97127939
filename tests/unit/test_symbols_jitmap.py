"""The map that just-in-time compilers write for perf: what is believed of it, and what is survived."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memforensics.errors import TargetGone
from memforensics.symbols.names import jit_map
from memforensics.symbols.names.jit_map import LOOK_AGAIN_S, JitMap


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now

    def later(self) -> None:
        self.now += LOOK_AGAIN_S


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "perf-1.map"


def opening(path: Path) -> Callable[[], BinaryIO]:
    return lambda: path.open("rb")


def test_names_by_address(path: Path, clock: Clock) -> None:
    path.write_text("1000 20 first one\n1020 10 JS:~second /a b.js:3:4\nffff800000000000 8 far\n")
    names = JitMap(opening(path), clock=clock)
    assert [names.name(pc) for pc in (0xFFF, 0x1000, 0x101F, 0x1020, 0x102F, 0x1030)] == [
        None,
        "first one",
        "first one",
        "JS:~second /a b.js:3:4",
        "JS:~second /a b.js:3:4",
        None,
    ]
    assert names.name(0xFFFF800000000007) == "far"


def test_what_was_appended_is_read_and_a_half_line_waits(path: Path, clock: Clock) -> None:
    path.write_text("1000 20 one\n2000 2")
    names = JitMap(opening(path), clock=clock)
    assert (names.name(0x1000), names.name(0x2000)) == ("one", None)
    with path.open("a") as file:
        file.write("0 two\n")
    assert names.name(0x2000) is None  # not looked at again yet
    clock.later()
    assert (names.name(0x1000), names.name(0x201F)) == ("one", "two")


def test_an_address_that_is_used_again_has_the_later_name(path: Path, clock: Clock) -> None:
    path.write_text("1000 100 old and large\n1080 10 old inside\n1080 20 new inside\n")
    names = JitMap(opening(path), clock=clock)
    assert [names.name(pc) for pc in (0x1000, 0x1080, 0x109F, 0x10A0)] == [
        "old and large",
        "new inside",
        "new inside",
        "old and large",
    ]
    with path.open("a") as file:
        file.write("1040 80 newest\n")
    clock.later()
    assert [names.name(pc) for pc in (0x1000, 0x1080, 0x10BF)] == ["old and large", "newest", "newest"]


def test_another_file_of_that_name_replaces_all(path: Path, clock: Clock) -> None:
    path.write_text("1000 20 one\n")
    names = JitMap(opening(path), clock=clock)
    assert names.name(0x1000) == "one"
    other = path.with_name("other")
    other.write_text("3000 20 three\n")
    other.rename(path)
    clock.later()
    assert (names.name(0x1000), names.name(0x3000)) == (None, "three")
    path.write_text("4000 1 f\n")  # the same file, cut short and written again
    clock.later()
    assert (names.name(0x3000), names.name(0x4000)) == (None, "f")


def test_without_a_file_there_are_no_names_until_there_is_one(path: Path, clock: Clock) -> None:
    names = JitMap(opening(path), clock=clock)
    assert names.name(0x1000) is None
    path.write_text("1000 20 one\n")
    clock.later()
    assert names.name(0x1000) == "one"


def test_what_was_read_outlives_the_process(path: Path, clock: Clock) -> None:
    path.write_text("1000 20 one\n")
    gone = False

    @contextlib.contextmanager
    def opener() -> Iterator[BinaryIO]:
        if gone:
            raise TargetGone(1)
        with path.open("rb") as stream:
            yield stream

    names = JitMap(opener, clock=clock)
    assert names.name(0x1000) == "one"
    gone = True
    clock.later()
    assert names.name(0x1010) == "one"


LINES = st.one_of(
    st.binary(max_size=60),
    st.builds(
        lambda start, size, name: b"%x %x %s" % (start, size, name),
        st.integers(0, 1 << 70),
        st.integers(0, 1 << 40),
        st.binary(max_size=20),
    ),
)


@settings(max_examples=200, deadline=None)
@given(lines=st.lists(LINES, max_size=30), pcs=st.lists(st.integers(0, 1 << 65), min_size=1, max_size=5))
def test_any_content_gives_a_name_or_none(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], pcs: list[int]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.map"
    path.write_bytes(b"\n".join(lines))
    names = JitMap(opening(path))
    for pc in pcs:
        name = names.name(pc)
        assert name is None or len(name) <= 512 * 4


def test_a_line_without_an_end_is_bounded(path: Path, clock: Clock) -> None:
    path.write_bytes(b"1000 20 " + b"x" * 100_000 + b"\n2000 20 two\n")
    names = JitMap(opening(path), clock=clock)
    first = names.name(0x1000)
    assert first is not None
    assert len(first) == 512
    assert names.name(0x2000) == "two"


def test_a_sparse_file_of_a_terabyte_is_not_read(path: Path, clock: Clock) -> None:
    path.write_text("1000 20 one\n")
    os.truncate(path, 1 << 40)
    names = JitMap(opening(path), clock=clock)
    assert names.name(0x1000) == "one"


def test_entries_beyond_the_limit_are_left_out(path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit_map, "_MAX_ENTRIES", 1000)
    path.write_text("".join(f"{0x1000 + 32 * number:x} 20 f{number}\n" for number in range(2000)))
    names = JitMap(opening(path), clock=clock)
    assert names.name(0x1000 + 32 * 999) == "f999"
    assert names.name(0x1000 + 32 * 1000) is None


def test_a_stream_that_is_no_file_is_refused(clock: Clock) -> None:
    assert JitMap(lambda: io.BytesIO(b"1000 20 one\n"), clock=clock).name(0x1000) is None
