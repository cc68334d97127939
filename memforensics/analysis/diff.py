"""Changes between two snapshots, in groups that people have names for. Pure.

Addresses alone are misleading: the kernel merges and splits adjacent mappings and places new memory below, so a growing
region keeps its end while its start moves down. Anonymous memory is therefore paired by overlap: mappings of both
snapshots that share addresses, directly or through others, form one region. This covers identity, growth at either end,
merge and split. Regions of unchanged size, and those that appear or go, are grouped by size class: 1,000 mappings of 1
MiB are one group. A region that changed its size is a group of its own, named by the address that it kept. Memory with
an owner (heaps, stacks, libraries, files) is paired by its owner."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from memforensics.analysis.ownership import ANONYMOUS, SHARED_ANONYMOUS, Piece, pieces
from memforensics.case.model import Layer, Mapping, MappingGroup, Snapshot
from memforensics.units import size_text

_LIMIT = 20
_EXAMPLES = 3
UNOWNED = (ANONYMOUS, SHARED_ANONYMOUS)  # groups that are divided by region and size

What = Literal["grew", "shrank", "appeared", "went", "same"]


@dataclass(slots=True)
class _Side:
    bytes: int = 0
    ranges: list[Mapping] = field(default_factory=list)


@dataclass(slots=True)
class _Group:
    before: _Side = field(default_factory=_Side)
    after: _Side = field(default_factory=_Side)
    moved: bool = False

    def merge(self, other: "_Group") -> None:
        """Adds the group of the same name of another process."""
        for own, its in ((self.before, other.before), (self.after, other.after)):
            own.bytes += its.bytes
            own.ranges.extend(its.ranges)
        self.moved |= other.moved


_Key = tuple[str, Layer]


@dataclass(frozen=True, slots=True)
class SnapshotPair:
    """One process at two times. None: it did not run then. `same`: both are the same process, so addresses match."""

    before: Snapshot | None
    after: Snapshot | None
    same: bool = True


def diff(
    before: Snapshot, after: Snapshot, *, limit: int = _LIMIT, same_process: bool | None = None
) -> tuple[MappingGroup, ...]:
    """`diff_tree` of one process. `same_process`: whether addresses match (default: the PIDs are equal)."""
    same = before.pid == after.pid if same_process is None else same_process
    return diff_tree([SnapshotPair(before, after, same)], limit=limit)


def diff_tree(pairs: Sequence[SnapshotPair], *, limit: int = _LIMIT) -> tuple[MappingGroup, ...]:
    """Groups, largest change first; those beyond `limit` are summed into one last group.

    Each process is compared with itself; groups with the same name and layer are then merged. Sizes are resident bytes,
    or mapped bytes if a snapshot lacks resident bytes. The changes of the groups sum to the change over all mappings.
    """
    resident = _all_resident(pairs)
    merged: dict[_Key, _Group] = {}
    for pair in pairs:
        for key, group in _groups_of(pair, resident).items():
            if key in merged:
                merged[key].merge(group)
            else:
                merged[key] = group
    return _ranked([_finished(key, group) for key, group in merged.items()], limit)


def _groups_of(pair: SnapshotPair, resident: bool) -> dict[_Key, _Group]:
    groups: dict[_Key, _Group] = defaultdict(_Group)
    unowned: dict[str, tuple[list[Piece], list[Piece]]] = {name: ([], []) for name in UNOWNED}
    for position, snapshot in enumerate((pair.before, pair.after)):
        for piece in _counted(snapshot, resident) if snapshot is not None else ():
            if piece.group in unowned:
                unowned[piece.group][position].append(piece)
            else:
                group = groups[piece.group, piece.layer]
                _add(group.before if position == 0 else group.after, piece)
    for name, (old, new) in unowned.items():
        _pair_unowned(groups, name, old, new, by_address=pair.same)
    if pair.same:
        for group in groups.values():
            group.moved |= _moved_only(group)
    return groups


def total_change(before: Snapshot, after: Snapshot) -> int:
    """The sum of the groups' changes."""
    ((was, now),) = total_sizes([SnapshotPair(before, after)])
    return (now or 0) - (was or 0)


