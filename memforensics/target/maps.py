"""/proc/PID/maps. Pure: takes its text, and counts the lines that it cannot read.

A process with many mappings has tens of thousands of lines, nearly all of one form: anonymous memory. `columns_of`
reads those at once with numpy, in a third of the time that `parse_maps` takes, and all other lines with `parse_maps`.
"""

import binascii
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import repeat
from typing import TYPE_CHECKING, Any

from memforensics.case.model import Mapping
from memforensics.target.parse import lines_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Bytes = npt.NDArray[np.uint8]
    Words = npt.NDArray[np.uint64]

# fs/proc/task_mmu.c, show_map_vma(): "%lx-%lx %c%c%c%c %08llx %02x:%02x %lu " and, padded, the name, which may hold any
# byte but a newline. The alternative in the middle is the end of most lines: anonymous memory.
_LINE = re.compile(
    r"^([0-9a-f]{1,16})-([0-9a-f]{1,16}) ([r-][w-][x-][sp]) "
    r"(?:00000000 00:00 0 ?|([0-9a-f]{1,16}) ([0-9a-f]{1,8}:[0-9a-f]{1,8}) ([0-9]{1,20})(?: +(.*))?)$",
    re.MULTILINE,
)
# From the first x, / or [ of a line that is executable or has a name: hexadecimal digits have no x.
_NAMED_OR_CODE = re.compile(r"[x/\[].*")

# A plain line: anonymous memory at addresses of twelve digits.
_PERMS_AT, _TAIL_AT, _TAIL = 26, 30, b" 00000000 00:00 0 "
_PLAIN_BYTES = _TAIL_AT + len(_TAIL)
_PERMS = {0: ""} | {
    int.from_bytes(perms.encode(), "little"): perms
    for perms in (f"{r}{w}{x}{p}" for r in "r-" for w in "w-" for x in "x-" for p in "ps")
}


@dataclass(frozen=True, slots=True)
class ParsedMaps:
    mappings: tuple[Mapping, ...]
    unparsed_lines: int = 0


def parse_maps(text: str, *, named_or_code: bool = False) -> ParsedMaps:
    """All mappings. `named_or_code`: only those that have a file or a name or may be executed, which takes little time
    however many others there are."""
    if named_or_code:
        found = (match.span() for match in _NAMED_OR_CODE.finditer(text))
        text = "".join(text[text.rfind("\n", 0, start) + 1 : end + 1] for start, end in found)
    same: dict[str, str] = {}  # one string for all that are equal
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
        for start, end, perms, offset, device, inode, path in _LINE.findall(text)
    ]
    return ParsedMaps(tuple(mappings), len(lines_of(text)) - len(mappings))


def unescape_path(path: str) -> str:
    r"""The kernel writes a newline in a path as \012 (seq_path(), fs/seq_file.c)."""
    return path.replace("\\012", "\n") if "\\012" in path else path


@dataclass(slots=True)
class Columns:
    """The mappings of a maps text, ascending, one list for each field."""

    start: list[int]
    end: list[int]
    perms: list[str]
    offset: list[int]
    device: list[str]
    inode: list[int]
    path: list[str]
    unparsed_lines: int = 0

    def __len__(self) -> int:
        return len(self.start)

    def mappings(self, **counted: Sequence[int] | Sequence[str]) -> tuple[Mapping, ...]:
        """`counted`: further fields of Mapping, a column each."""
        columns: dict[str, Iterable[Any]] = {field.name: getattr(self, field.name) for field in fields(self)}
        columns.update(counted)
        unread = repeat(None)
        return tuple(map(Mapping, *(columns.get(name, unread) for name in Mapping.__struct_fields__)))


def columns_of(maps: bytes, lines: "tuple[Ints, Ints] | None" = None) -> Columns:
    """The same mappings as `parse_maps`. `lines`: where the lines begin and end, when only some lines of the text are
    lines of maps."""
    import numpy as np

    starts, ends = line_bounds(maps) if lines is None else lines
    is_plain = ends - starts == _PLAIN_BYTES
    plain = _plain(rows_at(maps, starts[is_plain], _PLAIN_BYTES))
    if plain is None:
        is_plain[:], plain = False, [np.empty(0, np.int64)] * 3
    places = np.flatnonzero(~is_plain)
    others = [maps[starts[at] : ends[at]].decode("utf-8", "surrogateescape") for at in places]
    parsed = parse_maps("".join(line + "\n" for line in others))
    if parsed.unparsed_lines:
        unknown = [at for at, line in zip(places, others, strict=True) if not parse_maps(line + "\n").mappings]
        is_plain = np.delete(is_plain, unknown)
        places = np.flatnonzero(~is_plain)
    count = len(is_plain)
    if len(places):
        spread = np.zeros((3, count), np.int64)
        spread[:, is_plain] = plain
        plain = list(spread)
    start, end, perms = (values.tolist() for values in plain)
    columns = Columns(
        start=start,
        end=end,
        perms=list(map(_PERMS.__getitem__, perms)),
        offset=[0] * count,
        device=["00:00"] * count,
        inode=[0] * count,
        path=[""] * count,
        unparsed_lines=parsed.unparsed_lines,
    )
    for place, mapping in zip(places.tolist(), parsed.mappings, strict=True):
        columns.start[place], columns.end[place] = mapping.start, mapping.end
        columns.perms[place], columns.path[place] = mapping.perms, mapping.path
        columns.offset[place], columns.device[place] = mapping.offset, mapping.device
        columns.inode[place] = mapping.inode
    return columns


def line_bounds(text: bytes) -> "tuple[Ints, Ints]":
    """Where each line begins, and where it ends."""
    import numpy as np

    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))
    if text and not text.endswith(b"\n"):
        ends = np.append(ends, len(text))
    return np.concatenate(([0], ends[:-1] + 1))[: len(ends)], ends


def rows_at(text: bytes, places: "Ints", length: int) -> "Bytes":
    """The `length` bytes at each place, a row each. The text must be long enough."""
    import numpy as np

    if not len(places):
        return np.empty((0, length), np.uint8)
    everywhere: npt.NDArray[Any] = np.ndarray((len(text) - length + 1,), f"V{length}", text, 0, (1,))
    return everywhere[places].view(np.uint8).reshape(-1, length)


def _plain(rows: "Bytes") -> "list[Ints] | None":
    """Starts, ends, and permissions as keys of _PERMS. None if a line is not plain."""
    import numpy as np

    perms = np.ascontiguousarray(rows[:, _PERMS_AT:_TAIL_AT]).view("<u4").ravel()
    if (
        (rows[:, 12] != ord("-")).any()
        or (rows[:, 25] != ord(" ")).any()
        or rows[:, _TAIL_AT:].tobytes() != _TAIL * len(rows)
        or not _PERMS.keys() >= set(np.unique(perms).tolist())
    ):
        return None
    try:
        digits = binascii.unhexlify(np.concatenate((rows[:, :12], rows[:, 13:25]), axis=1).tobytes())
    except binascii.Error:
        return None
    parts = np.frombuffer(digits, ">u2").astype(np.int64).reshape(-1, 2, 3)
    addresses = parts[..., 0] << 32 | parts[..., 1] << 16 | parts[..., 2]
    return [addresses[:, 0], addresses[:, 1], perms]
