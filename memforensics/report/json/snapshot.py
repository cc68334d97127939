"""The JSON of `snapshot` and `diff`."""

from typing import Annotated, Literal

from memforensics.case import model
from memforensics.case.views import DiffView, SnapshotView
from memforensics.report.json import shapes
from memforensics.report.json.shapes import Layer, Pid, doc, shaped


class OwnedGroup(shapes.Shape):
    """Mappings of one owner."""

    group: Annotated[str, doc("Its name.")]
    layer: Layer
    in_rss: Annotated[bool, doc("False: mapped, but outside RSS.")]
    count: Annotated[int, doc("Mappings.")]
    bytes: Annotated[int, doc("Resident bytes.")]


class Mapping(shapes.Shape):
    """One line of /proc/PID/maps. Sizes in bytes; null: this reader cannot know."""

    start: Annotated[str, doc("First address, hexadecimal.")]
    end: Annotated[str, doc("Address after the last, hexadecimal.")]
    size: Annotated[int, doc("Bytes of address space.")]
    perms: Annotated[str, doc("As in maps: rw-p.")]
    path: Annotated[str, doc("Mapped file or [name]; empty when anonymous.")]
    layer: Layer
    group: Annotated[str, doc("The group that it belongs to.")]
    rss: Annotated[int | None, doc("Resident bytes.")]
    pss: Annotated[int | None, doc("Resident bytes, shared pages divided among their processes.")]
    anonymous: Annotated[int | None, doc("Anonymous resident bytes.")]
    private_dirty: Annotated[int | None, doc("Dirty bytes of this process alone.")]
    swap: Annotated[int | None, doc("Bytes swapped out.")]
    locked: Annotated[int | None, doc("Bytes locked in memory.")]
    anon_huge: Annotated[int | None, doc("Anonymous bytes in transparent huge pages.")]
    shmem_huge: Annotated[int | None, doc("Shared bytes mapped by huge pages.")]
    file_huge: Annotated[int | None, doc("File bytes mapped by huge pages.")]
    read_ns: Annotated[int | None, doc("When its figures were read, on the clock of t_ns; null: with the snapshot.")]


class Snapshot(shapes.Shape):
    """What snapshot prints."""

    pid: Pid
    t_ns: Annotated[int, doc("When it was taken, CLOCK_MONOTONIC nanoseconds.")]
    reader: Annotated[str, doc("How the mappings were read: smaps, pagemap, ...")]
    read_ms: Annotated[float | None, doc("Time that reading took, milliseconds.")]
    rss: Annotated[int | None, doc("The kernel's figure; null when not read.")]
    rss_anon: Annotated[int | None, doc("RssAnon.")]
    rss_file: Annotated[int | None, doc("RssFile.")]
    rss_shmem: Annotated[int | None, doc("RssShmem.")]
    beside: shapes.KernelTotals
    layers: Annotated[tuple[shapes.LayerRow, ...], doc("The waterfall: rows with in_rss sum to rss.")]
    groups: Annotated[tuple[OwnedGroup, ...], doc("Mappings by owner, the largest first.")]
    mappings: Annotated[tuple[Mapping, ...], doc("Every mapping, by address.")]
    losses: shapes.Losses


def snapshot(view: SnapshotView) -> Snapshot:
    rollup = view.snapshot.rollup
    return shaped(
        Snapshot,
        view.snapshot,
        rss=rollup and rollup.rss_anon + rollup.rss_file + rollup.rss_shmem,
        rss_anon=rollup and rollup.rss_anon,
        rss_file=rollup and rollup.rss_file,
        rss_shmem=rollup and rollup.rss_shmem,
        beside=view.kernel_totals,
        layers=shapes.layer_rows(view.layers),
        groups=tuple(shaped(OwnedGroup, group, group=group.name) for group in view.groups),
        mappings=tuple(mapping(one, layer, group) for one, group, layer in view.mappings),
        losses=shapes.losses(view.losses),
    )


def mapping(one: model.Mapping, layer: model.Layer, group: str) -> Mapping:
    return shaped(Mapping, one, start=f"{one.start:#x}", end=f"{one.end:#x}", layer=layer, group=group)


class ComparedProcess(shapes.Shape):
    """One process of the compared trees."""

    pid: Pid
    name: Annotated[str, doc("Its role, or its name in the kernel.")]
    before_bytes: Annotated[int | None, doc("Resident bytes before; null: it was not there.")]
    after_bytes: Annotated[int | None, doc("Resident bytes after; null: it was not there.")]
    change_bytes: Annotated[int, doc("The difference.")]
    what: Annotated[Literal["grew", "shrank", "appeared", "went", "same"], doc("How it changed.")]


class Diff(shapes.Shape):
    """What diff prints. The changes of the groups, and those of the processes, sum to change_bytes."""

    groups: Annotated[tuple[shapes.Group, ...], doc("Groups of mappings, by growth.")]
    layers: Annotated[tuple[shapes.LayerRow, ...], doc("The layers after, and their change.")]
    processes: Annotated[tuple[ComparedProcess, ...], doc("The largest change first.")]
    change_bytes: Annotated[int, doc("Of RSS, of all processes together.")]
    losses: shapes.Losses


def diff(view: DiffView) -> Diff:
    return Diff(
        groups=shapes.mapping_groups(view.groups),
        layers=shapes.layer_rows(view.layers),
        processes=tuple(shaped(ComparedProcess, process) for process in view.processes),
        change_bytes=view.change_bytes,
        losses=shapes.losses(view.losses),
    )