def total_sizes(pairs: Sequence[SnapshotPair]) -> list[tuple[int | None, int | None]]:
    """The size of each process before and after, measured as in `diff_tree`. None: it did not run then."""
    resident = _all_resident(pairs)

    def size(snapshot: Snapshot | None) -> int | None:
        return None if snapshot is None else sum(piece.bytes or 0 for piece in _counted(snapshot, resident))

    return [(size(pair.before), size(pair.after)) for pair in pairs]


def _all_resident(pairs: Sequence[SnapshotPair]) -> bool:
    return all(_has_rss(s) for pair in pairs for s in (pair.before, pair.after) if s is not None)


def _has_rss(snapshot: Snapshot) -> bool:
    return any(mapping.rss is not None for mapping in snapshot.mappings)


def _counted(snapshot: Snapshot, resident: bool) -> Iterable[Piece]:
    """Pieces with the bytes to compare. If mapped bytes are compared, the first piece of a mapping has its whole
    size."""
    if resident:
        return [piece for piece in pieces(snapshot) if piece.in_rss]
    seen: set[int] = set()
    out = []
    for piece in pieces(snapshot):
        if piece.mapping.start not in seen:
            seen.add(piece.mapping.start)
            out.append(Piece(piece.mapping, piece.group, piece.layer, piece.mapping.size))
    return out


def _add(side: _Side, piece: Piece) -> None:
    side.bytes += piece.bytes or 0
    side.ranges.append(piece.mapping)


# --- anonymous regions --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Region:
    before: list[Piece] = field(default_factory=list)
    after: list[Piece] = field(default_factory=list)

    @property
    def resized(self) -> bool:
        """Whether it is in both snapshots with different ranges."""
        return (
            bool(self.before)
            and bool(self.after)
            and [(p.mapping.start, p.mapping.end) for p in self.before]
            != [(p.mapping.start, p.mapping.end) for p in self.after]
        )


def _pair_unowned(
    groups: dict[_Key, _Group], name: str, old: Sequence[Piece], new: Sequence[Piece], *, by_address: bool
) -> None:
    if by_address:
        stayed, old, new = _stayed(old, new)
        regions = _regions(old, new)
    else:
        stayed, regions = [], [_Region(before=[p]) for p in old] + [_Region(after=[p]) for p in new]
    settled = [region for region in regions if not region.resized]
    sizes = [p.mapping.size for region in settled for p in (region.before or region.after)]
    classes = size_classes([*sizes, *(before.mapping.size for before, _ in stayed)])
    named = {size: groups[f"{name}, {text}", "anon-mmap"] for size, text in classes.items()}
    for before, after in stayed:
        group = named[before.mapping.size]
        _add(group.before, before)
        _add(group.after, after)
    for region in regions:
        if region.resized:
            key: _Key = (f"{name}, {_region_name(region)}", "anon-mmap")
            groups[key].moved |= _moved(region)
            members = [(key, region)]
        else:
            size = (region.before or region.after)[0].mapping.size
            members = [((f"{name}, {classes[size]}", "anon-mmap"), region)]
        for key, member in members:
            for piece in member.before:
                _add(groups[key].before, piece)
            for piece in member.after:
                _add(groups[key].after, piece)


def _stayed(old: Sequence[Piece], new: Sequence[Piece]) -> tuple[list[tuple[Piece, Piece]], list[Piece], list[Piece]]:
    """Pairs with equal ranges, which no other mapping can overlap, and the rest. Nearly all mappings are in such
    pairs."""
    at = {(piece.mapping.start, piece.mapping.end): piece for piece in old}
    stayed, rest = [], []
    for piece in new:
        before = at.pop((piece.mapping.start, piece.mapping.end), None)
        if before is None:
            rest.append(piece)
        else:
            stayed.append((before, piece))
    return stayed, list(at.values()), rest


