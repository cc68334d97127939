"""stat, status and mountinfo of a process. Pure: takes their text."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from memforensics.case.model import Rollup
from memforensics.errors import UnknownForm
from memforensics.units import KIB

_NUMBER = re.compile(r"[0-9]{1,20}")


def number(text: str) -> int | None:
    """A decimal number as the kernel prints it, below 2**64. None for anything else: int() also accepts "1_0", " 1" and
    "\N{ARABIC-INDIC DIGIT ONE}"."""
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
    """/proc/PID/stat. The command name may hold spaces, parentheses and any bytes. UnknownForm for any other text."""
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
    """The numbers in a line of status (Uid, NSpid, Threads). () if the line is missing or holds anything else."""
    found = tuple(map(number, status.get(key, "").split()))
    return tuple(value for value in found if value is not None) if None not in found else ()


def status_bytes(status: dict[str, str], key: str) -> int | None:
    """A `kB` field of status in bytes. None if the kernel does not print it: absent is not zero."""
    value = status.get(key)
    if value is None or not value.endswith(" kB"):
        return None
    size = number(value[:-3].strip(" "))
    return None if size is None else size * KIB


def lines_of(text: str) -> list[str]:
    """The lines of a text. Only a newline ends one: a name may hold other characters at which splitlines() splits."""
    return text.removesuffix("\n").split("\n") if text else []


def parse_rollup(status_text: str) -> Rollup | None:
    """The kernel's figures in /proc/PID/status. None if it prints no memory (kernel thread, exiting, before 4.5)."""
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
    """Devices ("00:1a", as in maps) of the tmpfs mounts in /proc/PID/mountinfo: pages of files there are RssShmem, not
    page cache. Lines of another form are skipped."""
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
