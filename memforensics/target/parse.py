"""Parsers of /proc text: pure, take text, count what they could not read."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from memforensics.case.model import Mapping
from memforensics.errors import UnknownForm
from memforensics.units import KIB

# fs/proc/task_mmu.c, show_map_vma(): "%lx-%lx %c%c%c%c %08llx %02x:%02x %lu " and, padded, the name.
# Most lines of a process with many are anonymous, and all of those end alike. A name may hold any byte but a newline.
_MAPS_LINE = re.compile(
    r"^([0-9a-f]{1,16})-([0-9a-f]{1,16}) ([r-][w-][x-][sp]) "
    r"(?:00000000 00:00 0 ?|([0-9a-f]{1,16}) ([0-9a-f]{1,8}:[0-9a-f]{1,8}) ([0-9]{1,20})(?: +(.*))?)$",
    re.MULTILINE,
)
_NAMED_OR_CODE = re.compile(r"[x/\[].*")  # what has a file or a name, or may be executed: no x in a hexadecimal number


_NUMBER = re.compile(r"[0-9]{1,20}")


def number(text: str) -> int | None:
    """A decimal number as the kernel prints one, below 2**64. None for anything else (int() takes "1_0", " 1" and
    "\N{ARABIC-INDIC DIGIT ONE}", too)."""
    value = int(text) if _NUMBER.fullmatch(text) else None
    return value if value is not None and value < 1 << 64 else None


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
    """/proc/PID/stat. The command name may hold spaces, parentheses and bytes that are no text. UnknownForm when it is
    not such a line."""
    head, opening, rest = text.partition(" (")
    comm, closing, tail = rest.rpartition(") ")
    fields = tail.split()
    if not opening or not closing or len(fields) < 20 or len(fields[0]) != 1:
        raise UnknownForm("stat")
    pid, ppid, flags, threads, start = map(number, (head, fields[1], fields[6], fields[17], fields[19]))
    if pid is None or ppid is None or flags is None or threads is None or start is None:
        raise UnknownForm("stat", "a field is not a number")
    return StatLine(pid, comm, fields[0], ppid, flags, threads, start)


def parse_status(text: str) -> dict[str, str]:
    """/proc/PID/status as key -> text after the colon."""
    return dict(line.split(":\t", 1) for line in lines_of(text) if ":\t" in line)


def status_numbers(status: dict[str, str], key: str) -> tuple[int, ...]:
    """The numbers of a line of status (Uid, NSpid, Threads). () when it is not there, or holds anything else."""
    found = tuple(map(number, status.get(key, "").split()))
    return tuple(value for value in found if value is not None) if None not in found else ()


def status_bytes(status: dict[str, str], key: str) -> int | None:
    """A `kB` field of status in bytes. None when the kernel does not print it (absent is not zero)."""
    value = status.get(key)
    if value is None or not value.endswith(" kB"):
        return None
    size = number(value[:-3].strip(" "))
    return None if size is None else size * KIB


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
    """Only a newline ends a line: a name may hold what str.splitlines() takes for an end."""
    return text.removesuffix("\n").split("\n") if text else []


def _lines_around(text: str, what: re.Pattern[str]) -> Iterator[str]:
    """The whole lines in which the pattern, which reaches to the end of its line, is found."""
    for match in what.finditer(text):
        yield text[text.rfind("\n", 0, match.start()) + 1 : match.end() + 1]


def unescape_path(path: str) -> str:
    r"""The kernel writes a newline in a path as \012 (seq_path(), fs/seq_file.c)."""
    return path.replace("\\012", "\n") if "\\012" in path else path