def _regions(old: Sequence[Piece], new: Sequence[Piece]) -> list[_Region]:
    """Connected components of overlap between the two snapshots, found in one sweep by address."""
    both = [(piece, False) for piece in old] + [(piece, True) for piece in new]
    both.sort(key=lambda entry: (entry[0].mapping.start, entry[0].mapping.end, entry[1]))
    regions: list[_Region] = []
    reach = -1
    for piece, is_new in both:
        if piece.mapping.start >= reach:
            regions.append(_Region())
        (regions[-1].after if is_new else regions[-1].before).append(piece)
        reach = max(reach, piece.mapping.end)
    return regions


def _moved(region: _Region) -> bool:
    """Its start moved while its end stayed."""
    first_old, first_new = region.before[0].mapping, region.after[0].mapping
    return first_old.start != first_new.start and _end(region.before) == _end(region.after)


def _moved_only(group: _Group) -> bool:
    """Whether number and bytes are the same but some addresses differ: mremap, or a mapping replaced by an equal
    one."""
    before, after = ([(m.start, m.end) for m in side.ranges] for side in (group.before, group.after))
    return group.before.bytes == group.after.bytes and len(before) == len(after) and set(before) != set(after)


def _end(side: Sequence[Piece]) -> int:
    return max(piece.mapping.end for piece in side)


def _region_name(region: _Region) -> str:
    if _end(region.before) == _end(region.after):
        return f"region ending at {_end(region.after):x}"
    if region.before[0].mapping.start == region.after[0].mapping.start:
        return f"region starting at {region.after[0].mapping.start:x}"
    return f"region around {region.after[0].mapping.start:x}"


def size_classes(sizes: Iterable[int]) -> dict[int, str]:
    """Size -> name of its class: `1.0 MiB each` for a size that occurs more than once, else its power-of-two range."""
    counts = Counter(sizes)
    texts = Counter(size_text(size) for size, count in counts.items() if count > 1)
    names: dict[int, str] = {}
    for size, count in counts.items():
        if count > 1:
            exact = texts[size_text(size)] > 1  # two sizes that are equal when rounded
            names[size] = f"{size} bytes each" if exact else f"{size_text(size)} each"
        else:
            floor = 1 << (size.bit_length() - 1)
            names[size] = f"{size_text(floor)} to {size_text(2 * floor)}"
    return names


# --- groups -------------------------------------------------------------------------------------------------------


def _finished(key: _Key, group: _Group) -> MappingGroup:
    before, after = group.before, group.after
    shown = sorted(after.ranges or before.ranges, key=lambda m: -(m.rss or m.size))[:_EXAMPLES]
    return MappingGroup(
        name=key[0],
        layer=key[1],
        before_bytes=before.bytes if before.ranges else None,
        after_bytes=after.bytes if after.ranges else None,
        count_before=len(before.ranges),
        count_after=len(after.ranges),
        what=_what(before, after),
        moved=group.moved,
        examples=tuple(f"{m.start:x}-{m.end:x} {m.perms}" for m in shown),
    )


def _what(before: _Side, after: _Side) -> What:
    if not before.ranges:
        return "appeared"
    if not after.ranges:
        return "went"
    change = after.bytes - before.bytes
    return "grew" if change > 0 else "shrank" if change < 0 else "same"


def _ranked(groups: Sequence[MappingGroup], limit: int) -> tuple[MappingGroup, ...]:
    ranked = sorted(groups, key=lambda g: (-abs(g.change_bytes), -(g.after_bytes or 0), g.name))
    if len(ranked) <= limit:
        return tuple(ranked)
    kept, rest = ranked[: limit - 1], ranked[limit - 1 :]
    layers = {group.layer for group in rest}
    change = sum(group.change_bytes for group in rest)
    return (
        *kept,
        MappingGroup(
            name=f"{len(rest)} smaller groups",
            layer=layers.pop() if len(layers) == 1 else "unattributed",
            before_bytes=sum(group.before_bytes or 0 for group in rest),
            after_bytes=sum(group.after_bytes or 0 for group in rest),
            count_before=sum(group.count_before for group in rest),
            count_after=sum(group.count_after for group in rest),
            what="grew" if change > 0 else "shrank" if change < 0 else "same",
            summed=len(rest),
        ),
    )
