"""Parsers of /proc text: pure, take text, count what they could not read."""

import re
from dataclasses import dataclass

from memforensics.case.model import Mapping
from memforensics.units import KIB

# fs/proc/task_mmu.c, show_map_vma(): "%lx-%lx %c%c%c%c %08llx %02x:%02x %lu " and, padded, the name.
_MAPS_LINE = re.compile(
    r"(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) (?P<perms>[r-][w-][x-][sp]) (?P<offset>[0-9a-f]+) "
    r"(?P<device>[0-9a-f]+:[0-9a-f]+) (?P<inode>\d+)(?: +(?P<path>.*))?"
)


@dataclass(frozen=True, slots=True)
class StatLine:
    """The fields of /proc/PID/stat that identify a process (proc_pid_stat(5))."""

    pid: int
    comm: str
    state: str  # R, S, D, Z, T, t, X
    ppid: int
    flags: int
    threads: int
    start_ticks: int

    @property
    def is_kernel_thread(self) -> bool:
        return bool(self.flags & 0x00200000)  # PF_KTHREAD, include/linux/sched.h


def parse_stat(text: str) -> StatLine:
    """/proc/PID/stat. The command name may hold spaces and parentheses. ValueError when it is not such a line."""
    opening, closing = text.index("("), text.rindex(")")
    fields = text[closing + 2 :].split()
    return StatLine(
        pid=int(text[:opening]),
        comm=text[opening + 1 : closing],
        state=fields[0],
        ppid=int(fields[1]),
        flags=int(fields[6]),
        threads=int(fields[17]),
        start_ticks=int(fields[19]),
    )


def parse_status(text: str) -> dict[str, str]:
    """/proc/PID/status as key -> text after the colon."""
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def status_bytes(status: dict[str, str], key: str) -> int | None:
    """A `kB` field of status in bytes. None when the kernel does not print it (absent is not zero)."""
    value = status.get(key)
    if value is None or not value.endswith(" kB"):
        return None
    return int(value[:-3]) * KIB


@dataclass(frozen=True, slots=True)
class ParsedMaps:
    mappings: tuple[Mapping, ...]
    unparsed_lines: int = 0


def parse_maps(text: str) -> ParsedMaps:
    """/proc/PID/maps."""
    mappings: list[Mapping] = []
    unparsed = 0
    for line in text.splitlines():
        found = _MAPS_LINE.fullmatch(line)
        if found is None:
            unparsed += 1
            continue
        mappings.append(
            Mapping(
                start=int(found["start"], 16),
                end=int(found["end"], 16),
                perms=found["perms"],
                offset=int(found["offset"], 16),
                device=found["device"],
                inode=int(found["inode"]),
                path=unescape_path(found["path"] or ""),
            )
        )
    return ParsedMaps(tuple(mappings), unparsed)


def unescape_path(path: str) -> str:
    r"""The kernel writes a newline in a path as \012 (seq_path(), fs/seq_file.c)."""
    return path.replace("\\012", "\n") if "\\012" in path else path
