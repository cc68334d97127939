"""Parsers of /proc text: pure, take text, count what they could not read."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from memforensics.case.model import Mapping
from memforensics.units import KIB

# fs/proc/task_mmu.c, show_map_vma(): "%lx-%lx %c%c%c%c %08llx %02x:%02x %lu " and, padded, the name.
# Most lines of a process with many are anonymous, and all of those end alike. A name may hold any byte but a newline.
_MAPS_LINE = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) ([r-][w-][x-][sp]) "
    r"(?:00000000 00:00 0 ?|([0-9a-f]+) ([0-9a-f]+:[0-9a-f]+) ([0-9]+)(?: +(.*))?)$",
    re.MULTILINE,
)
_NAMED_OR_CODE = re.compile(r"[x/\[].*")  # what has a file or a name, or may be executed: no x in a hexadecimal number


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


def parse_maps(text: str, *, named_or_code: bool = False) -> ParsedMaps:
    """/proc/PID/maps. `named_or_code`: only the mappings that have a file or a name, or that may be executed, which
    takes next to nothing however many others there are."""
    if named_or_code:
        text = "".join(_lines_around(text, _NAMED_OR_CODE))
    same: dict[str, str] = {}  # one string for all of a kind
    keep = same.setdefault
    mappings = [
        Mapping(
            start=int(start, 16),
            end=int(end, 16),
            perms=keep(perms, perms),
            offset=int(offset, 16),
            device=keep(device, device),
            inode=int(inode),
            path=keep(path, path) if "\\" not in path else unescape_path(path),
        )
        if device
        else Mapping(
            start=int(start, 16), end=int(end, 16), perms=keep(perms, perms), offset=0, device="00:00", inode=0, path=""
        )
        for start, end, perms, offset, device, inode, path in _MAPS_LINE.findall(text)
    ]
    return ParsedMaps(tuple(mappings), len(lines_of(text)) - len(mappings))


def lines_of(text: str) -> list[str]:
    """Only a newline ends a line of maps: a name may hold what str.splitlines() takes for an end."""
    return text.removesuffix("\n").split("\n") if text else []


def _lines_around(text: str, what: re.Pattern[str]) -> Iterator[str]:
    """The whole lines in which the pattern, which reaches to the end of its line, is found."""
    for match in what.finditer(text):
        yield text[text.rfind("\n", 0, match.start()) + 1 : match.end() + 1]


def unescape_path(path: str) -> str:
    r"""The kernel writes a newline in a path as \012 (seq_path(), fs/seq_file.c)."""
    return path.replace("\\012", "\n") if "\\012" in path else path
