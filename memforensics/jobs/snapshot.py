"""snapshot: all mappings of one process at one time, by owner. diff: what grew between two of them."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from memforensics.analysis.diff import LOOSE, diff, size_classes, total_change
from memforensics.analysis.ownership import Piece, beside, layers, owner_of, pieces
from memforensics.case.model import Beside, Case, Layer, LayerRow, Loss, Mapping, MappingGroup, Snapshot, Target
from memforensics.case.store import CaseFile
from memforensics.errors import CaseError, UsageError
from memforensics.jobs.identity import identify
from memforensics.jobs.observe import Recorder, new_meta
from memforensics.probes.snapshots import Reader, take_snapshot
from memforensics.target import open_process
from memforensics.units import NS_PER_S, duration_text


@dataclass(frozen=True, slots=True)
class OwnedGroup:
    """Mappings of one owner at one time. `bytes`: resident; in_rss False: mapped, but outside RSS."""

    name: str
    layer: Layer
    count: int
    bytes: int
    in_rss: bool = True


@dataclass(frozen=True, slots=True)
class SnapshotView:
    """What `memforensics snapshot` shows."""

    target: Target | None
    snapshot: Snapshot
    layers: tuple[LayerRow, ...]
    beside: Beside
    groups: tuple[OwnedGroup, ...]  # the largest first
    mappings: tuple[tuple[Mapping, str, Layer], ...]  # with the group and layer of most of its bytes
    losses: tuple[Loss, ...] = ()


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a diff: the snapshot, and where it comes from."""

    snapshot: Snapshot
    name: str  # "leak.case, first snapshot", "PID 4711"
    target: Target | None = None


@dataclass(frozen=True, slots=True)
class DiffView:
    """What `memforensics diff` shows."""

    before: Side
    after: Side
    groups: tuple[MappingGroup, ...]
    layers: tuple[LayerRow, ...]
    change_bytes: int  # what the groups sum to
    same_process: bool
    losses: tuple[Loss, ...] = ()


def snapshot(pid: int, *, reader: Reader = "auto", record: Path | None = None) -> SnapshotView:
    """One snapshot of a live process, kept in the case file `record` where one is named.

    NoSuchProcess, NotATarget, TargetGone, PermissionNeeded, ProbeFailed (a reader by name), CaseError.
    """
    with contextlib.closing(open_process(pid)) as process:
        target = identify(process)
        taken, losses = take_snapshot(process, reader)
        sample = process.sample()
    if record is not None:
        with Recorder(new_meta("snapshot", pid), record) as recorder:
            recorder.put([target, sample, taken, *losses])
    return view(taken, target, losses)


def view(taken: Snapshot, target: Target | None = None, losses: tuple[Loss, ...] = ()) -> SnapshotView:
    """A snapshot as it is shown."""
    owned = pieces(taken)
    each = [(mapping, owner_of(own)) for mapping, own in _by_mapping(owned)]
    return SnapshotView(
        target=target,
        snapshot=taken,
        layers=layers(None, taken),
        beside=beside([taken]),
        groups=_groups(owned),
        mappings=tuple((mapping, owner.group, owner.layer) for mapping, owner in each),
        losses=losses,
    )


def compare(
    before: str,
    after: str | None = None,
    *,
    over_s: float | None = None,
    from_s: float | None = None,
    to_s: float | None = None,
    limit: int = 20,
) -> DiffView:
    """What grew from one to the other. Each is a case file or a PID.

    Two of them: the last snapshot of each file, or a snapshot of each process now. One file alone: its first and last
    snapshot of one process, or those nearest to `from_s` and `to_s` seconds after the case began. One PID alone: now,
    and `over_s` seconds later. UsageError for anything else.
    """
    if (from_s, to_s) != (None, None) and (after is not None or _is_pid(before)):
        raise UsageError(
            "--from and --to take one case file", enable="memforensics diff watch.case --from 60s --to 10m"
        )
    if after is None:
        left, right, losses = _one(before, over_s, from_s, to_s)
    elif over_s is not None:
        raise UsageError("--over takes one PID", enable=f"memforensics diff {before} --over 10s")
    else:
        (left, lost), (right, lost_too) = _side(before), _side(after)
        losses = lost + lost_too
    same = _same_process(left, right)
    return DiffView(
        before=left,
        after=right,
        groups=diff(left.snapshot, right.snapshot, limit=limit, same_process=same),
        layers=layers(left.snapshot, right.snapshot),
        change_bytes=total_change(left.snapshot, right.snapshot),
        same_process=same,
        losses=losses,
    )


