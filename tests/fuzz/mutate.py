"""Damage to real inputs, the same for the same seed."""

import random
import re
import struct
from collections.abc import Sequence

_NUMBER = re.compile(rb"[0-9]+")
_WORDS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 32, 1 << 40, 1 << 62, 1 << 63, (1 << 64) - 1)
_TEXTS = (
    *(b"0", b"-1", b"00", b"1_0", b"1e999", b"nan", b"NaN", b"inf", b"99999999999999999999", b"9" * 5000, b"0x10"),
    *(b"\xd9\xa1", b"\xc2\xb2", b"\xff", b"\xf0\x9f", b"\xed\xb2\x80", b"\xc2\x85", b"\xe2\x80\xa8", b"\x1c", b"\r"),
    *(b"\0", b"\n", b"\t", b" ", b":", b",", b"(", b")", b"/", b"..", b'"', b"\\", b"\\012", b"\x1b]0;x\x07", b""),
)


def mutated(seeds: Sequence[bytes], pick: random.Random, tokens: Sequence[bytes] = ()) -> bytes:
    """One of the seeds, damaged in 1 to 8 places."""
    data = bytearray(pick.choice(seeds))
    for _ in range(pick.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        at = pick.randrange(len(data) + 1)
        size = min(pick.choice((1, 1, 2, 4, 8, 16, 64, 256)), len(data) - at)
        match pick.randrange(11):
            case 0:
                data[at : at + 1] = bytes([pick.randrange(256)])
            case 1:
                if size:
                    data[at] ^= 1 << pick.randrange(8)
            case 2:
                data[at:at] = pick.randbytes(pick.choice((1, 2, 8, 100)))
            case 3:
                del data[at : at + size]
            case 4:
                data[at:at] = data[at : at + size] * pick.choice((1, 1, 3, 50))
            case 5:
                other = pick.choice(seeds)
                begin = pick.randrange(len(other) + 1)
                data[at : at + size] = other[begin : begin + max(size, 1)]
            case 6:
                del data[at:]
            case 7:  # a word, at a multiple of 8
                word = pick.choice(_WORDS) if pick.randrange(2) else pick.getrandbits(64)
                at -= at % 8
                width = pick.choice("BHIQ")
                packed = struct.pack(f"<{width}", word & ((1 << 8 * struct.calcsize(width)) - 1))
                data[at : at + len(packed)] = packed
            case 8:  # a number in place of a number
                numbers = list(_NUMBER.finditer(data[at : at + 4096]))
                if numbers:
                    chosen = pick.choice(numbers)
                    new = pick.choice(_TEXTS) if pick.randrange(2) else str(pick.getrandbits(66)).encode()
                    data[at + chosen.start() : at + chosen.end()] = new
            case 9:
                data[at : at + pick.choice((0, size))] = pick.choice(_TEXTS)
            case _:
                data[at : at + pick.choice((0, size))] = pick.choice(tokens or _TEXTS)
    return bytes(data)
