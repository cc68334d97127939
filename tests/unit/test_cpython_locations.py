"""Line tables compared with the running interpreter's own answers."""

import itertools
import sys
from types import CodeType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memforensics.runtimes.cpython.locations import LineRange, line_at, ranges

VERSION = sys.version_info[:2]
TABLES = [(3, 8), (3, 9), (3, 10), (3, 11), (3, 12), (3, 13), (3, 14)]


def codes_of(code: CodeType) -> list[CodeType]:
    found = [code]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found += codes_of(constant)
    return found


def table_of(code: CodeType) -> bytes:
    return bytes(code.co_linetable)


@st.composite
def sources(draw: st.DrawFn) -> str:
    """Programs whose statements lie on lines far apart, go back, nest and span several lines."""
    lines: list[str] = []
    for number in range(draw(st.integers(1, 8))):
        lines += [""] * draw(st.integers(0, 300))
        gap = "\n" * draw(st.integers(0, 130))
        kind = draw(st.sampled_from(["call", "loop", "try", "with", "def", "comprehension"]))
        lines += {
            "call": [f"print(1,{gap} f(2,{gap} 3),{gap} [x for x in y])"],
            "loop": ["for i in y:", f"    if i:{gap or ' '}" if not gap else "    if i:", f"        z = (i{gap} + 1)"],
            "try": ["try:", f"    f({gap})", "except ValueError as e:", "    pass", "finally:", "    g()"],
            "with": ["with a as b:", f"    c = b({gap}a)"],
            "def": [f"def f{number}(a, b={gap or ' '}1):" if not gap else f"def f{number}(a):", "    yield a", "    "],
            "comprehension": [f"q = {{k:{gap}v for k in y for v in k if v}}"],
        }[kind]
    return "\n".join(lines) + "\n"


@given(sources())
def test_every_instruction_has_the_line_that_the_interpreter_says(source: str) -> None:
    for code in codes_of(compile(source, "program.py", "exec")):
        ours = list(ranges(VERSION, table_of(code), code.co_firstlineno))
        said = {offset: line for start, end, line in code.co_lines() for offset in range(start, end, 2)}
        mine = {offset: line for start, end, line in ours for offset in range(start, end, 2)}
        assert mine == said
        for offset, line in said.items():
            if line is not None:
                assert line_at(ours, offset, code.co_firstlineno) == line


@pytest.mark.parametrize("version", TABLES, ids=str)
@given(table=st.binary(max_size=400), first=st.integers(-(2**31), 2**31 - 1), at=st.integers(-2, 4000))
def test_damaged_tables_give_ordered_ranges(version: tuple[int, int], table: bytes, first: int, at: int) -> None:
    found = list(ranges(version, table, first))
    assert all(piece.start < piece.end for piece in found)
    assert all(one.end == other.start for one, other in itertools.pairwise(found))
    assert len(found) <= len(table) + 1
    assert isinstance(line_at(found, at, first), int)


def test_code_without_a_line_takes_the_line_before_it() -> None:
    pieces = [LineRange(0, 4, 10), LineRange(4, 8, None), LineRange(8, 12, 11)]
    assert [line_at(pieces, at, 9) for at in (0, 2, 4, 8, 100)] == [10, 10, 10, 11, 11]
    assert line_at([LineRange(0, 4, None)], 0, 9) == 9
