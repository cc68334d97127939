"""Parsers of /proc/PID/smaps and smaps_rollup: pure, take text, count what they could not read."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from msgspec import structs

from memforensics.case.model import Mapping, Rollup
from memforensics.target.parse import lines_of, number, parse_maps, parse_status, status_bytes
from memforensics.units import KIB

# fs/proc/task_mmu.c, __show_smap(): key -> field of Mapping. What we do not keep is passed over, not counted as lost.
FIELDS = {
    "Rss": "rss",
    "Pss": "pss",
    "Anonymous": "anonymous",
    "Private_Dirty": "private_dirty",
    "Swap": "swap",
    "Locked": "locked",
    "AnonHugePages": "anon_huge",
    "ShmemPmdMapped": "shmem_huge",
    "FilePmdMapped": "file_huge",
}
_KEY_VALUE = re.compile(r"([A-Za-z][A-Za-z_]*): *([0-9]{1,19})(?: kB)?")


@dataclass(frozen=True, slots=True)
class ParsedSmaps:
    mappings: tuple[Mapping, ...]
    unparsed_lines: int = 0


def parse_smaps(text: str) -> ParsedSmaps:
    """/proc/PID/smaps, line by line (smaps_bulk.py does it fast). Fields that this kernel does not print stay None. A
    detail line before any mapping, and a line of no known form, count as unparsed."""
    mappings: list[Mapping] = []
    values: dict[str, Any] = {}
    unparsed = 0
    current: Mapping | None = None
    for line in lines_of(text):
        key, colon, value = line.partition(":")
        field = FIELDS.get(key) if colon else None
        if field is not None and current is not None and line.endswith(" kB"):
            size = number(value[:-3].strip())
            if size is not None:
                values[field] = size * KIB
            else:
                unparsed += 1
        elif key == "VmFlags" and current is not None:
            values["flags"] = value.strip()
        elif current is not None and _KEY_VALUE.fullmatch(line):
            continue
        else:
            header = parse_maps(line).mappings
            if len(header) != 1:
                unparsed += 1
                continue
            if current is not None:
                mappings.append(structs.replace(current, **values))
            current, values = header[0], {}
    if current is not None:
        mappings.append(structs.replace(current, **values))
    return ParsedSmaps(tuple(mappings), unparsed)


@dataclass(frozen=True, slots=True)
class ParsedRollup:
    """The sums of smaps_rollup in bytes; None for what this kernel does not print (Pss_Anon and its like: 5.3+)."""

    rss: int | None = None
    pss: int | None = None
    anonymous: int | None = None
    swap: int | None = None
    locked: int | None = None
    anon_huge: int | None = None
    shmem_huge: int | None = None
    file_huge: int | None = None
    unparsed_lines: int = 0


def parse_smaps_rollup(text: str) -> ParsedRollup:
    """/proc/PID/smaps_rollup: a header line of the whole range, then the sums."""
    wanted = {key: field for key, field in FIELDS.items() if field != "private_dirty"}
    found: dict[str, int] = {}
    unparsed = 0
    for line in lines_of(text):
        match = _KEY_VALUE.fullmatch(line)
        if match is None:
            unparsed += not line.endswith("[rollup]")
        elif match[1] in wanted:
            found[wanted[match[1]]] = int(match[2]) * KIB
    return ParsedRollup(**found, unparsed_lines=unparsed)


def parse_rollup(status_text: str) -> Rollup | None:
    """The kernel's own figures from /proc/PID/status. None when it prints no memory (kernel thread, exiting, < 4.5)."""
    status = parse_status(status_text)
    anon, file_, shmem = (status_bytes(status, key) for key in ("RssAnon", "RssFile", "RssShmem"))
    if anon is None or file_ is None or shmem is None:
        return None
    return Rollup(
        rss_anon=anon,
        rss_file=file_,
        rss_shmem=shmem,
        swap=status_bytes(status, "VmSwap"),
        hugetlb=status_bytes(status, "HugetlbPages"),
        locked=status_bytes(status, "VmLck"),
    )


def tmpfs_devices(mountinfo: str) -> frozenset[str]:
    """Devices ("00:1a", as maps spells them) of the tmpfs mounts in /proc/PID/mountinfo: pages of files there are
    RssShmem, not page cache. Lines of another form are passed over."""
    return frozenset(_devices(lines_of(mountinfo), "tmpfs"))


def _devices(lines: Iterable[str], fs_type: str) -> Iterable[str]:
    for line in lines:
        left, separator, right = line.partition(" - ")  # proc_pid_mountinfo(5): optional fields end at " - "
        words = left.split()
        if not separator or len(words) < 5 or right.split(" ", 1)[0] != fs_type:
            continue
        major, minor = (number(text) for text in words[2].partition(":")[::2])
        if major is not None and minor is not None:
            yield f"{major:02x}:{minor:02x}"
