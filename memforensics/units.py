"""Sizes, rates and times to text and back. This module imports nothing of the project."""

import re

KIB, MIB, GIB, TIB = 1024, 1024**2, 1024**3, 1024**4
NS_PER_S = 1_000_000_000
NS_PER_MINUTE = 60 * NS_PER_S

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}


def size_text(size_bytes: float) -> str:
    """Bytes as text in binary units: 0 B, 912 B, 16.0 KiB, 1.4 GiB. A negative size keeps its sign."""
    sign = "-" if size_bytes < 0 else ""
    size = abs(size_bytes)
    if size < KIB:
        return f"{sign}{size:.0f} B"
    for factor, unit in ((KIB, "KiB"), (MIB, "MiB"), (GIB, "GiB"), (TIB, "TiB")):
        if size < factor * 999.5 or unit == "TiB":
            value = size / factor
            return f"{sign}{value:.1f} {unit}" if value < 99.95 else f"{sign}{value:.0f} {unit}"
    raise AssertionError("unreachable")


def change_text(size_bytes: float) -> str:
    """A difference in bytes with its sign; zero is `0 B`."""
    return ("+" if size_bytes > 0 else "") + size_text(size_bytes)


def rate_text(bytes_per_minute: float) -> str:
    """Bytes a minute as text: +12.3 MiB/min."""
    return f"{change_text(bytes_per_minute)}/min"


def count_text(count: int) -> str:
    """A count in at most seven columns: 999,999, 1.5 M, 12 G."""
    for factor, unit in ((10**9, "G"), (10**6, "M")):
        if count >= factor:
            value = count / factor
            return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"
    return f"{count:,}"


def counted_text(count: int, word: str) -> str:
    """A count with its noun: 1 block, 2,753 blocks."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def duration_text(seconds: float) -> str:
    """Seconds as text in at most two units: 350 ms, 12 s, 3 m 20 s, 5 h 2 m, 4 d 3 h."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10 and seconds != int(seconds):
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for big, big_unit, small, small_unit in (
        (60, "m", 1, "s"),
        (3600, "h", 60, "m"),
        (86400, "d", 3600, "h"),
    ):
        if whole < {60: 3600, 3600: 86400}.get(big, float("inf")):
            major, rest = divmod(whole, big)
            minor = rest // small
            return f"{major} {big_unit} {minor} {small_unit}" if minor else f"{major} {big_unit}"
    raise AssertionError("unreachable")


def parse_duration(text: str) -> float:
    """Text such as `60s`, `2m`, `500ms`, `1h30m`, `45` to seconds. ValueError for any other text."""
    rest = text.strip().lower()
    total, position = 0.0, 0
    for match in _DURATION.finditer(rest):
        if match.start() != position:
            break
        total += float(match[1]) * _SECONDS[match[2]]
        position = match.end()
    if not rest or position != len(rest):
        raise ValueError(f"{text!r} is not a duration; write 60s, 2m or 500ms")
    return total


def parse_share(text: str) -> float:
    """Text such as `1%` or `0.5 %` to a share: 0.01, 0.005. ValueError for any other text and for 0."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+) ?%", text.strip())
    if not match or float(match[1]) <= 0:
        raise ValueError(f"{text!r} is not a share; write 1% or 0.5%")
    return float(match[1]) / 100
