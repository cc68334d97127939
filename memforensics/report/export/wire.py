"""The protobuf wire format, as much as pprof and Perfetto need: varints and length-delimited fields.

Encoding of https://protobuf.dev/programming-guides/encoding. A message is the bytes of its fields, one after another.
"""

from collections.abc import Iterable


def varint(value: int) -> bytes:
    """Base 128, least significant group first. Negative numbers as their 64-bit two's complement."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    """A field of type int64, uint64, int32, uint32, bool or enum."""
    return varint(field << 3) + varint(value)


def block(field: int, value: bytes | str) -> bytes:
    """A field of type bytes, string or message."""
    data = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(data)) + data


def numbers(field: int, values: Iterable[int]) -> bytes:
    """A packed repeated field."""
    return block(field, b"".join(map(varint, values)))
