"""Reading a process again of which little changed.

What has the same line in maps as before keeps its figures, and the time at which they were read (Mapping.read_ns), as
long as the sum over the mappings follows the kernel's own figure; an eighth of them is read anew each time, and what is
new at once. Where the sum does not follow, everything is read.
"""

from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import cast

from memforensics.case.model import Mapping, OwnerMark
from memforensics.probes.proc.claimed_ranges import Vain
from memforensics.target import Process
from memforensics.target.pagemap import Pagemap
from memforensics.units import MIB

TURNS = 8  # readings in which all is read anew
_LITTLE = 8  # one of so many lines may be new
_SLACK_BYTES, _SLACK_SHARE = MIB, 512  # of the sum against the kernel's figure

_RSS = attrgetter("rss")


@dataclass(slots=True)
class Earlier:
    """What earlier snapshots of one process told. It forgets them when it is used for another process, or program."""

    marks: tuple[OwnerMark, ...] = ()
    vain: Vain = field(default_factory=Vain)
    _identity: object = None
    _maps: bytes = b""
    _mappings: tuple[Mapping, ...] = ()
    _surplus: int | None = None  # the kernel's figure above the sum, when all was read
    _turn: int = 0

    def of(self, process: Process) -> "Earlier":
        """This one, emptied where it is another process's."""
        identity = (process.pid, process.start_ticks, process.exe_now())
        if self._identity != identity:
            self.marks, self.vain, self._identity = (), Vain(), identity
            self._maps, self._mappings, self._surplus, self._turn = b"", (), None, 0
        return self

    def read(self, process: Process, pagemap: Pagemap, read_ns: int | None) -> tuple[tuple[Mapping, ...], int]:
        """All mappings with their resident bytes, and how many lines were not understood. `read_ns`: now, where figures
        may be kept for later. TargetGone, PermissionNeeded, ProbeFailed."""
        maps = process.read_bytes("maps")
        mappings, unparsed = self._again(maps, process, pagemap, read_ns), 0
        if mappings is None:
            mappings, unparsed = _counted(process, maps, pagemap, read_ns)
            self._surplus = None if unparsed else process.resident_bytes() - sum(map(_RSS, mappings))
        self._maps, self._mappings = maps, mappings
        return mappings, unparsed

    def _again(
        self, maps: bytes, process: Process, pagemap: Pagemap, read_ns: int | None
    ) -> tuple[Mapping, ...] | None:
        """None where too much changed."""
        if self._surplus is None:
            return None
        mappings, lines = self._kept(maps), _lines(maps)
        new = [place for place, mapping in enumerate(mappings) if mapping is None]
        if len(new) * _LITTLE > len(lines):
            return None
        turn = range(len(lines) * self._turn // TURNS, len(lines) * (self._turn + 1) // TURNS)
        places = sorted({*new, *turn})
        some = b"\n".join([lines[place] for place in places])
        read, unparsed = _counted(process, some, pagemap, read_ns, is_whole=False)
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

    def _kept(self, maps: bytes) -> list[Mapping | None]:
        """The mapping of before for each line; None where the line is new."""
        if maps == self._maps:
            return list(self._mappings)
        before = dict(zip(_lines(self._maps), self._mappings, strict=True))
        return [before.get(line) for line in _lines(maps)]


def _counted(
    process: Process, maps: bytes, pagemap: Pagemap, read_ns: int | None, *, is_whole: bool = True
) -> tuple[tuple[Mapping, ...], int]:
    from memforensics.probes.proc.resident import count_resident, hugetlb_devices  # numpy: a tenth of a second
    from memforensics.target.maps_columns import columns_of

    columns = columns_of(maps)
    apart = hugetlb_devices(process, columns)
    found = count_resident(pagemap, columns, is_whole=is_whole, apart=apart, tmpfs=process.tmpfs_devices())
    counted = {field.name: column for field in fields(found) if (column := getattr(found, field.name)) is not None}
    if read_ns is not None:
        counted["read_ns"] = [read_ns] * len(columns)
    mappings = columns.mappings(**counted)
    return mappings, columns.unparsed_lines


def _lines(maps: bytes) -> list[bytes]:
    return maps.removesuffix(b"\n").split(b"\n")
