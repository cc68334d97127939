"""The JSON of `snapshot` and `diff`, in the shapes that all commands share."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from memforensics.case.model import KernelTotals, Layer, LayerRow, Loss, Mapping, MappingGroup, Snapshot
from memforensics.report.json.shapes import Json, group_json, kernel_totals_json, layer_json, losses_json, mapping_json
from memforensics.text import utf8


class Group(Protocol):
    """Mappings of one owner at one time."""

    @property
    def name(self) -> str: ...
    @property
    def layer(self) -> Layer: ...
    @property
    def count(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def in_rss(self) -> bool: ...


def snapshot_json(
    taken: Snapshot,
    layers: Iterable[LayerRow],
    groups: Iterable[Group],
    mappings: Iterable[tuple[Mapping, str, Layer]],
    kernel_totals: KernelTotals,
    losses: Iterable[Loss] = (),
) -> Json:
    """{pid, t_ns, reader, read_ms, rss, beside, layers, groups, mappings, losses}; `rss` is the kernel's figure, null
    when unread."""
    rollup = taken.rollup
    return {
        "pid": taken.pid,
        "t_ns": taken.t_ns,
        "reader": taken.reader,
        "read_ms": taken.read_ms,
        "rss": rollup and rollup.rss_anon + rollup.rss_file + rollup.rss_shmem,
        "rss_anon": rollup and rollup.rss_anon,
        "rss_file": rollup and rollup.rss_file,
        "rss_shmem": rollup and rollup.rss_shmem,
        "beside": kernel_totals_json(kernel_totals),
        "layers": [layer_json(row) for row in layers],
        "groups": [
            {"group": utf8(g.name), "layer": g.layer, "in_rss": g.in_rss, "count": g.count, "bytes": g.bytes}
            for g in groups
        ],
        "mappings": [mapping_json(mapping, layer=layer, group=group) for mapping, group, layer in mappings],
        "losses": losses_json(losses),
    }


class Process(Protocol):
    """One process of a compared tree; None: it was not there."""

    @property
    def pid(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def before_bytes(self) -> int | None: ...
    @property
    def after_bytes(self) -> int | None: ...
    @property
    def change_bytes(self) -> int: ...
    @property
    def what(self) -> str: ...


def diff_json(
    groups: Sequence[MappingGroup],
    layers: Iterable[LayerRow],
    processes: Iterable[Process],
    change_bytes: int,
    losses: Iterable[Loss] = (),
) -> Json:
    """{groups, layers, processes, change_bytes, losses}; the changes of the groups, and of the processes, sum to
    `change_bytes`."""
    return {
        "groups": [group_json(group) for group in groups],
        "layers": [layer_json(row) for row in layers],
        "processes": [
            {
                "pid": process.pid,
                "name": utf8(process.name),
                "before_bytes": process.before_bytes,
                "after_bytes": process.after_bytes,
                "change_bytes": process.change_bytes,
                "what": process.what,
            }
            for process in processes
        ],
        "change_bytes": change_bytes,
        "losses": losses_json(losses),
    }
