"""A parser of GDB/MI output, from bytes to records. Pure.

The grammar is in the GDB manual, "GDB/MI Output Syntax". The input may be damaged: lines and nesting are bounded, every
byte is read a constant number of times, and anything that is not MI raises MiError.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Union

from memforensics.errors import ProbeFailed

MAX_LINE_BYTES = 8 << 20  # -thread-info of 40,000 threads
MAX_DEPTH = 16

Value = Union[str, "list[Value]", "Tuple"]
Tuple = dict[str, Value]
Kind = Literal["result", "exec", "status", "notify", "stream", "prompt"]

_KINDS: dict[bytes, Kind] = {b"^": "result", b"*": "exec", b"+": "status", b"=": "notify"}
_HEAD = re.compile(rb"(\d{0,18})([\^*+=])([a-z-]{1,64})(?=,|$)")
_NAME = re.compile(rb"([A-Za-z_][\w-]{0,63})=")
_STRING = re.compile(rb'"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL)
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|.)", re.DOTALL)
_ESCAPED = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v", b"e": b"\x1b"}


class MiError(ProbeFailed):
    """The output of gdb is not GDB/MI, or lacks a value."""

    def __init__(self, why: str) -> None:
        super().__init__("the output of gdb cannot be read", why=why, enable="run the command again")


@dataclass(frozen=True, slots=True)
class Record:
    """One line. `message` is the class of a result or event (done, error, stopped), or the text of a stream. A result
    has the token of its command."""

    kind: Kind
    message: str
    payload: Tuple = field(default_factory=dict)
    token: int | None = None


class MiReader:
    """Splits a stream into lines and parses them."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # of the incomplete line
        self._size = 0

    def feed(self, data: bytes) -> Iterator[Record]:
        """The records that this data completes. MiError."""
        *complete, rest = data.split(b"\n")
        for line in complete:
            self._add(line)
            whole, self._pieces, self._size = b"".join(self._pieces), [], 0
            yield parse_line(whole)
        self._add(rest)

    def _add(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > MAX_LINE_BYTES:
            raise MiError(f"a line is longer than {MAX_LINE_BYTES >> 20} MiB")
        self._pieces.append(piece)


def parse_line(line: bytes) -> Record:
    """One line of output, without its newline. MiError."""
    line = line.removesuffix(b"\r")
    if line.rstrip() == b"(gdb)":
        return Record("prompt", "")
    if line[:1] in (b"~", b"@", b"&"):
        text, end = _string(line, 1)
        if end != len(line):
            raise _not_mi(line, end)
        return Record("stream", text)
    head = _HEAD.match(line)
    if head is None:
        raise _not_mi(line, 0)
    payload: Tuple = {}
    position = head.end()
    if position < len(line):
        payload, position = _results(line, position + 1, 0)
    if position != len(line):
        raise _not_mi(line, position)
    token = int(head[1]) if head[1] else None
    return Record(_KINDS[head[2]], head[3].decode("ascii"), payload, token)


def _results(line: bytes, position: int, depth: int) -> tuple[Tuple, int]:
    """`name=value,name=value`. Of equal names the last counts."""
    found: Tuple = {}
    while True:
        name = _NAME.match(line, position)
        if name is None:
            raise _not_mi(line, position)
        found[name[1].decode("ascii")], position = _value(line, name.end(), depth)
        if line[position : position + 1] != b",":
            return found, position
        position += 1


def _value(line: bytes, position: int, depth: int) -> tuple[Value, int]:
    first = line[position : position + 1]
    if first == b'"':
        return _string(line, position)
    if depth >= MAX_DEPTH:
        raise MiError(f"nested deeper than {MAX_DEPTH}")
    if first == b"{":
        if line[position + 1 : position + 2] == b"}":
            return {}, position + 2
        found, position = _results(line, position + 1, depth + 1)
        return found, _closed(line, position, b"}")
    if first == b"[":
        return _list(line, position + 1, depth + 1)
    raise _not_mi(line, position)


def _list(line: bytes, position: int, depth: int) -> tuple[list[Value], int]:
    """A list of values, or of `name=value`, whose names are dropped."""
    found: list[Value] = []
    if line[position : position + 1] == b"]":
        return found, position + 1
    while True:
        name = _NAME.match(line, position)
        value, position = _value(line, name.end() if name else position, depth)
        found.append(value)
        if line[position : position + 1] != b",":
            return found, _closed(line, position, b"]")
        position += 1


def _closed(line: bytes, position: int, by: bytes) -> int:
    if line[position : position + 1] != by:
        raise _not_mi(line, position)
    return position + 1


def _string(line: bytes, position: int) -> tuple[str, int]:
    found = _STRING.match(line, position)
    if found is None:
        raise _not_mi(line, position)
    return _ESCAPE.sub(_unescaped, found[1]).decode("utf-8", "replace"), found.end()


def _unescaped(escape: re.Match[bytes]) -> bytes:
    what = escape[1]
    return bytes([int(what, 8) & 0xFF]) if what.isdigit() and what < b"8" else _ESCAPED.get(what, what)


def _not_mi(line: bytes, position: int) -> MiError:
    return MiError(f"not GDB/MI at byte {position}: {line[position : position + 40]!r}")


# --- values of a payload ---------------------------------------------------------------------------------------------


def text_of(payload: Tuple, name: str) -> str:
    """A string. MiError if there is none with that name."""
    value = payload.get(name)
    if not isinstance(value, str):
        raise MiError(f"no text {name!r}")
    return value


def texts_of(payload: Tuple, name: str) -> list[str]:
    """A list of strings."""
    values = payload.get(name)
    if not isinstance(values, list):
        raise MiError(f"no list {name!r}")
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) != len(values):
        raise MiError(f"not only text in {name!r}")
    return texts


def tuples_of(payload: Tuple, name: str) -> list[Tuple]:
    """A list of tuples."""
    values = payload.get(name)
    if not isinstance(values, list):
        raise MiError(f"no list {name!r}")
    tuples = [value for value in values if isinstance(value, dict)]
    if len(tuples) != len(values):
        raise MiError(f"not only tuples in {name!r}")
    return tuples


def number_of(payload: Tuple, name: str) -> int:
    """A number of at most 64 bits, in decimal or 0x hexadecimal."""
    text = text_of(payload, name)
    if not re.fullmatch(r"-?[0-9]{1,20}|0x[0-9a-fA-F]{1,16}", text):
        raise MiError(f"{name!r} is not a number: {text[:40]!r}")
    return int(text, 0 if text.startswith("0x") else 10)
