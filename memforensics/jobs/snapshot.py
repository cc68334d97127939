"""snapshot: all mappings of one process at one time, by owner."""

import contextlib
from itertools import groupby
from pathlib import Path

from memforensics.analysis.diff import UNOWNED, size_classes
from memforensics.analysis.ownership import Piece, kernel_totals, layers, owner_of, pieces
from memforensics.case.model import Layer, Loss, Snapshot, Target
from memforensics.case.views import OwnedGroup, SnapshotView
from memforensics.jobs.observe.recorder import Recorder, new_meta
from memforensics.jobs.targets.identity import identify
from memforensics.probes.proc.snapshots import Reader, take_snapshot
from memforensics.target import open_process


def snapshot(pid: int, *, reader: Reader = "auto", record: Path | None = None) -> SnapshotView:
    """Takes one snapshot of a live process; keeps it in the case file `record` if one is given.

    NoSuchProcess, NotATarget, TargetGone, PermissionNeeded, ProbeFailed (a reader chosen by name), CaseError.
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
    """A snapshot with its layers, groups and owners."""
    owned = pieces(taken)
    by_mapping = [list(own) for _, own in groupby(owned, key=lambda piece: piece.mapping.start)]
    owners = [(own[0].mapping, owner_of(own)) for own in by_mapping]
    return SnapshotView(
        target=target,
        snapshot=taken,
        layers=layers(None, taken),
        kernel_totals=kernel_totals([taken]),
        groups=_groups(owned),
        mappings=tuple((mapping, owner.group, owner.layer) for mapping, owner in owners),
        losses=losses,
    )


def _groups(owned: list[Piece]) -> tuple[OwnedGroup, ...]:
    """Groups pieces by owner, and anonymous mappings without an owner by size."""
    classes = size_classes(piece.mapping.size for piece in owned if piece.group in UNOWNED)
    found: dict[tuple[str, Layer, bool], list[int]] = {}
    for piece in owned:
        name = f"{piece.group}, {classes[piece.mapping.size]}" if piece.group in UNOWNED else piece.group
        found.setdefault((name, piece.layer, piece.in_rss), []).append(piece.bytes or 0)
    groups = [
        OwnedGroup(name, layer, count=len(sizes), bytes=sum(sizes), in_rss=in_rss)
        for (name, layer, in_rss), sizes in found.items()
    ]
    return tuple(sorted(groups, key=lambda group: (not group.in_rss, -group.bytes, group.name)))
