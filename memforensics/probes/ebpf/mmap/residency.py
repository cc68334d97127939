"""How much of the outstanding ranges is resident, by /proc/PID/pagemap: nothing is touched, nothing stops."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from memforensics.errors import MemforensicsError
from memforensics.probes.ebpf.loader.layout import LiveRange
from memforensics.probes.ebpf.mmap.allocation_table import AllocationTable, SiteRecord
from memforensics.probes.ebpf.mmap.cohorts import OutstandingBlock
from memforensics.probes.ebpf.mmap.ledger import Block, Span
from memforensics.target.pagemap import Pagemap
from memforensics.target.process import Process

GAP_BYTES = 1 << 21  # ranges this near each other are looked at in one go
UNSCANNABLE_LIMIT = 8 << 30  # of address space, on kernels without PAGEMAP_SCAN
UNWALKED_SHARE = 0.01  # of what is outstanding, below which to have no stack for it is no loss


@dataclass(frozen=True, slots=True)
class ResidentSummary:
    """What of one process is outstanding at the end. `resident_bytes`: files apart; None where it could not be read.
    `stacks_skipped`: mappings without a stack."""

    resident_bytes: int | None = None
    stacks_skipped: int = 0


def summarize_resident(process: Process, table: AllocationTable, live: Iterable[LiveRange]) -> ResidentSummary:
    """Notes for each site of the table when what stands of it was born, and how much of that is resident. `live`: what
    the kernel has of it."""
    live = list(live)
    ranges = [(r.start, r.end, r.site, r.weight) for r in live]
    ranges += [(p.start, p.end, p.block.site, p.block.weight) for p in table.ledger]
    sizes = [end - start for start, end, _, weight in ranges if not weight]
    is_loss = sum(sizes) > UNWALKED_SHARE * sum(end - start for start, end, *_ in ranges)
    stacks_skipped = len(sizes) if is_loss else 0
    groups: dict[tuple[SiteRecord | None, int], int] = {}
    grouped: list[tuple[int, int, int]] = []
    lefts: dict[SiteRecord, list[OutstandingBlock]] = {site: [] for site in table.sites.values()}
    for site_record, _, left in outstanding_blocks(table, live):
        lefts[site_record].append(left)
    for site_record, found in lefts.items():
        site_record.left = found
    for start, end, site, weight in ranges:
        record = table.record(site)
        grouped.append((start, end, groups.setdefault((record, weight), len(groups))))
    try:
        resident = resident_by_site(process, grouped)
    except MemforensicsError:
        return ResidentSummary(None, stacks_skipped)
    for site_record in lefts:
        site_record.resident_bytes = 0
    total = 0
    for (record, weight), number in groups.items():
        present = resident.get(number, 0)
        if record is not None:
            record.resident_bytes = (record.resident_bytes or 0) + weight * present
        if record is None or not record.file_backed:
            total += present
    return ResidentSummary(total, stacks_skipped)


def outstanding_blocks(
    table: AllocationTable, live: Iterable[LiveRange]
) -> Iterator[tuple[SiteRecord, list[Span], OutstandingBlock]]:
    """The outstanding blocks of all sites: the ranges of each, and its birth. `live`: what the kernel has of them."""
    for entry in live:
        record = table.record(entry.site)
        if record is not None:
            size = entry.end - entry.start
            yield record, [(entry.start, entry.end)], OutstandingBlock(entry.born_ns, size * entry.weight, entry.weight)
    cut: dict[Block, list[Span]] = {}
    for piece in table.ledger:
        cut.setdefault(piece.block, []).append((piece.start, piece.end))
    for block, spans in cut.items():
        record = table.record(block.site)
        if record is not None:
            size = sum(end - start for start, end in spans)
            yield record, spans, OutstandingBlock(block.born_ns, size * block.weight, block.weight)


def resident_by_site(process: Process, ranges: Iterable[tuple[int, int, int]]) -> dict[int, int]:
    """Site -> present bytes of its (start, end, site) ranges, which do not overlap. `site` is any number that the
    caller groups by. TargetGone, PermissionNeeded."""
    ordered = sorted(ranges)
    out: dict[int, int] = {}
    with Pagemap(process.pid, process.proc) as pagemap:
        can_scan = pagemap.can_scan()
        for group in _groups(ordered):
            start, end = group[0][0], group[-1][1]
            if can_scan:
                runs = [(low, high) for low, high, _ in pagemap.scan(start, end)]
            else:
                runs = pagemap.present(start, end, limit_bytes=UNSCANNABLE_LIMIT)
            _share(group, runs, out)
    return out


def _groups(ordered: list[tuple[int, int, int]]) -> Iterable[list[tuple[int, int, int]]]:
    group: list[tuple[int, int, int]] = []
    for entry in ordered:
        if group and entry[0] - group[-1][1] > GAP_BYTES:
            yield group
            group = []
        group.append(entry)
    if group:
        yield group


def _share(group: list[tuple[int, int, int]], runs: list[tuple[int, int]], out: dict[int, int]) -> None:
    """Adds up the overlap of each range with the present runs; both rise."""
    at = 0
    for start, end, site in group:
        while at < len(runs) and runs[at][1] <= start:
            at += 1
        look = at
        while look < len(runs) and runs[look][0] < end:
            overlap = min(end, runs[look][1]) - max(start, runs[look][0])
            out[site] = out.get(site, 0) + overlap
            look += 1
