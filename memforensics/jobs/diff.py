"""diff: what grew, shrank, appeared or went between two snapshots of a process tree."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from memforensics.analysis.diff import SnapshotPair, diff_tree, total_change, total_sizes
from memforensics.analysis.ownership import totals_of, waterfall
from memforensics.case.model import Case, Loss, Snapshot, Target
from memforensics.case.views import DiffView, ProcessChange, Side
from memforensics.errors import CaseError, PermissionNeeded, TargetError, TargetGone, UsageError
from memforensics.jobs.case.conclude import load_case
from memforensics.jobs.observe.tree import TreeObserver
from memforensics.jobs.targets.identity import identify
from memforensics.probes.proc.snapshots import take_snapshot
from memforensics.target import open_process
from memforensics.units import NS_PER_S, duration_text


def compare(
    before: str,
    after: str | None = None,
    *,
    over_s: float | None = None,
    from_s: float | None = None,
    to_s: float | None = None,
    children: bool = True,
    process: int | None = None,
    limit: int = 20,
) -> DiffView:
    """What changed from `before` to `after`. Each is a case file or a PID.

    With both: the last snapshots of each file, or a snapshot of each process now. One file alone: its first and last
    snapshots, or those nearest to `from_s` and `to_s` seconds after the case began. One PID alone: now, and `over_s`
    seconds later. A file, and one PID alone with `children`, cover the process tree; `process` selects one process.
    UsageError for anything else.
    """
    if (from_s, to_s) != (None, None) and (after is not None or _is_pid(before)):
        raise UsageError(
            "--from and --to need exactly one case file", enable="memforensics diff watch.case --from 60s --to 10m"
        )
    if after is None:
        left, right = _two_times(before, over_s, from_s, to_s, children=children)
    elif over_s is not None:
        raise UsageError("--over needs exactly one PID", enable=f"memforensics diff {before} --over 10s")
    else:
        left, right = _side(before), _side(after)
    if process is not None:
        left, right = _only(process, left, right)
    pairs = _paired(left, right)
    changes = [_change(pair, *sizes, left, right) for pair, sizes in zip(pairs, total_sizes(pairs), strict=True)]
    return DiffView(
        before=left,
        after=right,
        groups=diff_tree(pairs, limit=limit),
        layers=waterfall(totals_of(left.snapshots), totals_of(right.snapshots)),
        processes=tuple(sorted(changes, key=lambda change: -abs(change.change_bytes))),
        change_bytes=sum(change.change_bytes for change in changes),
        same_process=pairs[0].same,
        losses=_merged(left.losses + right.losses),
    )


def _merged(losses: Sequence[Loss]) -> tuple[Loss, ...]:
    """Adds up the losses of each kind."""
    kinds = {(loss.probe, loss.what): loss for loss in losses}
    return tuple(
        replace(loss, count=sum(other.count for other in losses if (other.probe, other.what) == kind))
        for kind, loss in kinds.items()
    )


def _paired(left: Side, right: Side) -> list[SnapshotPair]:
    """Pairs each process with itself, and the two main processes with each other."""
    rest = {taken.pid: taken for taken in right.snapshots}
    pairs = []
    for taken in left.snapshots:
        now = rest.get(taken.pid)
        if now is not None and _same_process(left.target(taken.pid), right.target(taken.pid)):
            pairs.append(SnapshotPair(taken, rest.pop(taken.pid)))
        else:
            pairs.append(SnapshotPair(taken, None))
    pairs += [SnapshotPair(None, taken) for taken in rest.values()]
    first = pairs[0]
    if first.after is None and right.snapshots[0].pid in rest:
        main = right.snapshots[0]
        pairs = [SnapshotPair(first.before, main, same=False), *(pair for pair in pairs[1:] if pair.after is not main)]
    return pairs


def _same_process(left: Target | None, right: Target | None) -> bool:
    return left is None or right is None or left.start_ticks == right.start_ticks


def _change(pair: SnapshotPair, before: int | None, after: int | None, *sides: Side) -> ProcessChange:
    pid = next(taken.pid for taken in (pair.after, pair.before) if taken is not None)
    target = next((found for side in reversed(sides) if (found := side.target(pid)) is not None), None)
    return ProcessChange(pid, (target.role or target.comm) if target is not None else "?", before, after)


def _only(pid: int, left: Side, right: Side) -> tuple[Side, Side]:
    """Both sides with only this process. UsageError unless both have it."""
    sides = [replace(side, snapshots=tuple(s for s in side.snapshots if s.pid == pid)) for side in (left, right)]
    if not all(side.snapshots for side in sides):
        both = {s.pid for s in left.snapshots} & {s.pid for s in right.snapshots}
        raise UsageError(
            f"process {pid} is not in both snapshots",
            enable=f"--process with one of: {', '.join(map(str, sorted(both)))}",
        )
    return sides[0], sides[1]


def _two_times(
    word: str,
    over_s: float | None,
    from_s: float | None = None,
    to_s: float | None = None,
    *,
    children: bool = True,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Side, Side]:
    if not _is_pid(word):
        if over_s is not None:
            raise UsageError(f"--over needs a PID, and {word} is not one", enable="memforensics diff PID --over 10s")
        return _two_of(Path(word), from_s, to_s)
    if over_s is None:
        raise UsageError(
            "one PID alone needs --over: there is nothing to compare it with",
            enable=f"memforensics diff {word} --over 10s   (or two PIDs, or two case files)",
        )
    with TreeObserver(int(word), children=children) as observer:
        observer.open()
        first = _taken(observer, f"PID {word}")
        sleep(over_s)
        observer.tick()
        if observer.root_left is not None:
            raise TargetGone(int(word), observer.root_left)
        return first, _taken(observer, f"PID {word}, {over_s:g} s later", first.snapshots)


def _taken(observer: TreeObserver, name: str, known: Sequence[Snapshot] = ()) -> Side:
    """A snapshot of each member now. A child that leaves meanwhile, or that may not be read, counts as a loss."""
    marks = {taken.pid: taken.marks for taken in known}
    snapshots: list[Snapshot] = []
    losses, targets = list(observer.losses()), []
    for process in list(observer.members.values()):
        try:
            targets.append(identify(process))
            taken, lost = take_snapshot(process, known=marks.get(process.pid, ()))
        except (TargetError, PermissionNeeded):
            if process.pid == observer.pid:
                raise
            losses.append(Loss(probe="snapshots", what="child processes that left or could not be read", count=1))
            continue
        snapshots.append(taken)
        losses += lost
    return Side(tuple(snapshots), name, tuple(targets), tuple(losses))


def _side(word: str) -> Side:
    if _is_pid(word):
        with contextlib.closing(open_process(int(word))) as process:
            target = identify(process)
            taken, losses = take_snapshot(process)
        return Side((taken,), f"PID {word}", (target,), losses)
    path = Path(word)
    case = load_case(path)
    last = _of_main_process(case, path)[-1]
    return _state(case, last, path.name)


def _is_pid(word: str) -> bool:
    """Whether it is a number and no file has that name."""
    return word.isascii() and word.isdigit() and not Path(word).exists()


def _two_of(path: Path, from_s: float | None, to_s: float | None) -> tuple[Side, Side]:
    """The tree at the first and last snapshots of a case, or at those nearest to these times since its start."""
    case = load_case(path)
    snapshots = _of_main_process(case, path)
    if len(snapshots) < 2:
        raise CaseError(
            f"{path} has only one snapshot",
            why="with one case file, diff compares two of its snapshots",
            enable=f"memforensics diff {path} OTHER   (or make one with: memforensics watch PID --record FILE)",
        )
    began = case.meta.anchor.monotonic_ns
    ages = [(taken.t_ns - began) / NS_PER_S for taken in snapshots]
    first = _nearest(ages, from_s) if from_s is not None else 0
    last = _nearest(ages, to_s) if to_s is not None else len(snapshots) - 1
    if first >= last:
        raise UsageError(
            f"{path.name} has no two different snapshots near these times",
            why=f"it has snapshots at {', '.join(duration_text(max(age, 0)) for age in ages)}",
        )
    names = [
        f"{path.name}, {word if given is None else f'at {duration_text(max(ages[place], 0))}'}"
        for word, given, place in (("first", from_s, first), ("last", to_s, last))
    ]
    return _state(case, snapshots[first], names[0]), _state(case, snapshots[last], names[1])


def _nearest(ages: Sequence[float], seconds: float) -> int:
    return min(range(len(ages)), key=lambda place: abs(ages[place] - seconds))


def _of_main_process(case: Case, path: Path) -> list[Snapshot]:
    """The snapshots of the root process, or, if it has fewer than two, of the process that changed most."""
    by_process = _by_process(case)
    if not by_process:
        raise CaseError(f"{path} has no snapshots", enable="memforensics snapshot PID --record FILE   (makes one)")
    root = by_process.get(case.meta.root_pid or 0, [])
    if len(root) >= 2:
        return root
    return max(
        by_process.values(),
        key=lambda snapshots: (len(snapshots) > 1, abs(total_change(snapshots[0], snapshots[-1])), snapshots is root),
    )


def _by_process(case: Case) -> dict[int, list[Snapshot]]:
    by_process: dict[int, list[Snapshot]] = {}
    for taken in sorted(case.snapshots, key=lambda s: s.t_ns):
        by_process.setdefault(taken.pid, []).append(taken)
    return by_process


def _state(case: Case, main: Snapshot, name: str) -> Side:
    """The tree at the time of the snapshot `main`: the nearest snapshot of each process that existed then."""
    by_process = _by_process(case) if not case.runs else {main.pid: [main]}  # each run of `prove` is a separate tree
    present, unread = [main], 0
    for pid in {*by_process, *(target.pid for target in case.targets if not case.runs)} - {main.pid}:
        target = case.target(pid)
        if target is not None and not (target.began_ns or 0) <= main.t_ns < (target.exited_ns or main.t_ns + 1):
            continue
        if pid in by_process:
            present.append(min(by_process[pid], key=lambda taken: abs(taken.t_ns - main.t_ns)))
        else:
            unread += 1
    losses = (Loss(probe="snapshots", what=f"processes without a snapshot ({name})", count=unread),) if unread else ()
    return Side(tuple(present), name, case.targets, losses)
