"""Code objects and strings read from memory: from our own process, and from hostile bytes."""

import contextlib
import ctypes
import inspect
import struct
import sys
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memforensics.errors import MemforensicsError
from memforensics.runtimes.cpython.code import MAX_TEXT, CodeReader, NotPython, read_bytes_object, read_text
from memforensics.runtimes.cpython.offsets import UnsupportedPython, debug_offsets, known_versions, offsets_for
from memforensics.target.memory import BytesMemory, Unreadable

HERE = offsets_for(sys.version_info[:2])


@dataclass(frozen=True, slots=True)
class OwnMemory:
    """The memory of this process, in which the objects are alive."""

    def read(self, address: int, size: int) -> bytes:
        return ctypes.string_at(address, size)


@pytest.mark.parametrize(
    "text",
    ["", "plain", "größe", "日本", "snake_🐍", "\ud800 alone", "x" * 5000],
    ids=["empty", "ascii", "latin-1", "ucs2", "ucs4", "surrogate", "long"],
)
def test_strings_of_every_kind(text: str) -> None:
    expected = text[:MAX_TEXT].replace("\ud800", "�")
    assert read_text(OwnMemory(), HERE, id(text)) == expected


@given(st.text(max_size=60))
def test_any_string(text: str) -> None:
    assert read_text(OwnMemory(), HERE, id(text)) == text


def test_a_code_object_of_ours() -> None:
    def inner() -> int:
        return (
            sys.maxsize
            + 1
        )  # fmt: skip

    reader = CodeReader(OwnMemory(), HERE)
    code = reader.read(id(inner.__code__))
    assert code.filename == __file__
    assert code.first_line == inner.__code__.co_firstlineno
    assert code.qualname == getattr(inner.__code__, "co_qualname", "inner")
    for start, _, line in inner.__code__.co_lines():
        assert line is None or code.line(start) == line
    assert code.line(-2) == code.first_line
    assert reader.read(id(inner.__code__)) is code
    frame = inspect.currentframe()
    assert frame is not None
    found, line = reader.frame(id(frame.f_code), frame.f_lasti), frame.f_lineno
    assert found is not None
    assert found.line == line


def test_a_code_object_that_is_gone_has_no_names() -> None:
    frame = CodeReader(BytesMemory(0, b""), HERE).frame(0x1000, 4)
    assert frame is not None
    assert (frame.kind, frame.function, frame.line, frame.guessed) == ("python", None, None, True)


@pytest.mark.parametrize("version", known_versions(), ids=str)
@given(data=st.binary(max_size=600), address=st.integers(0x1000 - 16, 0x1000 + 600))
def test_hostile_bytes_never_crash(version: tuple[int, int], data: bytes, address: int) -> None:
    memory, offsets = BytesMemory(0x1000, data), offsets_for(version)
    for read in (read_text, read_bytes_object):
        with contextlib.suppress(NotPython, Unreadable):
            assert len(read(memory, offsets, address)) <= 600
    with contextlib.suppress(MemforensicsError):
        CodeReader(memory, offsets).read(address)


@pytest.mark.parametrize("pointer", [0, 0x1000, 0x1040, 2**64 - 1])
@given(words=st.lists(st.integers(0, 2**64 - 1), min_size=40, max_size=40))
def test_code_objects_that_point_into_themselves(pointer: int, words: list[int]) -> None:
    for place in (HERE.code_filename, HERE.code_qualname, HERE.code_linetable):
        words[place // 8] = pointer
    with contextlib.suppress(MemforensicsError):
        CodeReader(BytesMemory(0x1000, struct.pack("<40Q", *words)), HERE).read(0x1000)


def test_the_table_is_the_measured_one() -> None:
    """Compared with figures taken from the headers by hand, not by the generator."""
    assert [offsets_for(version).thread_ident for version in known_versions()] == [176, 176, 176, 152, 136, 152]
    assert [offsets_for(version).native_thread_id for version in known_versions()] == [None] * 3 + [160, 144, 160]
    assert [offsets_for(version).runtime_size for version in known_versions()[:3]] == [1464, 656, 672]
    assert [offsets_for(version).code_start for version in known_versions()[3:]] == [184, 192, 200]
    with pytest.raises(UnsupportedPython):
        offsets_for((3, 7))


@given(st.binary(min_size=700, max_size=800))
def test_debug_offsets_are_checked(data: bytes) -> None:
    for version in ((3, 13), (3, 14)):
        about = struct.pack("<QQ", version[0] << 24 | version[1] << 16 | 0xF0, 0)
        for head in (b"", b"xdebugpy", b"xdebugpy" + about):
            with pytest.raises(UnsupportedPython):
                debug_offsets(BytesMemory(0, head + data), 0, version)


def of_3_14(*, free_threaded: int = 0) -> bytes:
    """3.14's debug offsets, group by group as in pycore_debug_offsets.h; 0 for fields that are not used."""
    words = [
        *(0x030E00F0, free_threaded),
        *(0, 0, 808),  # runtime: size, finalizing, interpreters_head
        *(0, 7272, 7264, 7344, *[0] * 10),  # interpreter: size, id, next, threads_head, ...
        *(0, 0, 8, 16, 72, 152, 160, 0, 0),  # thread: size, prev, next, interp, current_frame, thread_id, native, ...
        *(0, 8, 0, 56, 80, 74, 64),  # frame: size, previous, executable, instr_ptr, localsplus, owner, stackpointer
        *(0, 112, 120, 128, 136, 68, 0, 0, 0, 208),  # code: size, filename, name, qualname, linetable, firstlineno, ...
        *(16, 8),  # object: size, type
        *([0] * (4 + 3 + 3 + 4 + 3 + 2 + 3)),  # type, tuple, list, set, dict, float, long
        *(0, 16, 32),  # bytes: size, ob_size, ob_sval
        *(0, 32, 16, 40),  # str: size, state, length, the size of an ASCII one
    ]
    return b"xdebugpy" + struct.pack(f"<{len(words)}Q", *words) + bytes(64)


def test_3_14_by_its_debug_offsets() -> None:
    found = debug_offsets(BytesMemory(0x1000, of_3_14()), 0x1000, (3, 14))
    places = (found.interpreters_head, found.interpreter_id, found.interpreter_next, found.threads_head)
    assert places == (808, 7272, 7264, 7344)
    assert (found.thread_next, found.thread_frame, found.thread_ident, found.native_thread_id) == (8, 72, 152, 160)
    assert (found.frame_previous, found.frame_code, found.frame_instruction, found.frame_mark) == (8, 0, 56, 74)
    code = (found.code_filename, found.code_qualname, found.code_linetable, found.code_firstlineno, found.code_start)
    assert code == (112, 128, 136, 68, 208)
    assert (found.bytes_size, found.bytes_data, found.unicode_length, found.unicode_state) == (16, 32, 16, 32)
    text = struct.pack("<QQqqII", 1, 0, 3, -1, (1 | 1 << 3 | 1 << 4) << 16, 0) + b"abc"
    assert read_text(BytesMemory(0x1000, text.ljust(64, b"\0")), found, 0x1000) == "abc"
    with pytest.raises(UnsupportedPython, match="free-threaded"):
        debug_offsets(BytesMemory(0x1000, of_3_14(free_threaded=1)), 0x1000, (3, 14))
