"""How much of the outstanding ranges is resident, by /proc/PID/pagemap: nothing is touched, nothing stops."""

from collections.abc import Iterable
from dataclasses import dataclass

from memforensics.errors import MemforensicsError
from memforensics.probes.ebpf.book import Book, SiteRecord
from memforensics.probes.ebpf.layout import LiveRange
from memforensics.target.pagemap import Pagemap
from memforensics.target.process import Process

GAP_BYTES = 1 << 21  # ranges this near each other are looked at in one go
UNSCANNABLE_LIMIT = 8 << 30  # of address space, on kernels without PAGEMAP_SCAN
UNWALKED_SHARE = 0.01  # of what is outstanding, below which to have no stack for it is no loss


@dataclass(frozen=True, slots=True)
class Standing:
    """What of one process is outstanding at the end. `resident_bytes`: files apart; None where it could not be read.
    `unwalked`: mappings without a stack."""

    resident_bytes: int | None = None
    unwalked: int = 0


def standing(process: Process, book: Book, live: Iterable[LiveRange]) -> Standing:
    """Notes for each site of the book when what stands of it was born, and how much of that is resident. `live`: what
    the kernel has of it."""
    ranges = [(r.start, r.end, r.site, r.born_ns, r.weight) for r in live]
    ranges += [(p.start, p.end, p.block.site, p.block.born_ns, p.block.weight) for p in book.ledger]
    sizes = [end - start for start, end, _, _, weight in ranges if not weight]
    is_loss = sum(sizes) > UNWALKED_SHARE * sum(end - start for start, end, *_ in ranges)
    unwalked = len(sizes) if is_loss else 0
    groups: dict[tuple[SiteRecord | None, int], int] = {}
    grouped: list[tuple[int, int, int]] = []
    for start, end, site, born_ns, weight in ranges:
        record = book.record(site)
        if record is not None:
            record.births.append(born_ns)
        grouped.append((start, end, groups.setdefault((record, weight), len(groups))))
    try:
        resident = resident_by_site(process, grouped)
    except MemforensicsError:
        return Standing(None, unwalked)
    for record in book.sites.values():
        record.resident_bytes = 0
    total = 0
    for (record, weight), number in groups.items():
        present = resident.get(number, 0)
        if record is not None:
            record.resident_bytes = (record.resident_bytes or 0) + weight * present
        if record is None or not record.file_backed:
            total += present
    return Standing(total, unwalked)


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
