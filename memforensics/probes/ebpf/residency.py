"""How much of the outstanding ranges is resident, by /proc/PID/pagemap: nothing is touched, nothing stops."""

from collections.abc import Iterable

from memforensics.target.pagemap import Pagemap
from memforensics.target.process import Process

GAP_BYTES = 1 << 21  # ranges this near each other are looked at in one go
UNSCANNABLE_LIMIT = 8 << 30  # of address space, on kernels without PAGEMAP_SCAN


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
