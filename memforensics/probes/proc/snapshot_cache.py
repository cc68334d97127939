"""Reads a process again of which little changed.

A mapping whose line in maps is unchanged keeps its figures and the time at which they were read (Mapping.read_ns), as
long as the sum over all mappings follows the kernel's own figure. Each time an eighth of the mappings is read anew, and
every new mapping. If the sum no longer follows, everything is read.
"""

from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import cast

from memforensics.case.model import Mapping, OwnerMark
from memforensics.runtimes.scene import NegativeCache
from memforensics.target import Process
from memforensics.target.hugetlb import hugetlb_devices
from memforensics.target.maps import columns_of
from memforensics.target.pagemap import Pagemap
from memforensics.units import MIB

TURNS = 8  # snapshots in which every mapping is read once
_MAX_NEW = 8  # everything is read if more than one in so many lines is new
_SLACK_BYTES, _SLACK_SHARE = MIB, 512  # between the change of the sum and that of the kernel's figure

_RSS = attrgetter("rss")


@dataclass(slots=True)
class SnapshotCache:
    """What earlier snapshots of one process found. Empties itself for another process or program."""

    marks: tuple[OwnerMark, ...] = ()
    negative: NegativeCache = field(default_factory=NegativeCache)
    _identity: object = None
    _maps: bytes = b""
    _mappings: tuple[Mapping, ...] = ()
    _surplus: int | None = None  # the kernel's figure minus the sum, when everything was read
    _turn: int = 0

    def use_for(self, process: Process) -> None:
        identity = (process.pid, process.start_ticks, process.exe_now())
        if self._identity != identity:
            self.marks, self.negative, self._identity = (), NegativeCache(), identity
            self._maps, self._mappings, self._surplus, self._turn = b"", (), None, 0

    def read(self, process: Process, pagemap: Pagemap, read_ns: int | None) -> tuple[tuple[Mapping, ...], int]:
        """All mappings with their resident bytes, and the number of unparsed lines. `read_ns`: now, if the figures may
        be kept for later. TargetGone, PermissionNeeded, ProbeFailed."""
        maps = process.read_bytes("maps")
        mappings, unparsed = self._read_changes(maps, process, pagemap, read_ns), 0
        if mappings is None:
            mappings, unparsed = _count(process, maps, pagemap, read_ns)
            self._surplus = None if unparsed else process.resident_bytes() - sum(map(_RSS, mappings))
        self._maps, self._mappings = maps, mappings
        return mappings, unparsed

    def _read_changes(
        self, maps: bytes, process: Process, pagemap: Pagemap, read_ns: int | None
    ) -> tuple[Mapping, ...] | None:
        """None if too much changed."""
        if self._surplus is None:
            return None
        mappings, lines = self._unchanged(maps), _lines(maps)
        new = [place for place, mapping in enumerate(mappings) if mapping is None]
        if len(new) * _MAX_NEW > len(lines):
            return None
        turn = range(len(lines) * self._turn // TURNS, len(lines) * (self._turn + 1) // TURNS)
        places = sorted({*new, *turn})
        some = b"\n".join([lines[place] for place in places])
        read, unparsed = _count(process, some, pagemap, read_ns, is_whole=False)
        if unparsed:
            return None
        for place, mapping in zip(places, read, strict=True):
            mappings[place] = mapping
        whole = cast(list[Mapping], mappings)
        figure = process.resident_bytes()
        drift = figure - sum(map(_RSS, whole)) - self._surplus
        if abs(drift) > max(_SLACK_BYTES, figure // _SLACK_SHARE):
            return None
        self._turn = (self._turn + 1) % TURNS
        return tuple(whole)

    def _unchanged(self, maps: bytes) -> list[Mapping | None]:
        """The cached mapping for each line; None for a new line."""
        if maps == self._maps:
            return list(self._mappings)
        before = dict(zip(_lines(self._maps), self._mappings, strict=True))
        return [before.get(line) for line in _lines(maps)]


def _count(
    process: Process, maps: bytes, pagemap: Pagemap, read_ns: int | None, *, is_whole: bool = True
) -> tuple[tuple[Mapping, ...], int]:
    from memforensics.probes.proc.resident import count_resident  # numpy takes 0.1 s to import

    columns = columns_of(maps)
    apart = hugetlb_devices(process, columns.mappings()) if process.sample().hugetlb else frozenset()
    found = count_resident(pagemap, columns, is_whole=is_whole, apart=apart, tmpfs=process.tmpfs_devices())
    counted = {field.name: column for field in fields(found) if (column := getattr(found, field.name)) is not None}
    if read_ns is not None:
        counted["read_ns"] = [read_ns] * len(columns)
    mappings = columns.mappings(**counted)
    return mappings, columns.unparsed_lines


def _lines(maps: bytes) -> list[bytes]:
    return maps.removesuffix(b"\n").split(b"\n")
