"""Which parts of address ranges are resident, by /proc/PID/pagemap: nothing is touched, nothing stops."""

from collections.abc import Iterable, Iterator

from memforensics.target.pagemap import Pagemap
from memforensics.target.process import Process

GAP_BYTES = 1 << 21  # ranges nearer to each other than this are read with one call
UNSCANNABLE_LIMIT = 8 << 30  # of address space, on kernels without PAGEMAP_SCAN

Span = tuple[int, int]  # [start, end)


def present_runs(process: Process, spans: Iterable[Span]) -> list[Span]:
    """The resident runs in and between `spans`, which rise; the zero page is left out. The runs rise and are disjoint.
    TargetGone, PermissionNeeded, ProbeFailed."""
    runs: list[Span] = []
    with Pagemap(process.pid, process.proc) as pagemap:
        can_scan = pagemap.can_scan()
        for start, end in _near(spans):
            if can_scan:
                runs += [(low, high) for low, high, _ in pagemap.scan(start, end)]
            else:
                runs += pagemap.present(start, end, limit_bytes=UNSCANNABLE_LIMIT)
    return runs


def _near(spans: Iterable[Span]) -> Iterator[Span]:
    """Joins neighbours."""
    first = last = None
    for start, end in spans:
        if first is None or last is None:
            first, last = start, end
        elif start - last > GAP_BYTES:
            yield first, last
            first, last = start, end
        else:
            last = max(last, end)
    if first is not None and last is not None:
        yield first, last