def _one(
    word: str,
    over_s: float | None,
    from_s: float | None = None,
    to_s: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Side, Side, tuple[Loss, ...]]:
    if not _is_pid(word):
        if over_s is not None:
            raise UsageError(f"--over takes a PID, and {word} is none", enable="memforensics diff PID --over 10s")
        return (*_two_of(Path(word), from_s, to_s), ())
    if over_s is None:
        raise UsageError(
            "one PID alone has nothing to be compared with",
            enable=f"memforensics diff {word} --over 10s   (or two PIDs, or two case files)",
        )
    with contextlib.closing(open_process(int(word))) as process:
        target = identify(process)
        first, lost = take_snapshot(process)
        sleep(over_s)
        process.check()
        last, lost_too = take_snapshot(process, known=first.marks)
    return (
        Side(first, f"PID {word}", target),
        Side(last, f"PID {word}, {over_s:g} s later", target),
        lost + lost_too,
    )


def _side(word: str) -> tuple[Side, tuple[Loss, ...]]:
    if _is_pid(word):
        with contextlib.closing(open_process(int(word))) as process:
            target = identify(process)
            taken, losses = take_snapshot(process)
        return Side(taken, f"PID {word}", target), losses
    case = _load(Path(word))
    last = _of_main_process(case, Path(word))[-1]
    return Side(last, Path(word).name, case.target(last.pid)), ()


def _is_pid(word: str) -> bool:
    """A number, unless a file of that name lies here."""
    return word.isascii() and word.isdigit() and not Path(word).exists()


def _two_of(path: Path, from_s: float | None, to_s: float | None) -> tuple[Side, Side]:
    """The first and last snapshot of a case, or those nearest to these times after its begin."""
    case = _load(path)
    line = _of_main_process(case, path)
    if len(line) < 2:
        raise CaseError(
            f"{path} has one snapshot only",
            why="one case alone is compared with itself over time",
            enable=f"memforensics diff {path} OTHER   (or make one with: memforensics watch PID --record FILE)",
        )
    began = case.meta.anchor.monotonic_ns
    ages = [(taken.t_ns - began) / NS_PER_S for taken in line]
    first = _nearest(ages, from_s) if from_s is not None else 0
    last = _nearest(ages, to_s) if to_s is not None else len(line) - 1
    if first >= last:
        raise UsageError(
            f"{path.name} has no two snapshots at these times",
            why=f"it has some at {', '.join(duration_text(max(age, 0)) for age in ages)}",
        )
    target = case.target(line[0].pid)
    names = [
        f"{path.name}, {word if given is None else f'at {duration_text(max(ages[place], 0))}'}"
        for word, given, place in (("first", from_s, first), ("last", to_s, last))
    ]
    return Side(line[first], names[0], target), Side(line[last], names[1], target)


def _nearest(ages: Sequence[float], wanted: float) -> int:
    return min(range(len(ages)), key=lambda place: abs(ages[place] - wanted))


def _load(path: Path) -> Case:
    with CaseFile.open(path) as file:
        return file.load()


def _of_main_process(case: Case, path: Path) -> list[Snapshot]:
    """The snapshots of the process that was named, or, where it has fewer than two, of the one that changed most."""
    lines: dict[int, list[Snapshot]] = {}
    for taken in sorted(case.snapshots, key=lambda s: s.t_ns):
        lines.setdefault(taken.pid, []).append(taken)
    if not lines:
        raise CaseError(f"{path} has no snapshots", enable="memforensics snapshot PID --record FILE makes one")
    root = lines.get(case.meta.root_pid or 0, [])
    if len(root) >= 2:
        return root
    return max(lines.values(), key=lambda line: (len(line) > 1, abs(total_change(line[0], line[-1])), line is root))


def _same_process(left: Side, right: Side) -> bool:
    if left.snapshot.pid != right.snapshot.pid:
        return False
    if left.target is None or right.target is None:
        return True
    return left.target.start_ticks == right.target.start_ticks


def _by_mapping(owned: list[Piece]) -> list[tuple[Mapping, list[Piece]]]:
    out = []
    for _, own in groupby(owned, key=lambda piece: piece.mapping.start):
        members = list(own)
        out.append((members[0].mapping, members))
    return out


def _groups(owned: list[Piece]) -> tuple[OwnedGroup, ...]:
    """Pieces by owner; anonymous mappings, which have none, by size."""
    classes = size_classes(piece.mapping.size for piece in owned if piece.group in LOOSE)
    found: dict[tuple[str, Layer, bool], list[int]] = {}
    for piece in owned:
        name = f"{piece.group}, {classes[piece.mapping.size]}" if piece.group in LOOSE else piece.group
        found.setdefault((name, piece.layer, piece.in_rss), []).append(piece.bytes or 0)
    groups = [
        OwnedGroup(name, layer, count=len(sizes), bytes=sum(sizes), in_rss=in_rss)
        for (name, layer, in_rss), sizes in found.items()
    ]
    return tuple(sorted(groups, key=lambda group: (not group.in_rss, -group.bytes, group.name)))
