"""How much of the outstanding ranges is resident."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from memforensics.errors import MemforensicsError
from memforensics.probes.ebpf.loader.layout import LiveRange
from memforensics.probes.ebpf.mmap.allocation_table import AllocationTable, MmapSite
from memforensics.probes.ebpf.mmap.cohorts import OutstandingBlock
from memforensics.probes.ebpf.mmap.ledger import Block, Span
from memforensics.probes.ebpf.present import present_runs
from memforensics.target.process import Process

SKIPPED_SHARE = 0.01  # of the outstanding bytes: less than this without a stack is no loss


@dataclass(frozen=True, slots=True)
class ResidentSummary:
    """What one process has outstanding at the end. `resident_bytes`: without files; None where it could not be read.
    `stacks_skipped`: mappings without a stack."""

    resident_bytes: int | None = None
    stacks_skipped: int = 0


def summarize_resident(process: Process, table: AllocationTable, live: Iterable[LiveRange]) -> ResidentSummary:
    """Sets the outstanding blocks and the resident bytes of each site. `live`: the kernel's mappings of this space."""
    live = list(live)
    for site in table.sites:
        site.outstanding = []
    for site, _, block in outstanding_blocks(table, live):
        assert site.outstanding is not None
        site.outstanding.append(block)
    ranges = [(r.start, r.end, r.site, r.weight) for r in live]
    ranges += [(p.start, p.end, p.block.site, p.block.weight) for p in table.ledger]
    sizes = [end - start for start, end, _, weight in ranges if not weight]
    is_loss = sum(sizes) > SKIPPED_SHARE * sum(end - start for start, end, *_ in ranges)
    skipped = len(sizes) if is_loss else 0
    groups: dict[tuple[MmapSite | None, int], int] = {}
    grouped = [
        (start, end, groups.setdefault((table.sites.get(site), weight), len(groups)))
        for start, end, site, weight in ranges
    ]
    try:
        resident = resident_by_group(process, grouped)
    except MemforensicsError:
        return ResidentSummary(None, skipped)
    for site in table.sites:
        site.resident_bytes = 0
    total = 0
    for (owner, weight), number in groups.items():
        present = resident.get(number, 0)
        if owner is not None:
            owner.resident_bytes = (owner.resident_bytes or 0) + weight * present
        if owner is None or not owner.file_backed:
            total += present
    return ResidentSummary(total, skipped)


def outstanding_blocks(
    table: AllocationTable, live: Iterable[LiveRange]
) -> Iterator[tuple[MmapSite, list[Span], OutstandingBlock]]:
    """The outstanding blocks of all sites, and the ranges of each. `live`: the kernel's mappings of this space."""
    for entry in live:
        site = table.sites.get(entry.site)
        if site is not None:
            size = entry.end - entry.start
            yield site, [(entry.start, entry.end)], OutstandingBlock(entry.born_ns, size * entry.weight, entry.weight)
    pieces: dict[Block, list[Span]] = {}
    for piece in table.ledger:
        pieces.setdefault(piece.block, []).append((piece.start, piece.end))
    for block, spans in pieces.items():
        site = table.sites.get(block.site)
        if site is not None:
            size = sum(end - start for start, end in spans)
            yield site, spans, OutstandingBlock(block.born_ns, size * block.weight, block.weight)


def resident_by_group(process: Process, ranges: Iterable[tuple[int, int, int]]) -> dict[int, int]:
    """Resident bytes by group of (start, end, group) ranges, which do not overlap. TargetGone, PermissionNeeded."""
    ordered = sorted(ranges)
    runs = present_runs(process, ((start, end) for start, end, _ in ordered))
    totals: dict[int, int] = {}
    at = 0
    for start, end, group in ordered:
        while at < len(runs) and runs[at][1] <= start:
            at += 1
        inside = at
        while inside < len(runs) and runs[inside][0] < end:
            overlap = min(end, runs[inside][1]) - max(start, runs[inside][0])
            totals[group] = totals.get(group, 0) + overlap
            inside += 1
    return totals
