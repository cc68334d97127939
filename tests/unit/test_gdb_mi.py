"""The reader of GDB/MI: what gdb 13.1 printed is read exactly; damaged output gives MiError, in linear time."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memforensics.probes.gdb.mi import (
    MAX_DEPTH,
    MAX_LINE_BYTES,
    MiError,
    MiReader,
    Record,
    Value,
    number_of,
    parse_line,
    text_of,
    texts_of,
    tuples_of,
)

# Lines that gdb 13.1 printed.
STOPPED = (
    b'*stopped,reason="syscall-entry",disp="keep",bkptno="1",syscall-number="9",syscall-name="mmap",'
    b'frame={addr="0x00007fbdfdff2d62",func="??",args=[],arch="i386:x86-64"},thread-id="2",stopped-threads=["2"],core="1"'
)
THREADS = (
    b'^done,threads=[{id="1",target-id="LWP 26861",name="gdb_chain",frame={level="0",addr="0x00007fbdfdfe52ec",'
    b'func="??",args=[],arch="i386:x86-64"},state="stopped",core="0"},{id="2",target-id="LWP 26862",'
    b'name="gdb_chain",state="running"}]'
)
ERROR = b'^error,msg="ptrace: Operation not permitted."'
VALUES = b'^done,register-values=[{number="16",value="0x7fbdfdff2d62"},{number="7",value="0x7fff0"}]'
LINES = (STOPPED, THREADS, ERROR, VALUES, b'~"GNU gdb \\"13.1\\"\\n"', b"(gdb) ", b"^done", b'=group,id="i1"')


def test_lines_of_real_gdb() -> None:
    stop = parse_line(STOPPED)
    assert (stop.kind, stop.message) == ("exec", "stopped")
    assert text_of(stop.payload, "reason") == "syscall-entry"
    assert texts_of(stop.payload, "stopped-threads") == ["2"]
    threads = tuples_of(parse_line(THREADS).payload, "threads")
    assert [(text_of(t, "target-id"), text_of(t, "state")) for t in threads] == [
        ("LWP 26861", "stopped"),
        ("LWP 26862", "running"),
    ]
    assert parse_line(ERROR) == Record("result", "error", {"msg": "ptrace: Operation not permitted."})
    values = tuples_of(parse_line(VALUES).payload, "register-values")
    assert {number_of(v, "number"): number_of(v, "value") for v in values} == {16: 0x7FBDFDFF2D62, 7: 0x7FFF0}
    assert parse_line(b'~"GNU gdb \\"13.1\\"\\n"') == Record("stream", 'GNU gdb "13.1"\n')
    assert parse_line(b"(gdb) ") == Record("prompt", "")
    assert parse_line(b"12^done") == Record("result", "done", token=12)


def test_escapes_are_bytes() -> None:
    assert parse_line(b'&"\\303\\244\\t\\377\\\\"').message == "ä\t�\\"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"hello",
        b"^",
        b"^done,",
        b"^done,a",
        b'^done,a="',
        b'^done,a="x"}',
        b'^done,a={b="x"',
        b'^done,a=["x",]',
        b'^done,a={"x"}',
        b'~"x"y',
        b"^done,a=" + b"[" * (MAX_DEPTH + 1),
        b"^done,a=" + b"[" * 1_000_000,
    ],
)
def test_other_text_is_not_mi(line: bytes) -> None:
    with pytest.raises(MiError):
        parse_line(line)


def test_line_length_is_bounded() -> None:
    reader = MiReader()
    for _ in range(MAX_LINE_BYTES // 65536):
        assert list(reader.feed(b"x" * 65536)) == []
    with pytest.raises(MiError, match="longer"):
        list(reader.feed(b"x"))


@pytest.mark.parametrize("piece", [b'"', b"\\", b'\\"', b"{a=", b"[", b'a="x",', b"1", b'"x",', b"\\1"])
def test_long_damaged_lines_take_linear_time(piece: bytes) -> None:
    """The time is linear in the size. Otherwise this would take hours."""
    for start in (b"", b"^done,", b'^done,a="', b"^done,a=[", b'~"'):
        with contextlib.suppress(MiError):
            parse_line(start + piece * (200_000 // len(piece)))


@given(st.binary(max_size=300))
def test_any_bytes_give_records_or_our_error(data: bytes) -> None:
    with contextlib.suppress(MiError):
        list(MiReader().feed(data + b"\n"))


@given(st.sampled_from(LINES), st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3)), min_size=1, max_size=4))
def test_damaged_lines_give_records_or_our_error(line: bytes, damages: list[tuple[int, bytes]]) -> None:
    for at, what in damages:
        line = line[:at] + what + line[at + 1 :]
    try:
        records = list(MiReader().feed(line + b"\n"))
    except MiError:
        return
    for record in records:
        for name in ("threads", "register-values", "msg", "reason", "thread-id", "id"):
            for read in (text_of, texts_of, tuples_of, number_of):
                with contextlib.suppress(MiError):
                    read(record.payload, name)


NAMES = st.from_regex("[a-z][a-z-]{0,5}", fullmatch=True)
VALUES_OF_ALL_KINDS: st.SearchStrategy[Value] = st.recursive(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.from_regex("[a-z][a-z-]{0,5}", fullmatch=True), inner, max_size=3)
    ),
    max_leaves=12,
)


def written(value: Value) -> str:
    """As gdb writes it: other than printable ASCII in octal."""
    if isinstance(value, str):
        out = "".join(
            chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in value.encode()
        )
        return f'"{out}"'
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    return "{" + ",".join(f"{name}={written(one)}" for name, one in value.items()) + "}"


@given(VALUES_OF_ALL_KINDS, st.integers(1, 40))
def test_stream_in_any_pieces_gives_the_same_records(value: Value, size: int) -> None:
    line = f"^done,it={written(value)}\n".encode()
    reader = MiReader()
    found: list[Record] = []
    for start in range(0, len(line), size):
        found += reader.feed(line[start : start + size])
    assert found == [Record("result", "done", {"it": value})], json.dumps(value)
